// The tiles of ks_matmul_tf32.cu, where things are in a block's memory, and the thread that brings x and values. See
// there for the idea.
#pragma once

#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "layout.cuh"
#include "split_tf32.cuh"
#include "team.cuh"
#include "tile_counters.cuh"

constexpr int TILE_K = GATHER;
constexpr int TILE_N = 64 * WARPGROUPS;
constexpr int STEPS = TILE_K / 8;  // of one instruction each
constexpr int LINE = 128;          // bytes of a swizzled row of a box: 32 elements
constexpr int X_BYTES = TILE_N * TILE_K * 4;
constexpr int PART_BYTES = TILE_B * TILE_K * (HALVES ? 2 : 4);  // big, or small values
constexpr int W_BYTES = PARTS * PART_BYTES;
constexpr int Y_BOXES = LAST ? 2 : (Y_COLUMNS + 31) / 32;  // of a warpgroup
constexpr int Y_BOX_BYTES = (LAST ? Y_COLUMNS : 64) * LINE;
constexpr int Y_BYTES = Y_BOXES * Y_BOX_BYTES;
constexpr int Y_AT = X_STAGES * X_BYTES;
constexpr int W_AT = Y_AT + WARPGROUPS * Y_BUFFERS * Y_BYTES;
constexpr int PLACES_AT = W_AT + W_STAGES * W_BYTES, BARRIERS_AT = PLACES_AT + 16 * X_STAGES;
constexpr int THREADS = 128 * (WARPGROUPS + 1), START_REGISTERS = 65536 / THREADS / 8 * 8;
constexpr int CONSUMER_REGISTERS = WARPGROUPS == 2 ? 232 : WARPGROUPS == 3 ? 152 : 112;
constexpr int PRODUCER_REGISTERS = WARPGROUPS == 4 ? 32 : 40;
constexpr int SUMS = TILE_B / 2;  // of a lane
constexpr int W_PLANE = PARTS * TILE_B * 16;  // values of 4 k, or 8 in fp16: big, then small ones
static_assert(Y_BOX_BYTES % 1024 == 0, "where the copy engine's swizzle begins anew");
static_assert(TILE_B % Y_COLUMNS == 0 && (LAST || Y_COLUMNS % 32 == 0 || Y_COLUMNS == TILE_B), "whole boxes");
static_assert(WARPGROUPS * CONSUMER_REGISTERS + PRODUCER_REGISTERS <= (WARPGROUPS + 1) * START_REGISTERS,
              "or else they would wait for registers forever");

// The barriers of stages that are used in turn: `full` when a copy has arrived, `empty` when all `readers` have read
// it.
template <int STAGES>
struct Ring {
    uint32_t barriers;  // full ones, then empty ones
    int stage = 0;
    uint32_t parity = 0;

    __device__ void init(int readers) const {
        for (int s = 0; s < STAGES; ++s) {
            barrier_init(barriers + 8 * s, 1);
            barrier_init(barriers + 8 * (STAGES + s), readers);
        }
    }
    __device__ __forceinline__ uint32_t full() const { return barriers + 8 * stage; }
    __device__ __forceinline__ uint32_t empty() const { return barriers + 8 * (STAGES + stage); }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full(), parity); }
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), parity ^ 1); }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// A tile of y: rows from strip * TILE_N on, columns j from across * TILE_B on. After the last one, across < 0.
struct Place {
    int across, strip, l, i;
};

// Where the tile is whose first step is in a stage of x.
__device__ __forceinline__ void keep_place(uint32_t shared, int stage, const Place& at) {
    write_16_bytes(shared + PLACES_AT + 16 * stage, make_uint4(at.across, at.strip, at.l, at.i));
}
__device__ __forceinline__ Place kept_place(uint32_t shared, int stage) {
    const uint4 at = read_16_bytes(shared + PLACES_AT + 16 * stage);
    return {int(at.x), int(at.y), int(at.z), int(at.w)};
}

// The tiles of y, neighbours in memory first: batch-size-last strips of the same (i, l), batch-size-first `together` i
// of the same strip, whose values stay in the second-level cache for the next one, and then the rest of the i.
struct Work {
    int tiles_b, strips, d, together, steps;
    unsigned tiles;

    __device__ Work(int rows, const Pattern& p, int together)
        : tiles_b((p.b + TILE_B - 1) / TILE_B), strips((rows + TILE_N - 1) / TILE_N), d(p.d), together(together),
          steps((p.c + TILE_K - 1) / TILE_K), tiles(tiles_b * strips * p.a * p.d) {}

    __device__ Place place(int tile) const {
        Place p;
        p.across = tile % tiles_b, tile /= tiles_b;
        if (LAST)
            p.strip = tile % strips, tile /= strips, p.l = tile % d, p.i = tile / d;
        else
            p.l = 0, p.i = tile % together, tile /= together, p.strip = tile % strips, p.i += tile / strips * together;
        return p;
    }
};

// A block starts with the tile of its number and takes the next ones from a counter, as fast as it is: so all are at
// about the same memory at any time, though some multiprocessors get more of its speed. The counter ends as it began.
__device__ __forceinline__ void produce(const TensorMap& x_map, const float* values, const Work& work,
                                        Ring<X_STAGES> x, Ring<W_STAGES> w, uint32_t shared, unsigned* taken) {
    for (unsigned tile = blockIdx.x, next; tile < work.tiles; tile = next) {
        next = gridDim.x + atomicInc(taken, work.tiles - 1);
        const Place at = work.place(tile);
        const int row = at.strip * TILE_N;
        const Index matrix = Index(at.i) * work.d + at.l;
        const float* from = values + (matrix * work.tiles_b + at.across) * work.steps * (W_BYTES / 4);
        for (int step = 0; step < work.steps; ++step, x.next(), from += W_BYTES / 4) {
            x.wait_empty();
            if (step == 0) keep_place(shared, x.stage, at);
            barrier_expect(x.full(), X_BYTES);
            const uint32_t to = shared + x.stage * X_BYTES;
            if (LAST) {
#pragma unroll
                for (int box = 0; box < TILE_N / 32; ++box)
                    copy_in(to + box * (TILE_K * LINE), x_map, {row + box * 32, at.l, step * TILE_K, at.i}, x.full());
            } else {
                copy_in(to, x_map, {step * TILE_K, at.i, row, 0}, x.full());
            }
            w.wait_empty();
            barrier_expect(w.full(), W_BYTES);
            copy_in(shared + W_AT + w.stage * W_BYTES, from, W_BYTES, w.full());
            w.next();
        }
    }
    x.wait_empty();
    keep_place(shared, x.stage, {-1, 0, 0, 0});
    barrier_arrive(x.full());
}
