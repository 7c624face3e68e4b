// How teams of blocks share the work of ks_matmul_exchange.cu and ks_matmul_exchange_halves.cu, where things are in a
// block's memory, the thread that brings x and weights, and the order of all others' work. See there for the idea.
#pragma once

#ifndef SPLIT
#define SPLIT 0  // halves of an fp32 value, in planes and among the weights; 0: they have ELEMENTs of 16 bits
#endif

#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "layout.cuh"
#include "ring.cuh"
#include "team.cuh"

constexpr int L = TEAM * OWN_L, ROWS = 64, OWN_ROWS = ROWS / TEAM;
// Whether warpgroups that multiply differ in columns, or else in l.
constexpr bool BY_COLUMNS = OWN_L % GROUPS != 0;
constexpr int MINE = BY_COLUMNS ? OWN_L : OWN_L / GROUPS;          // l of a warpgroup
constexpr int SHARES = BY_COLUMNS ? GROUPS : 1, PASS_COLUMNS = SHARES * COLUMNS;  // j of a pass over the planes
constexpr int SIZE = sizeof(Element), VECTOR = 16 / SIZE;
constexpr int RUN = L % VECTOR == 0 ? VECTOR : !SPLIT ? L : L % 2 ? 1 : 2, RUNS = L / RUN;  // l that a thread writes
constexpr int TAKEN = RUN > VECTOR ? 4 : SPLIT && L % 4 ? L : RUN, TAKES = L / TAKEN;  // and takes, at once
// Which j of a part a thread has: every fourth, so that those who write have whole lines of memory, or neighbours.
constexpr bool STRIDED = RUN == 8;
constexpr int STAGE_K = 16 * STEPS;                                // of a stage of x and of weights
constexpr int RAW_STAGE = STAGE_K * OWN_ROWS * L * SIZE;           // bytes
constexpr int EIGHT = L * SIZE / 2;                                // vectors of 16 bytes in 8 k of a row
constexpr int WHOLE_PIECE = (SPLIT ? EIGHT : STAGE_K / 16 * EIGHT) % 8 == 0 ? 128 : !SPLIT || EIGHT % 4 == 0 ? 64 : 32;
constexpr int PIECE = WHOLE ? WHOLE_PIECE : L * SIZE;              // bytes of a row together in a box
constexpr int CHUNKS = PIECE / 16;                                 // vectors in a piece
constexpr int PHASES = EIGHT % CHUNKS == 0 ? 1 : 2 * EIGHT % CHUNKS == 0 ? 2 : 4;  // eights of k until pieces begin alike
constexpr int PLANE = ROWS * 16, W_PLANE = PASS_COLUMNS * 16;      // 8 k of an l, or of a half of it
constexpr int HALVES = SPLIT ? SPLIT : 1, SCALES = SPLIT ? OWN_L * ROWS * 4 : 0;  // bytes, of x in a step
constexpr int STEP = OWN_L * 2 * HALVES * PLANE + SCALES, X_STAGE = STEPS * STEP;
constexpr int W_STEP = OWN_L * 2 * HALVES * W_PLANE, W_STAGE = STEPS * W_STEP;
constexpr int W_SCALES = SPLIT ? OWN_L * PASS_COLUMNS * 4 : 0;     // bytes, with the last stage of a pass
constexpr int PART = (SPLIT ? 16 : 32) * SHARES, PARTS = PASS_COLUMNS / PART;  // j that are exchanged at once
constexpr int Y_STAGE = L * OWN_ROWS * PART * SIZE;
constexpr int X_FROM_OTHERS = X_STAGE / TEAM * (TEAM - 1), Y_FROM_OTHERS = Y_STAGE / TEAM * (TEAM - 1);
constexpr int UNITS = OWN_ROWS * 2 * STEPS * TAKES;                // 8 k by TAKEN l of a row, in a stage of x
constexpr int WRITERS = 7 - TAKERS / 32;                           // warps
constexpr int CREW = UNITS < TAKERS ? UNITS : TAKERS;              // takers of a stage
constexpr int CREWS = TAKERS / CREW;                               // stages are taken in turn by so many
constexpr int UNITS_EACH = UNITS / CREW;
constexpr int THREADS = 256 + 128 * GROUPS, START_REGISTERS = 65536 / THREADS / 8 * 8;
constexpr int MAX_STAGES = 36, MAX_Y_STAGES = 8, BARRIERS = 2048;
static_assert(OWN_ROWS % 8 == 0 && UNITS % CREW == 0 && CREW % 32 == 0, "whole matrices, whole warps");
static_assert(SHARES <= 2 && PHASES * EIGHT % CHUNKS == 0, "y_offset, piece_of_x");
static_assert(6 * MAX_STAGES + 2 * MAX_Y_STAGES <= BARRIERS / 8, "barriers");

struct Arguments {
    const char *weights, *scales;
    Epilogue out;
    const int* count;
    int rows_max, a, b, c, d;
    int raw_stages, x_stages, w_stages, y_stages, together;
};

// What all threads agree on. `together` neighbouring chunks (L l of one i) are done side by side, before the next ones.
// If their weights stay, or a chunk is all of d, teams are a multiple of that, and a team stays with a chunk for all its
// tiles.
struct Work : Arguments {
    int rows, tiles, chunks, chunks_l, stages, passes, rank, team;
    int step, rest;  // from a team's tile to its next: tiles, no more than there are, unless the device counts fewer
                     // rows, and chunks
    bool resident;  // whether all weights of a chunk fit
    bool keeps;     // whether all planes of a tile fit, for all passes; otherwise x comes once more for each
    uint32_t shared, raw_at, x_at, w_at, scales_at, y_at;

    __device__ __forceinline__ Work(const Arguments& arguments, uint32_t at) : Arguments(arguments), shared(at) {
        rows = rows_in_use(count, rows_max);
        tiles = (rows + ROWS - 1) / ROWS;
        chunks_l = (d + L - 1) / L, chunks = rows > 0 ? a * chunks_l : 0;
        stages = (c + STAGE_K - 1) / STAGE_K;
        passes = (b + PASS_COLUMNS - 1) / PASS_COLUMNS;
        rank = blockIdx.x % TEAM, team = blockIdx.x / TEAM;
        step = gridDim.x / TEAM / together, rest = gridDim.x / TEAM % together;
        resident = stages * passes == w_stages, keeps = passes == 1 || x_stages >= stages;
        raw_at = shared + BARRIERS, x_at = raw_at + raw_stages * RAW_STAGE, w_at = x_at + x_stages * X_STAGE;
        scales_at = w_at + w_stages * W_STAGE, y_at = scales_at + w_stages * W_SCALES;
    }

    __device__ __forceinline__ uint32_t barrier(int kind, int stage) const {
        return shared + 8 * (kind * MAX_STAGES + stage);
    }
    __device__ __forceinline__ uint32_t full_raw(int stage) const { return barrier(0, stage); }
    __device__ __forceinline__ uint32_t empty_raw(int stage) const { return barrier(1, stage); }
    __device__ __forceinline__ uint32_t full_x(int stage) const { return barrier(2, stage); }
    __device__ __forceinline__ uint32_t empty_x(int stage) const { return barrier(3, stage); }
    __device__ __forceinline__ uint32_t full_w(int stage) const { return barrier(4, stage); }
    __device__ __forceinline__ uint32_t empty_w(int stage) const { return barrier(5, stage); }
    __device__ __forceinline__ uint32_t full_y(int stage) const { return barrier(6, stage); }
    __device__ __forceinline__ uint32_t empty_y(int stage) const { return barrier(6, stage + MAX_Y_STAGES); }

    // How often the x of a tile comes.
    __device__ __forceinline__ int times() const { return keeps ? 1 : passes; }

    // Parts of a pass that are there.
    __device__ __forceinline__ int parts(int pass) const {
        return min(PARTS, (b - pass * PASS_COLUMNS + PART - 1) / PART);
    }
};

// A tile of a chunk, the `among`-th of those that are done side by side.
struct Place {
    int among, tile, first = 0;

    __device__ __forceinline__ int chunk() const { return first + among; }
    __device__ __forceinline__ int i(const Work& w) const { return WHOLE ? chunk() : chunk() / w.chunks_l; }
    __device__ __forceinline__ int l(const Work& w) const { return WHOLE ? 0 : chunk() % w.chunks_l * L; }
};

// The tiles of a team, one after another: there is no division, as every thread goes through them.
struct Tile : Place {
    __device__ __forceinline__ explicit Tile(const Work& w) : Place{w.team % w.together, w.team / w.together} {
        if (WHOLE) first = among, among = 0;  // a team stays with its chunk: it takes a register less
        find(w);
    }
    __device__ __forceinline__ void next(const Work& w) {
        tile += w.step;
        if (!WHOLE && (among += w.rest) >= w.together) among -= w.together, ++tile;
        find(w);
    }
    __device__ __forceinline__ bool is_there(const Work& w) const { return first < w.chunks; }
    __device__ __forceinline__ void find(const Work& w) {
#pragma unroll 1
        while (is_there(w) && tile >= w.tiles) tile -= w.tiles, first += w.together;
    }
    // Of teams that stay with their chunk.
    __device__ __forceinline__ bool begins_chunk(const Work& w) const { return tile < w.step; }
    __device__ __forceinline__ bool ends_chunk(const Work& w) const {
        return tile + w.step >= w.tiles && first + w.together < w.chunks;
    }
};

// From this block's places to those of another of the team; 0 for its own.
__device__ __forceinline__ uint32_t away(const Work& w, int owner) {
    return owner == w.rank ? 0 : in_block(w.shared, owner) - w.shared;
}

struct Rings {
    Ring x, w, y;
};

// One pass over the planes of a tile.
struct Pass {
    Place place;
    int pass;
    bool await_x, await_w;  // whether planes and weights may not have come yet
    bool free_x, free_w;    // whether they are not needed again
};

// A thread that multiplies.
struct Consumer {
    int who, lane, warp;

    __device__ __forceinline__ int first_l() const { return MINE < OWN_L ? who * MINE : 0; }  // of the block's

    // Which eight of a part's j a thread has.
    __device__ __forceinline__ int eight() const { return (BY_COLUMNS ? who * 4 : 0) + lane % 4; }

    // Give back a stage of planes, to all blocks that fill it, and of weights, after all warps of the group have read
    // them. One thread says first how much is to come.
    __device__ __forceinline__ void give_back(const Work& w, const Pass& pass, int x_stage, int w_stage) const {
        if (!pass.free_x && !pass.free_w) return;
        barrier_of_warpgroup(1 + who);
        if (warp != 0) return;
        if (pass.free_w && lane == 0) barrier_arrive(w.empty_w(w_stage));
        if (!pass.free_x) return;
        if (who == 0 && lane == 0) barrier_expect(w.full_x(x_stage), X_FROM_OTHERS);
        __syncwarp();
        if (lane < TEAM) arrive_there(in_block(w.empty_x(x_stage), lane));
    }
};

// Wait for a stage of planes; what others stored there the products may read from now on.
__device__ __forceinline__ void await_planes(const Work& w, const Ring& xs) {
    barrier_wait(w.full_x(xs.stage), xs.phase);
    publish_shared();
}

// An address as a descriptor has it, in units of 16 bytes: there is room for all of a block's memory, but not for the
// block's rank, which addresses have further up.
__device__ __forceinline__ uint32_t units_of(uint32_t address) { return address >> 4 & 0x3fff; }
__device__ __forceinline__ uint64_t operand_at(uint32_t units, uint32_t next_k) {
    return operand(0, next_k, 128) | units;
}

__device__ __forceinline__ void start_barriers(const Work& w) {
    for (int s = 0; s < w.raw_stages; ++s) barrier_init(w.full_raw(s), 1), barrier_init(w.empty_raw(s), CREW);
    for (int s = 0; s < w.x_stages; ++s)
        barrier_init(w.full_x(s), 1 + CREW), barrier_init(w.empty_x(s), TEAM * GROUPS);
    for (int s = 0; s < w.w_stages; ++s) barrier_init(w.full_w(s), 1), barrier_init(w.empty_w(s), GROUPS);
    for (int s = 0; s < w.y_stages; ++s)
        barrier_init(w.full_y(s), 1 + GROUPS * OWN_ROWS / 8), barrier_init(w.empty_y(s), TEAM * WRITERS);
    barriers_are_ready();
    for (int s = 0; s < w.x_stages; ++s) barrier_expect(w.full_x(s), X_FROM_OTHERS);
    for (int s = 0; s < w.y_stages; ++s) barrier_expect(w.full_y(s), Y_FROM_OTHERS);
}

// What is to be copied into a ring of stages, stage after stage.
struct Feed {
    const int stages;
    Ring ring;

    // Whether the next stage is empty: it may be asked again and again.
    __device__ __forceinline__ bool is_free(uint32_t empty) const {
        return barrier_is_over(empty + 8 * ring.stage, ring.phase ^ 1);
    }
};

// The x of a team's tiles.
struct FeedX : Feed {
    const Work& w;
    Tile at;
    int again = 0, stage = 0;  // the next

    __device__ __forceinline__ explicit FeedX(const Work& w) : Feed{w.raw_stages}, w(w), at(w) {}

    __device__ __forceinline__ bool is_there() const { return at.is_there(w); }

    // Start a copy if there is one left, and room for it; returns whether.
    __device__ __forceinline__ bool copy(const TensorMap& x) {
        constexpr int STAGE_PIECES = WHOLE ? STAGE_K * L * SIZE / PIECE : STAGE_K;
        if (!is_there() || !is_free(w.empty_raw(0))) return false;
        const uint32_t full = w.full_raw(ring.stage);
        barrier_expect(full, RAW_STAGE);
        copy_in(w.raw_at + ring.stage * RAW_STAGE, x,
                {at.l(w), at.tile * ROWS + w.rank * OWN_ROWS, stage * STAGE_PIECES, at.i(w)}, full);
        ring.next(stages);
        if (++stage == w.stages) {
            stage = 0;
            if (++again == w.times()) again = 0, at.next(w);
        }
        return true;
    }
};

// The weights of a team's tiles: of every tile, unless all weights of a chunk stay.
struct FeedWeights : Feed {
    const Work& w;
    Tile at;
    int stage = 0;  // the next

    __device__ __forceinline__ explicit FeedWeights(const Work& w) : Feed{w.w_stages}, w(w), at(w) {}

    __device__ __forceinline__ bool is_there() const { return at.is_there(w); }

    __device__ __forceinline__ bool copy() {
        if (!is_there() || !is_free(w.empty_w(0))) return false;
        const int all = w.stages * w.passes;
        const uint32_t full = w.full_w(ring.stage);
        const Index from = (Index(at.chunk()) * TEAM + w.rank) * all + stage;
        const bool last = SPLIT && (stage + 1) % w.stages == 0;
        barrier_expect(full, last ? W_STAGE + W_SCALES : W_STAGE);
        copy_in(w.w_at + ring.stage * W_STAGE, w.weights + from * W_STAGE, W_STAGE, full);
        if (last)
            copy_in(w.scales_at + ring.stage * W_SCALES, w.scales + from / w.stages * W_SCALES, W_SCALES, full);
        ring.next(stages);
        if (++stage == all) {
            stage = 0;
            const int chunk = at.chunk();
            do at.next(w);
            while (w.resident && at.is_there(w) && at.chunk() == chunk);
        }
        return true;
    }
};

// One thread copies both, whichever there is room for.
__device__ __forceinline__ void bring(const Work& w, const TensorMap& x) {
    FeedX feed_x(w);
    FeedWeights feed_w(w);
#pragma unroll 1
    while (feed_x.is_there() || feed_w.is_there()) {
        const bool x_came = feed_x.copy(x), weights_came = feed_w.copy();
        if (!x_came && !weights_came) __nanosleep(32);  // not to take turns from others
    }
}

// A unit of a stage of x: 8 k of TAKEN l of a row. Neighbouring threads have neighbouring rows; where values are split,
// those of the other 8 k of a step are NEAR threads away.
constexpr int NEAR = OWN_ROWS < 16 ? 8 : 16;  // rows
struct Unit {
    int row, eight, run;  // of the block's rows, of 8 k, of TAKEN l

    __device__ __forceinline__ explicit Unit(int unit)
        : row(SPLIT ? unit % NEAR + unit / (2 * NEAR) % (OWN_ROWS / NEAR) * NEAR : unit % OWN_ROWS),
          eight(SPLIT ? unit / (2 * OWN_ROWS) % STEPS * 2 + unit / NEAR % 2
                      : unit / OWN_ROWS % STEPS * 2 + unit / (OWN_ROWS * STEPS) % 2),
          run(unit / (2 * OWN_ROWS * STEPS)) {}

    __device__ __forceinline__ bool is(int of_run, int phase) const { return run == of_run && eight % PHASES == phase; }

    // Where in a stage of x the first of PHASES eights is.
    __device__ __forceinline__ uint32_t start() const {
        return swizzled<PIECE>(row * PIECE) + eight / PHASES * (PHASES * EIGHT / CHUNKS * OWN_ROWS * PIECE);
    }
};

// Where piece m of a unit is, from `start` in a stage on: the TAKEN l of one k, or 16 bytes of what lies side by side.
__device__ __forceinline__ uint32_t piece_of_x(uint32_t start, int run, int phase, int m) {
    const int element = phase * 8 * L + (TAKEN == L ? m * VECTOR : m * L + run * TAKEN), v = element / VECTOR;
    return (start ^ v % CHUNKS * 16) + v / CHUNKS * (OWN_ROWS * PIECE) + element % VECTOR * SIZE;
}

// Take stages of x apart. Rings are multiples of CREWS, so that a crew always has the same stages of them: a thread has
// to see every phase of the barriers it waits for.
template <class Taker>
__device__ __forceinline__ void take_apart(const Work& w, const Taker& taker) {
    const int crew = threadIdx.x / CREW;
    if (crew >= CREWS) return;
    int left = -crew;
    for (Tile at(w); at.is_there(w); at.next(w)) left += w.times() * w.stages;
    Ring in, out;
    const auto go_on = [&](int by) {
        for (int s = 0; s < by; ++s) in.next(w.raw_stages), out.next(w.x_stages);
    };
#pragma unroll 1
    for (go_on(crew); left > 0; left -= CREWS, go_on(CREWS)) {
        barrier_wait(w.full_raw(in.stage), in.phase);
        barrier_wait(w.empty_x(out.stage), out.phase ^ 1);
        taker.take(in.stage, out.stage);
        barrier_arrive(w.empty_raw(in.stage));
        publish_shared();
        barrier_arrive(w.full_x(out.stage));  // what is for this block
    }
}

// Go through all passes of all tiles.
template <class Multiply>
__device__ __forceinline__ void take_turns(const Work& w, Rings& rings, Multiply multiply) {
    for (Tile at(w); at.is_there(w); at.next(w)) {
        const Ring start = rings.x;
        const bool new_weights = !w.resident || at.begins_chunk(w), free_w = !w.resident || at.ends_chunk(w);
#pragma unroll 1
        for (int pass = 0; pass < w.passes; ++pass) {
            if (w.keeps) rings.x = start;
            multiply(Pass{at, pass, pass == 0 || !w.keeps, new_weights, pass + 1 == w.passes || !w.keeps, free_w});
        }
    }
}

// Write y part after part.
template <class Writer>
__device__ __forceinline__ void write(const Work& w, Writer writer) {
    Ring ring;
    for (Tile at(w); at.is_there(w); at.next(w)) {
        writer.enter(at);
        for (int pass = 0; pass < w.passes; ++pass) {
            const int parts = w.parts(pass);
            for (int q = 0; q < parts; ++q) {
                barrier_wait(w.full_y(ring.stage), ring.phase);
                if (writer.thread == 0) barrier_expect(w.full_y(ring.stage), Y_FROM_OTHERS);
                writer.write(pass * PASS_COLUMNS + q * PART, ring.stage);
                __syncwarp();
                if (writer.thread % 32 < TEAM) arrive_there(in_block(w.empty_y(ring.stage), writer.thread % 32));
                ring.next(w.y_stages);
            }
        }
    }
}

// What the threads of a block do: take x apart, bring, write and multiply.
template <class TakeApart, class Multiply, class Write>
__device__ __forceinline__ void as_a_team(const Arguments& arguments, const TensorMap& x, TakeApart take_apart,
                                          Multiply multiply, Write write) {
    const uint32_t at = hidden(dynamic_shared());  // or else it would be asked for again and again
    const int warp_in_block = warp_of_block(), role = warp_in_block / 4, warp = warp_in_block % 4;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) start_barriers(Work(arguments, at));
    __syncthreads();
    meet_team();
    static_assert(APART_REGISTERS + BRING_REGISTERS + GROUPS * MULTIPLY_REGISTERS <= THREADS / 128 * START_REGISTERS,
                  "or else they would wait for registers forever");
    if (role == 0) {
        take_registers<APART_REGISTERS, START_REGISTERS>();
        if (threadIdx.x >= TAKERS)
            write(Work(arguments, at), threadIdx.x - TAKERS);
        else
            take_apart(Work(arguments, at), threadIdx.x % CREW);
    } else if (role == 1) {
        take_registers<BRING_REGISTERS, START_REGISTERS>();
        if (warp > 0)
            write(Work(arguments, at), threadIdx.x - 32 - TAKERS);
        else if (lane == 0)
            bring(Work(arguments, at), x);
    } else {
        take_registers<MULTIPLY_REGISTERS, START_REGISTERS>();
        multiply(Work(arguments, at), {role - 2, lane, warp});
    }
    __syncwarp();
    meet_team();  // nobody leaves while others still store or arrive here
}
