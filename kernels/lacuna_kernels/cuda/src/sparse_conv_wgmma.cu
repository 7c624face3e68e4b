// Sparse convolution in fp16 or bf16 on Hopper's tensor cores: an implicit GEMM, output-stationary; see sparse_conv.cuh.
// A block makes tiles of TILE_M rows x TILE_N channels of y from panels, 32 channels of what one offset leads to: those
// of a tile's first offset, then those of its next, two at a time, whichever they are of. Of the threads
//   multiply  each of TILE_M / 64 warpgroups has 64 rows of the tile
//   bring     BRINGERS threads more gather panels (zeros where there is no row) in 16-byte copies, and two of them have
//             the patches of the offsets' weights copied beside them, STAGES pairs of panels ahead: those of the next
//             tile, too, while this one's sums are written
// ci, and x's pitch and address, are multiples of 8 elements. weight, packed: [volume, panels, tiles of TILE_N channels,
// TILE_N, 32], rows of 32 swizzled by 64 bytes, zeros past ci and co.
#include "hopper.cuh"
#include "lane_copies.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 128
#define BLOCKS 1  // of a multiprocessor
#endif

constexpr int MULTIPLIERS = TILE_M * 2, THREADS = MULTIPLIERS + BRINGERS;
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW = 2 * PANEL_K;  // bytes
constexpr int A_PANEL = TILE_M * ROW, B_PANEL = TILE_N * ROW, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = BRINGERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024;  // bytes before the stages
constexpr int AT_ONCE = 16;  // channels that are finished
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(16 * STAGES <= BARRIERS && TILE_N % AT_ONCE == 0, "room for the barriers, whole parts");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + 2 * A_PANEL; }
};

struct Tile {
    int place, stop, column;  // the first place of `order` and the one past the last, and the first channel of y
};

// The tiles of a block: those with the most offsets come first, and every other turn blocks take them the other way
// round, so that all have about as much to do.
struct Tiles {
    int rows, across, all;

    __device__ __forceinline__ Tiles(int rows, int across)
        : rows(rows), across(across), all((rows + TILE_M - 1) / TILE_M * across) {}

    __device__ __forceinline__ int index(int turn) const {
        return turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    }
    __device__ __forceinline__ bool have(int turn) const { return index(turn) < all; }
    __device__ __forceinline__ Tile at(int turn) const {
        const int tile = index(turn), place = place_of_tile(tile / across, TILE_M, rows);
        return {place, min(rows, place + TILE_M), tile % across * TILE_N};
    }
};

struct Input {
    const Element* x;
    int pitch, ci, panels;  // of an offset
};

// What a thread that gathers knows of a tile: the rows of its panel's offset, and those of the next, which are asked
// for early, so that nobody waits for them.
struct Gathered {
    OffsetWalk walk;
    int left;  // offsets to come
    int first_place;
    int offset = 0, next_offset = 0;
    int rows[GATHERS], upcoming[GATHERS];

    __device__ __forceinline__ void look_up() {
        const bool more = left > 0;
        if (more) --left, next_offset = walk.next();
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int place = first_place + i * ROWS_APART;
            upcoming[i] = more && place < walk.places ? input_row(walk.map, next_offset, place) : -1;
        }
    }

    __device__ __forceinline__ void enter() {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) rows[i] = upcoming[i];
        offset = next_offset;
        look_up();
    }
};

// A thread that gathers: a piece of every ROWS_APART-th row, of every other panel. Neighbours have neighbouring pieces
// of two panels, which mostly lie side by side.
struct Bringer {
    const Stages& stages;
    const Input& input;
    int thread;
    Ring ring;

    __device__ __forceinline__ int piece() const { return thread % PANEL_PIECES; }
    __device__ __forceinline__ int half() const { return thread / PANEL_PIECES % 2; }
    __device__ __forceinline__ int row() const { return thread / (2 * PANEL_PIECES); }

    __device__ __forceinline__ void gather(const int (&rows)[GATHERS], int panel) const {
        const int channel = panel * PANEL_K + piece() * PIECE;
        const uint32_t to = stages.a(ring.stage) + half() * A_PANEL + row() * ROW + (piece() ^ row() / 2 % 4) * 16;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const bool there = rows[i] >= 0 && channel < input.ci;
            copy_16_bytes(to + i * (ROWS_APART * ROW),
                          there ? input.x + (size_t)rows[i] * input.pitch + channel : input.x, there);
        }
        arrive_after_copies(stages.full(ring.stage));
    }

    // `weight` is that of the tile's channels, of the first panel of the first offset; the next panel is `apart` on.
    // Past the last panel there are none but zeros, times the last weights again.
    __device__ __forceinline__ void bring(const OffsetWalk& walk, int offsets, int steps, const char* weight,
                                          size_t apart) {
        Gathered gathered{walk, offsets, walk.place + row()};
        gathered.look_up();
        gathered.enter();
        int panel = half();
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            while (panel >= input.panels) panel -= input.panels, gathered.enter();
            const uint32_t full = stages.full(ring.stage);
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            if (row() == 0 && piece() == 0) {
                barrier_expect(full, B_PANEL);
                copy_in(stages.b(ring.stage) + half() * B_PANEL,
                        weight + ((size_t)gathered.offset * input.panels + panel) * apart, B_PANEL, full);
            }
            gather(gathered.rows, panel);
            panel += 2;
            ring.next(STAGES);
        }
    }
};

// `a` and `b` are the first of two panels.
__device__ __forceinline__ void multiply(float (&sums)[TILE_N / 2], uint32_t a, uint32_t b) {
    products_begin();
#pragma unroll
    for (int k = 0; k < 2 * PANEL_K / 16; ++k)
        multiply_add<TILE_N, 0>(sums, operand_of_32(a + k / 2 * A_PANEL + k % 2 * 32),
                                operand_of_32(b + k / 2 * B_PANEL + k % 2 * 32), 1, Element());
    products_commit();
}

// A thread that multiplies the tiles of a block, one after another. Of every 8 channels it has four sums: two of a row,
// and two of the row 8 further on.
struct Multiplier {
    const Stages& stages;
    const Epilogue& epilogue;
    int warp, lane;
    Ring ring;

    // Finish and write AT_ONCE channels at a time, the other sums moving up, as registers cannot be indexed in a loop and
    // code for all would be long.
    __device__ __forceinline__ void finish(float (&sums)[TILE_N / 2], const Tile& tile) const {
        const int first = tile.place + warp * 16 + lane / 4;
        const bool there[2] = {first < tile.stop, first + 8 < tile.stop};
        const int rows[2] = {there[0] ? epilogue.row_of(first) : 0, there[1] ? epilogue.row_of(first + 8) : 0};
        int column = tile.column + lane % 4 * 2;
#pragma unroll 1
        for (int done = 0; done < TILE_N; done += AT_ONCE, column += AT_ONCE) {
#pragma unroll
            for (int n = 0; n < AT_ONCE / 2; n += 2)
                if (there[n / 2 % 2]) epilogue.write_pair(sums[n], sums[n + 1], rows[n / 2 % 2], column + n / 4 * 8);
#pragma unroll
            for (int n = 0; n + AT_ONCE / 2 < TILE_N / 2; ++n) sums[n] = sums[n + AT_ONCE / 2];
        }
    }

    __device__ __forceinline__ void make(const Tile& tile, int steps) {
        float sums[TILE_N / 2] = {};  // sums that the first products overwrite would be spilled
        int before = 0;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            barrier_wait(stages.full(ring.stage), ring.phase);
            publish_shared();  // what copies of 16 bytes brought
            multiply(sums, stages.a(ring.stage) + warp / 4 * (64 * ROW), stages.b(ring.stage));
            products_wait<1>();
            if (step) barrier_arrive(stages.empty(before));
            before = ring.stage;
            ring.next(STAGES);
        }
        products_wait<0>();
        if (steps) barrier_arrive(stages.empty(before));
#pragma unroll
        for (int n = 0; n < TILE_N / 2; ++n) is_changed(sums[n]);
        finish(sums, tile);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
sparse_conv_wgmma(const Element* __restrict__ x, int x_pitch, int ci, const char* __restrict__ weight,
                  int weight_pitch, const int* __restrict__ map_rows, const unsigned* __restrict__ present, int volume,
                  int words, int capacity, const int* __restrict__ order, const int* __restrict__ count,
                  const float* __restrict__ bias, const Element* residual, int residual_pitch, Element* y, int y_pitch,
                  int co, int activation, float negative_slope) {
    const Stages stages{dynamic_shared()};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s)
            barrier_init(stages.full(s), BRINGERS + 2), barrier_init(stages.empty(s), MULTIPLIERS);
        barriers_are_ready();
    }
    __syncthreads();
    const KernelMap map = {map_rows, present, volume, words, capacity};
    const int panels = (ci + PANEL_K - 1) / PANEL_K;
    const Tiles tiles(min(*count, capacity), weight_pitch / TILE_N);
    const auto steps_of = [&](int offsets) { return (offsets * panels + 1) / 2; };
    if (threadIdx.x >= MULTIPLIERS) {
        const Input input{x, x_pitch, ci, panels};
        Bringer bringer{stages, input, int(threadIdx.x) - MULTIPLIERS};
        for (int turn = 0; tiles.have(turn); ++turn) {
            const Tile tile = tiles.at(turn);
            const OffsetWalk walk{map, tile.place, tile.stop};
            const int offsets = walk.total();
            bringer.bring(walk, offsets, steps_of(offsets), weight + (size_t)(tile.column / TILE_N) * B_PANEL,
                          (size_t)tiles.across * B_PANEL);
        }
    } else {
        const Epilogue epilogue = {order, bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
        Multiplier multiplier{stages, epilogue, warp_of_block(), int(threadIdx.x) % 32};
        for (int turn = 0; tiles.have(turn); ++turn) {
            const Tile tile = tiles.at(turn);
            multiplier.make(tile, steps_of(OffsetWalk{map, tile.place, tile.stop}.total()));
        }
    }
}
