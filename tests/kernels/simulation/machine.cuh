// A cluster of blocks on one CPU thread: every CUDA thread is a coroutine that runs until it has to wait. What runs next,
// and when what is under way arrives, is drawn at random, so that other orders are met with other seeds.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace machine {

constexpr int WARP = 32, WARPGROUP = 128, STACK_BYTES = 1 << 18;
constexpr uint32_t OFFSET = (1 << 24) - 1;  // addresses of shared memory: over it the block + 1, or 0 for one's own

using Action = std::function<void()>;

// A barrier in shared memory: a phase is over once all have arrived and all bytes that were expected are there.
struct Barrier {
    int arrivals, pending;
    long bytes = 0;
    uint32_t phase = 0;
};

// Threads that meet; `generation` counts the meetings.
struct Meeting {
    int arrived = 0;
    long generation = 0;
};

struct Thread {
    int block, index;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    bool done = false, idles = false;
    std::function<bool()> may_go_on;
    std::string waits_for;
    std::vector<Action> products;               // of the group that is open
    std::deque<std::vector<Action>> committed;  // groups that were not waited for yet
    std::vector<Action> copies_in;              // that no barrier waits for yet
    std::deque<std::vector<Action>> committed_in;
    std::vector<Action> copies_out;             // the same of copies out
    std::deque<std::vector<Action>> committed_out;
};

// A block's shared memory: its own, or an array that a source declares, whose blocks are alone.
class Memory {
    std::vector<unsigned char> own;
    unsigned char* start = nullptr;
    size_t bytes = 0;

public:
    void open(size_t size, unsigned char* array) {
        if (!array) own.resize(size);
        start = array ? array : own.data(), bytes = size;
        memset(start, 0xff, size);  // not a number
    }
    unsigned char* data() const { return start; }
    size_t size() const { return bytes; }
    unsigned char& at(size_t place) const {
        if (place >= bytes) throw std::out_of_range("shared memory");
        return start[place];
    }
};

struct Block {
    Memory shared;
    std::map<uint32_t, Barrier> barriers;
    std::map<int, uint32_t> shuffled;
    std::map<int, std::vector<uint32_t>> registers;  // that a warp takes together
};

struct Cluster {
    std::vector<Block> blocks;
    std::vector<Thread> threads;
    std::map<std::string, Meeting> meetings;
    std::vector<Action> under_way;
};

inline Cluster* cluster;
inline Thread* current;
inline ucontext_t scheduler;
inline Action kernel;
inline int first_block, grid, block_threads;
inline bool late_products;  // whether products, and copies in groups, read and write when they are waited for; else when
                            // they are started
inline std::string failure;

// End the current thread's run for good; the launch fails.
[[noreturn]] inline void fail(const std::string& reason) {
    const std::string who = current ? "block " + std::to_string(current->block) + ", thread " +
                                          std::to_string(current->index) + ": " : "";
    if (failure.empty()) failure = who + reason;
    swapcontext(&current->context, &scheduler);
    abort();
}

inline void wait_until(std::function<bool()> condition, const std::string& what) {
    while (!condition()) {
        current->may_go_on = condition, current->waits_for = what;
        swapcontext(&current->context, &scheduler);
    }
    current->may_go_on = nullptr;
}

// Let others run; it is no progress.
inline void idle() {
    current->idles = true, current->waits_for = "what it looks for";
    swapcontext(&current->context, &scheduler);
}

// All `count` threads of a group come here before any goes on.
inline void meet(const std::string& group, int count) {
    Meeting& meeting = cluster->meetings[group];
    const long generation = meeting.generation;
    if (++meeting.arrived == count)
        meeting.arrived = 0, ++meeting.generation;
    else
        wait_until([&meeting, generation] { return meeting.generation != generation; }, group);
}

inline std::string part(const char* what, int size) {
    return what + std::to_string(current->index / size) + " of block " + std::to_string(current->block);
}

inline int block_of(uint32_t address) {
    return address > OFFSET ? int(address >> 24) - 1 : current->block;
}

inline unsigned char* at(uint32_t address, int bytes, int alignment) {
    auto& shared = cluster->blocks.at(block_of(address)).shared;
    const uint32_t offset = address & OFFSET;
    if (offset + bytes > shared.size()) fail("shared memory ends at " + std::to_string(shared.size()) + ", not at " +
                                             std::to_string(offset + bytes));
    if (offset % alignment) fail("an address that is no multiple of " + std::to_string(alignment));
    return shared.data() + offset;
}

inline Barrier& barrier_at(uint32_t address) {
    auto& barriers = cluster->blocks.at(block_of(address)).barriers;
    const auto found = barriers.find(address & OFFSET);
    if (found == barriers.end()) fail("no barrier at " + std::to_string(address & OFFSET));
    return found->second;
}

inline void end_phase_if_over(Barrier& barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) barrier.phase ^= 1, barrier.pending = barrier.arrivals;
}

inline void arrive(Barrier& barrier) {
    if (barrier.pending == 0) fail("more arrivals than the barrier counts");
    --barrier.pending;
    end_phase_if_over(barrier);
}

// Of what is under way, while no thread runs.
inline void arrive_late(Barrier& barrier) {
    if (barrier.pending > 0)
        arrive(barrier);
    else if (failure.empty())
        failure = "more arrivals than the barrier counts";
}

inline void send(int bytes, Barrier& barrier, Action copy) {
    cluster->under_way.push_back([=, &barrier] {
        copy();
        barrier.bytes -= bytes;
        end_phase_if_over(barrier);
    });
}

inline void start_thread() {
    kernel();
    current->done = true;
    swapcontext(&current->context, &scheduler);
}

inline void run(Thread& thread) {
    if (thread.done || (thread.may_go_on && !thread.may_go_on())) return;
    current = &thread;
    swapcontext(&scheduler, &thread.context);
    if (thread.idles) thread.idles = false, current = nullptr;
}

inline bool some_arrive(std::mt19937& random) {
    auto& under_way = cluster->under_way;
    if (under_way.empty() || random() % 4) return false;
    for (auto left = 1 + random() % under_way.size(); left > 0; --left) {
        std::swap(under_way[random() % under_way.size()], under_way.back());
        const Action arrives = under_way.back();
        under_way.pop_back();
        arrives();
    }
    return true;
}

inline std::string stuck() {
    std::string text = "nothing can go on:";
    for (const Thread& thread : cluster->threads)
        if (!thread.done && thread.index % WARP == 0)
            text += " block " + std::to_string(thread.block) + " warp " + std::to_string(thread.index / WARP) + " waits for " +
                    thread.waits_for + ";";
    return text;
}

inline void run_cluster(int blocks, int shared_bytes, unsigned char* array, std::mt19937& random) {
    Cluster mine;
    cluster = &mine;
    mine.blocks.resize(blocks);
    for (Block& block : mine.blocks) block.shared.open(shared_bytes, blocks == 1 ? array : nullptr);
    mine.threads.resize(blocks * block_threads);
    for (int t = 0; t < blocks * block_threads; ++t) {
        Thread& thread = mine.threads[t];
        thread.block = t / block_threads, thread.index = t % block_threads;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get(), thread.context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&thread.context, start_thread, 0);
    }
    const int warps = int(mine.threads.size()) / WARP;
    int idle = 0;
    while (failure.empty()) {
        bool any = false, all_done = true;
        for (int turn = 0; turn < warps && failure.empty(); ++turn) {
            const int warp = random() % warps;
            for (int lane = 0; lane < WARP; ++lane) {
                current = nullptr;
                run(mine.threads[warp * WARP + lane]);
                any |= current != nullptr;
            }
            any |= some_arrive(random);
        }
        for (const Thread& thread : mine.threads) all_done &= thread.done;
        if (all_done) break;
        idle = any || !mine.under_way.empty() ? 0 : idle + 1;
        if (idle == 64) failure = stuck();
    }
}

}  // namespace machine
