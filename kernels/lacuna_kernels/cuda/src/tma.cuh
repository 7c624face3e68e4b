// The tiles of ks_matmul_tma.cu, where things are in a block's memory, and the thread that brings the steps of a tile.
// See there for the idea.
#pragma once

#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "layout.cuh"
#include "team.cuh"
#include "tile_counters.cuh"

constexpr int WARPGROUP = 128, GROUPS = 2, THREADS = (1 + GROUPS) * WARPGROUP;
constexpr int ROWS = GROUPS_ROWS * TILES_ROWS * 64, COLUMNS = GROUPS / GROUPS_ROWS * WIDTH;
constexpr int STEP = 64;  // k of a stage: 128 bytes
constexpr bool ROWS_J = LAST || SPARSE;
constexpr int SPARSE_BYTES = 64 * STEP;  // 64 j of a stage: half of 64 k, in matrices of [8 j][8 k] each
constexpr int LEFT_BYTES = SPARSE ? ROWS / 64 * SPARSE_BYTES : ROWS * STEP * 2;
constexpr int STAGE_BYTES = LEFT_BYTES + COLUMNS * STEP * 2;
constexpr int SQUARE_BYTES = 64 * 64 * 2;  // a panel of y, or 64 n by STEP k of x
constexpr int ACROSS = WIDTH / 64;         // panels of a warpgroup side by side
constexpr int TILE_N = ROWS_J ? COLUMNS : ROWS, TILE_J = ROWS_J ? ROWS : COLUMNS;
constexpr int PANELS_OF_TILE = TILES_ROWS * ACROSS;  // of a warpgroup
constexpr int PANELS_AT = STAGES * STAGE_BYTES, BARRIERS_AT = PANELS_AT + GROUPS * KEPT * BATCH * SQUARE_BYTES;
constexpr int CORNERS_AT = BARRIERS_AT + 8 * (2 * STAGES + GROUPS), LETTERS_AT = CORNERS_AT + 16 * 2 * STAGES;
constexpr int LETTERS = 8, LETTER = 16;  // of a pair: more than the first block can be ahead; bytes
constexpr int BIAS_AT = LETTERS_AT + (PAIR > 1 ? LETTERS * (LETTER + 8) : 0);
constexpr int BIASED = ROWS_J ? TILES_ROWS * 64 : WIDTH;  // j of a warpgroup
static_assert(PANELS_OF_TILE % BATCH == 0, "whole batches");
static_assert(PAIR == 1 || (PAIR == 2 && LAST && STAGES + 2 < LETTERS), "columns are shared");
#ifdef SHARED_BYTES
static_assert(SHARED_BYTES >= BIAS_AT + GROUPS * BIASED * 4, "too little memory");
#endif

struct Shape {
    int rows;  // in use
    int a, b, c, d;
    int pitch, plane;  // elements between rows and between planes of y; LAST: pitch alone, between features

    __device__ Index feature(int l, int i, int j) const { return (Index(i) * b + j) * d + l; }
};

// Where a tile or a panel starts.
struct Corner {
    int n, j, l, i;

    // Of x (at = k) or y (at = j) in its tensor map.
    __device__ Coordinates in_map(int at) const { return LAST ? Coordinates{n, l, at, i} : Coordinates{at, n, i, 0}; }
};

// The tiles of y, of a pair together, neighbours first:
//   LAST   tiles along j, tiles along n, l, i           neighbouring blocks take neighbouring columns of x and y
//   FIRST  tiles along j, `together` planes, tiles along n, the rest of the planes
struct Tiles {
    unsigned size[4];

    __device__ Tiles(const Shape& shape, int together) {
        const int across_n = (shape.rows + TILE_N - 1) / TILE_N;
        size[0] = (shape.b + PAIR * TILE_J - 1) / (PAIR * TILE_J);
        size[1] = LAST ? across_n : together;
        size[2] = LAST ? shape.d : across_n;
        size[3] = LAST ? shape.a : shape.a / together;
    }

    __device__ unsigned number() const { return size[0] * size[1] * size[2] * size[3]; }

    __device__ Corner corner(unsigned tile, int rank) const {
        int at[4];
#pragma unroll
        for (int digit = 0; digit < 3; ++digit) at[digit] = tile % size[digit], tile /= size[digit];
        at[3] = tile;
        const int j = (at[0] * PAIR + rank) * TILE_J;
        if (LAST) return {at[1] * TILE_N, j, at[2], at[3]};
        return {at[2] * TILE_N, j, 0, at[3] * int(size[1]) + at[1]};
    }
};

// The stages, taken in turn; both sides walk through them in step.
struct Ring {
    uint32_t memory;  // of the block
    int stage = 0;
    uint32_t parity = 0;

    __device__ uint32_t left() const { return memory + stage * STAGE_BYTES; }
    __device__ uint32_t right() const { return left() + LEFT_BYTES; }
    __device__ static constexpr uint32_t full_at(int stage) { return BARRIERS_AT + 8 * stage; }
    __device__ static constexpr uint32_t empty_at(int stage) { return BARRIERS_AT + 8 * (STAGES + stage); }
    __device__ uint32_t full() const { return memory + full_at(stage); }
    __device__ uint32_t empty() const { return memory + empty_at(stage); }

    // Where the tile starts whose first step is in the stage; n < 0 after the last one. Every other round has its own.
    __device__ uint32_t corner_at() const { return memory + CORNERS_AT + (parity * STAGES + stage) * 16; }
    __device__ void keep(const Corner& corner) const {
        write_16_bytes(corner_at(), make_uint4(corner.n, corner.j, corner.l, corner.i));
    }
    __device__ Corner corner() const {
        const uint4 kept = read_16_bytes(corner_at());
        return {int(kept.x), int(kept.y), int(kept.z), int(kept.w)};
    }

    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Which tile a pair takes next, as its first block tells both early: so many at most are on their way.
struct Letters {
    uint32_t memory;  // of the block
    int turn = 0;

    __device__ static constexpr uint32_t arrived_at(int letter) { return LETTERS_AT + LETTERS * LETTER + 8 * letter; }
    __device__ uint32_t letter() const { return memory + LETTERS_AT + turn % LETTERS * LETTER; }
    __device__ uint32_t arrived() const { return memory + arrived_at(turn % LETTERS); }

    __device__ __forceinline__ void write(unsigned next) const {
        for (int block = 0; block < PAIR; ++block)
            store_there(in_block(letter(), block), make_uint4(next, 0, 0, 0), in_block(arrived(), block));
    }

    __device__ __forceinline__ unsigned read() {
        barrier_expect(arrived(), LETTER);
        barrier_wait(arrived(), turn / LETTERS % 2);
        const unsigned next = read_16_bytes(letter()).x;
        ++turn;
        return next;
    }
};

// Bring a step of the columns of a tile: all of it, or a share of it to both of a pair.
__device__ __forceinline__ void load_columns(const TensorMap& map, Coordinates at, uint32_t to, uint32_t barrier,
                                             int rank) {
    constexpr int SHARE = COLUMNS / PAIR, BOX = LAST ? 64 : COLUMNS;
#pragma unroll 1  // the thread has few registers
    for (int box = 0; box < SHARE; box += BOX) {
        const int column = rank * SHARE + box;
        Coordinates from = at;
        if (LAST) from.x += column;
        if (PAIR == 1)
            copy_in(to + column * STEP * 2, map, from, barrier);
        else
            copy_in_all(to + column * STEP * 2, map, from, barrier, (1 << PAIR) - 1);
    }
}

// A block, or pair, starts with the tile of its number and takes the next ones from a counter, as fast as it is:
// multiprocessors differ in how much of the memory's speed they get. The counter is back at 0 when all tiles are taken.
__device__ __forceinline__ void load_tiles(const TensorMap& x, const TensorMap& w, const Shape& shape,
                                           int together, int counter, Ring ring) {
    const unsigned number = Tiles(shape, together).number();
    Letters letters{ring.memory};
    const int rank = PAIR > 1 ? blockIdx.x % PAIR : 0;
    const auto take = [&] { return gridDim.x / PAIR + atomicInc(tiles_taken + counter, number - 1); };
    for (unsigned tile = blockIdx.x / PAIR, next = 0; tile < number; tile = next) {
        if (PAIR == 1) next = take();
        if (PAIR > 1 && rank == 0) letters.write(take());
        Shape again = shape;
        if (PAIR > 1) again.rows = hidden(shape.rows), again.b = hidden(shape.b);  // or else sizes take registers
        const Corner at = Tiles(again, together).corner(tile, rank);
        for (int k = 0; k < shape.c; k += STEP) {
            barrier_wait(ring.empty(), ring.parity ^ 1);
            if (k == 0) ring.keep(at);
            barrier_expect(ring.full(), STAGE_BYTES);
            if (SPARSE)
                copy_in(ring.left(), w, {0, 0, k / STEP, at.i * ((shape.b + 63) / 64) + at.j / 64}, ring.full());
            else if (LAST)
                copy_in(ring.left(), w, {k, at.j, at.l, at.i}, ring.full());
            else
                copy_in(ring.left(), x, at.in_map(k), ring.full());
            const Coordinates columns = ROWS_J ? at.in_map(k) : Coordinates{k, at.j, at.l, at.i};
            load_columns(ROWS_J ? x : w, columns, ring.right(), ring.full(), rank);
            ring.advance();
        }
        if (PAIR > 1) next = letters.read();
    }
    barrier_wait(ring.empty(), ring.parity ^ 1);
    ring.keep({-1, 0, 0, 0});
    barrier_arrive(ring.full());
}
