// What an H200 allows, beside which kernels are judged: rates of device memory by the share of writes, and of what its
// multiprocessors get from the second-level cache, write to it and send to one another in a cluster, alone and at once.
//
//     nvcc -std=c++17 -O3 -arch=sm_90a -o /tmp/limits kernels/bench/limits.cu && /tmp/limits
#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../lacuna_kernels/cuda/src/hopper.cuh"
#include "../lacuna_kernels/cuda/src/team.cuh"

#define CHECK(call)                                                                        \
    if (cudaError_t error = (call)) printf("%s\n", cudaGetErrorString(error)), exit(1)

constexpr size_t BYTES = size_t(8) << 30, CACHED = 4 << 20;
constexpr int SENT = 65536, PIECE = 8192, PIECES = 8, ROUNDS = 400, BLOCKS = 132, SENDERS = 256, AHEAD = 4;

template <int READ, int WRITE>
__global__ void mix(const uint4* __restrict__ x, uint4* __restrict__ y, size_t n) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        uint4 v = make_uint4(i, i, i, i);
        for (int r = 0; r < READ; ++r) {
            const uint4 u = x[r * n + i];
            v.x ^= u.x, v.y += u.y, v.z ^= u.z, v.w += u.w;
        }
        if (WRITE == 0 && v.x == 0x12345 && v.y == 7) y[i] = v;  // never, but the compiler does not know
        for (int w = 0; w < WRITE; ++w) y[w * n + i] = v;
    }
}

// What the blocks of `moved` do, SENT bytes each in each of ROUNDS rounds.
struct Traffic {
    int together;  // bytes of what is sent that lie side by side, of neighbouring threads, or of a copy
    bool bulk;     // whether the copy engine sends
    bool send, write, read;
    bool abreast;  // whether all blocks read the same at the same time, or else from different places on
};

// Every block sends as much as it gets, to all others of its cluster in turn.
__device__ void send(const Traffic& traffic, uint32_t memory, uint32_t barriers) {
    if (traffic.bulk && threadIdx.x > 0) return;  // or else one might miss a phase
    const auto cluster = cooperative_groups::this_cluster();
    const int blocks = cluster.num_blocks(), rank = cluster.block_rank();
    const int pieces = SENT / traffic.together, threads = traffic.together / 16;
    const auto other = [&](int part) { return (rank + 1 + part % (blocks - 1)) % blocks; };
    for (int round = 0; round <= ROUNDS; ++round) {
        const uint32_t barrier = barriers + round % AHEAD * 8;
        if (round < ROUNDS) {
            if (threadIdx.x == 0) barrier_expect(barrier, SENT);
            if (!traffic.bulk) {
#pragma unroll 4
                for (int part = 0; part < SENT / (16 * SENDERS); ++part) {
                    const int n = part * SENDERS + threadIdx.x;
                    const uint32_t at = memory + n / threads * 37 % pieces * traffic.together + n % threads * 16;
                    store_there(in_block(at, other(part)), make_uint4(round, part, rank, n),
                                in_block(barrier, other(part)));
                }
            } else {
                for (int part = 0; part < pieces; ++part) {
                    const uint32_t at = memory + part * traffic.together;
                    asm volatile(
                        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                        ::"r"(in_block(at, other(part))), "r"(at), "r"(traffic.together),
                        "r"(in_block(barrier, other(part)))
                        : "memory");
                }
            }
        }
        if (round > 0) barrier_wait(barriers + (round - 1) % AHEAD * 8, (round - 1) / AHEAD % 2);
    }
}

// Every block writes the same SENT bytes of its own again and again.
__device__ void write(char* y, int thread) {
    for (int round = 0; round < ROUNDS; ++round)
#pragma unroll 4
        for (int part = 0; part < SENT / (16 * SENDERS); ++part)
            write_out(y + size_t(blockIdx.x) * SENT + (part * SENDERS + thread) * 16,
                      make_uint4(round, part, thread, 0));
}

// Every block reads the same CACHED bytes.
__device__ void read(const char* x, bool abreast, uint32_t memory, uint32_t barriers) {
    size_t at = abreast ? 0 : blockIdx.x * 37 % 64 * PIECE;
    constexpr int count = ROUNDS * (SENT / PIECE);
    for (int i = 0; i < count + PIECES; ++i) {
        const int s = i % PIECES;
        if (i >= PIECES) barrier_wait(barriers + 8 * s, (i / PIECES - 1) % 2);
        if (i >= count) continue;
        barrier_expect(barriers + 8 * s, PIECE);
        copy_in(memory + s * PIECE, x + at, PIECE, barriers + 8 * s);
        at = (at + PIECE) % CACHED;
    }
}

__global__ void __launch_bounds__(2 * SENDERS + 32, 1) moved(Traffic traffic, const char* x, char* y) {
    const uint32_t sent = dynamic_shared(), got = sent + SENT, barriers = got + PIECES * PIECE;
    if (threadIdx.x == 0) {
        for (int s = 0; s < PIECES + AHEAD; ++s) barrier_init(barriers + 8 * s, 1);
        barriers_are_ready();
    }
    __syncthreads();
    meet_team();
    if (threadIdx.x < SENDERS) {
        if (traffic.send) send(traffic, sent, barriers);
    } else if (threadIdx.x < 2 * SENDERS) {
        if (traffic.write) write(y, threadIdx.x - SENDERS);
    } else if (threadIdx.x == 2 * SENDERS) {
        if (traffic.read) read(x, traffic.abreast, got, barriers + AHEAD * 8);
    }
    __syncwarp();
    meet_team();
}

template <class Launch>
float best_ms(Launch launch) {
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    float best = 1e9;
    for (int repeat = 0; repeat < 5; ++repeat) {
        float ms;
        CHECK(cudaEventRecord(start));
        launch();
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, start, end));
        best = min(best, ms);
    }
    return best;
}

template <int READ, int WRITE>
void mixed(const uint4* x, uint4* y) {
    const size_t n = BYTES / 16 / (READ + WRITE);
    float best = 1e9;
    for (int blocks : {8, 16, 64})
        best = min(best, best_ms([&] { mix<READ, WRITE><<<BLOCKS * blocks, 256>>>(x, y, n); }));
    printf("memory, read %d : write %d   %.2f TB/s\n", READ, WRITE, n * 16e-9 * (READ + WRITE) / best);
}

int main() {
    uint4 *x, *y;
    CHECK(cudaMalloc(&x, BYTES));
    CHECK(cudaMalloc(&y, BYTES));
    CHECK(cudaMemset(x, 7, BYTES));
    mixed<1, 0>(x, y), mixed<4, 1>(x, y), mixed<1, 1>(x, y), mixed<1, 2>(x, y), mixed<1, 4>(x, y), mixed<0, 1>(x, y);

    const auto char_x = reinterpret_cast<const char*>(x);
    const auto char_y = reinterpret_cast<char*>(y);
    const Traffic all[] = {
        {0, false, false, false, true},    {0, false, false, false, true, true},
        {0, false, false, true, false},    {0, false, false, true, true},
        {512, false, true, false, false},  {128, false, true, false, false}, {64, false, true, false, false},
        {16, false, true, false, false},   {512, true, true, false, false},  {1024, true, true, false, false},
        {8192, true, true, false, false},  {128, false, true, true, false},  {128, false, true, false, true},
        {128, false, true, true, true},    {1024, true, true, true, false},  {1024, true, true, false, true},
        {1024, true, true, true, true},
    };
    const int room = 200 * 1024;  // one block a multiprocessor
    CHECK(cudaFuncSetAttribute(moved, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    for (unsigned size : {2u, 4u, 8u})
        for (const Traffic& traffic : all) {
            if (size < 8 && !traffic.send) continue;
            const unsigned blocks = size == 2 ? 132 : 120;  // as many as run at once
            cudaLaunchAttribute cluster{};
            cluster.id = cudaLaunchAttributeClusterDimension, cluster.val.clusterDim = {size, 1, 1};
            cudaLaunchConfig_t config{};
            config.gridDim = blocks, config.blockDim = 2 * SENDERS + 32, config.dynamicSmemBytes = room;
            config.attrs = &cluster, config.numAttrs = 1;
            const float ms = best_ms([&] { CHECK(cudaLaunchKernelEx(&config, moved, traffic, char_x, char_y)); });
            printf("%u multiprocessors, clusters of %u:%s%s", blocks, size,
                   traffic.abreast ? " read abreast" : traffic.read ? " read" : "",
                   traffic.write ? " write" : "");
            if (traffic.send) printf(" send %d bytes together%s", traffic.together, traffic.bulk ? " by copies" : "");
            printf("   %.2f TB/s each\n", double(blocks) * ROUNDS * SENT * 1e-9 / ms);
        }
    CHECK(cudaDeviceSynchronize());
}
