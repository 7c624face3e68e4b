// How teams of blocks share the work of ks_matmul_exchange.cu and ks_matmul_exchange_halves.cu, and where things are in
// a block's memory. See there for the idea.
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
// l that a thread writes at once, and how often; and takes.
constexpr int RUN = L % VECTOR == 0 ? VECTOR : L, RUNS = L / RUN, TAKES = L / TAKEN;
// Which j of a part a thread has: every fourth, so that those who write have whole lines of memory, or neighbours.
constexpr bool STRIDED = RUN == VECTOR;
constexpr int STAGE_K = 16 * STEPS;                                // of a stage of x and of weights
constexpr int RAW_STAGE = STAGE_K * OWN_ROWS * L * SIZE;           // bytes
constexpr int EIGHT = L * SIZE / 2;                                // vectors of 16 bytes in 8 k of a row
constexpr int CHUNKS = PIECE / 16;                                 // vectors in a piece
constexpr int PHASES = EIGHT % CHUNKS == 0 ? 1 : 2 * EIGHT % CHUNKS == 0 ? 2 : 4;  // eights until pieces begin alike
constexpr int PLANE = ROWS * 16, W_PLANE = PASS_COLUMNS * 16;      // 8 k of an l, or of a half of it
constexpr int HALVES = SPLIT ? SPLIT : 1, SCALES = SPLIT ? OWN_L * ROWS * 4 : 0;  // bytes, of x in a stage
constexpr int STEP = OWN_L * 2 * HALVES * PLANE, X_STAGE = STEPS * STEP + SCALES;
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
static_assert(L % TAKEN == 0 && (WHOLE || PIECE == L * SIZE), "pieces and units of whole l");
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

    // Give back a stage of weights. `read` is words that this thread itself has read.
    __device__ __forceinline__ void give_back_weights(const Work& w, const Pass& pass, int stage,
                                                      uint32_t read = 0) const {
        if (pass.free_w) barrier_arrive(w.empty_w(stage) + nothing_after(read));
    }

    // Give back a stage of planes to all blocks that fill it: each thread to its own block, one for all of the group to
    // the others. One says first how much is to come.
    __device__ __forceinline__ void give_back_x(const Work& w, const Pass& pass, int stage, uint32_t read = 0) const {
        if (!pass.free_x) return;
        if (who == 0 && warp == 0 && lane == 0) barrier_expect(w.full_x(stage), X_FROM_OTHERS);
        barrier_of_warpgroup(1 + who + nothing_after(read));
        barrier_arrive(w.empty_x(stage));
        if (warp == 0 && lane < TEAM && lane != w.rank) arrive_there(in_block(w.empty_x(stage), lane));
    }
};

__device__ __forceinline__ void start_barriers(const Work& w) {
    for (int s = 0; s < w.raw_stages; ++s) barrier_init(w.full_raw(s), 1), barrier_init(w.empty_raw(s), CREW);
    for (int s = 0; s < w.x_stages; ++s)
        barrier_init(w.full_x(s), 1 + CREW), barrier_init(w.empty_x(s), (TEAM + 127) * GROUPS);
    for (int s = 0; s < w.w_stages; ++s) barrier_init(w.full_w(s), 1), barrier_init(w.empty_w(s), 128 * GROUPS);
    for (int s = 0; s < w.y_stages; ++s)
        barrier_init(w.full_y(s), 1 + GROUPS * OWN_ROWS / 8 * 32), barrier_init(w.empty_y(s), (TEAM + 31) * WRITERS);
    barriers_are_ready();
    for (int s = 0; s < w.x_stages; ++s) barrier_expect(w.full_x(s), X_FROM_OTHERS);
    for (int s = 0; s < w.y_stages; ++s) barrier_expect(w.full_y(s), Y_FROM_OTHERS);
}
