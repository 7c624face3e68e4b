// How the panels of a tile come to shared memory, for sparse_conv_wgmma.cu, which says how large tiles are and how many
// threads bring them.
#pragma once
#include "hopper.cuh"
#include "lane_copies.cuh"
#include "launch_order.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"
#include "team.cuh"

constexpr int MULTIPLIERS = TILE_M * 2, THREADS = MULTIPLIERS + BRINGERS;
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW_BYTES = 2 * PANEL_K;
constexpr int A_PANEL = TILE_M * ROW_BYTES, B_PANEL = TILE_N * ROW_BYTES, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = BRINGERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024, TURN = 960;  // bytes before the stages; where of these a Turn is
constexpr int OFFSETS = 8, CHUNKS = 3;  // offsets whose rows are copied together; chunks of them in shared memory
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(16 * STAGES + 8 * CHUNKS <= TURN, "room for the barriers");
static_assert(OFFSETS >= 2 * STAGES, "nobody is so far ahead that it overwrites rows that others still read");

// What the block makes now, as one thread finds out for all.
struct Turn {
    Tile tile;
    int index, places, offsets;  // of the tile; those in use end here; how many it has, the shortcut among them
};

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t looked_up(int chunk) const { return shared + 16 * STAGES + 8 * chunk; }
    __device__ __forceinline__ Turn& turn() const { return *static_cast<Turn*>(shared_pointer(shared + TURN)); }
    __device__ __forceinline__ uint32_t rows(int index) const {  // of an offset of the tile
        return shared + BARRIERS + STAGES * STAGE + index % (CHUNKS * OFFSETS) * (TILE_M * 4);
    }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + 2 * A_PANEL; }
};

__device__ __forceinline__ int panels_of(const Source& source) { return (source.ci + PANEL_K - 1) / PANEL_K; }

// A thread that gathers: a piece of every ROWS_APART-th row, of every other panel. Neighbours have neighbouring pieces
// of two panels, which mostly lie side by side.
struct Bringer {
    const Stages& stages;
    const Source &input, &shortcut;
    OffsetWalk ahead, walk;  // where rows are copied, and where they are used
    int thread, first, stop;  // offsets of the tile, counted through all tiles, in whole chunks
    int found = first, here = first;  // before which rows of offsets are copied, and have come

    __device__ __forceinline__ int piece() const { return thread % PANEL_PIECES; }
    __device__ __forceinline__ int half() const { return thread / PANEL_PIECES % 2; }
    __device__ __forceinline__ int row() const { return thread / (2 * PANEL_PIECES); }

    // Have the rows of the next offsets copied.
    __device__ __forceinline__ void look_up() {
        const int chunk = found / OFFSETS;
#pragma unroll 1
        for (const int to = min(stop, found + OFFSETS); found < to; ++found) {
            const float* from = reinterpret_cast<const float*>(ahead.rows_of(ahead.next()));  // words
#pragma unroll
            for (int at = thread; at < TILE_M; at += BRINGERS)
                copy_4_bytes(stages.rows(found) + at * 4, from + ahead.place + at,
                             from && ahead.place + at < ahead.places);
        }
        arrive_after_copies(stages.looked_up(chunk % CHUNKS));
    }

    // Wait for the rows of all offsets before one.
    __device__ __forceinline__ void wait_for_rows(int offset) {
#pragma unroll 1
        for (; here < offset; here += OFFSETS)
            barrier_wait(stages.looked_up(here / OFFSETS % CHUNKS), here / OFFSETS / CHUNKS & 1);
    }

    // Field by field: of a whole one the address would be taken.
    __device__ __forceinline__ Source source_of(int index) const {
        const bool last = index == stop - 1 && walk.ends_in_shortcut();
        return {last ? shortcut.rows : input.rows, last ? shortcut.pitch : input.pitch, last ? shortcut.ci : input.ci};
    }

    // Where the thread's pieces of an offset's first panel are, in pieces from the first row: none lies 2^31 on.
    __device__ __forceinline__ void find_pieces(int (&pieces)[GATHERS], int index, int offset) {
        const bool same = !walk.rows_of(offset);
        const int apart = source_of(index).pitch / PIECE;
        wait_for_rows(index + 1);
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int at = row() + i * ROWS_APART, place = walk.place + at;
            const int row = same ? place : int(__float_as_uint(read_float(stages.rows(index) + at * 4)));
            pieces[i] = place < walk.places && row >= 0 ? row * apart + piece() : -1;
        }
    }

    __device__ __forceinline__ void gather(int index, const int (&pieces)[GATHERS], int panel, int stage) const {
        const uint32_t to = stages.a(stage) + half() * A_PANEL + row() * ROW_BYTES + (piece() ^ row() / 2 % 4) * 16;
        const Source source = source_of(index);
        const uint4* from = reinterpret_cast<const uint4*>(source.rows) + panel * PANEL_PIECES;
        const bool inside = index < stop && panel * PANEL_K + piece() * PIECE < source.ci;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const bool there = inside && pieces[i] >= 0;
            copy_16_bytes(to + i * (ROWS_APART * ROW_BYTES), from + max(pieces[i], 0), there);
        }
        arrive_after_copies(stages.full(stage));
    }

    // Past the last panel there are none but zeros, times any weights. `across` tiles lie side by side.
    __device__ __forceinline__ void bring(const char* weight, int across, int steps, Ring& ring) {
        int index = first - 1, panels = 0, panel = half(), offset = 0;
        int pieces[GATHERS];
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const int before = index;
#pragma unroll 1
            while (panel >= panels && index < stop) {
                panel -= panels;
                if (++index == stop) break;
                offset = walk.next();
                panels = panels_of(source_of(index));
            }
#pragma unroll 1
            while (found < min(stop, index / OFFSETS * OFFSETS + 2 * OFFSETS)) look_up();
            if (step == 0) wait_for_kernels_before();
            if (index != before && index < stop) find_pieces(pieces, index, offset);
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            if (row() == 0 && piece() == 0) {
                const int from = index < stop ? offset * panels_of(input) + panel : 0;
                const uint32_t full = stages.full(ring.stage);
                barrier_expect(full, B_PANEL);
                const char* patch = weight + ((size_t)from * across + stages.turn().tile.column / TILE_N) * B_PANEL;
                copy_in(stages.b(ring.stage) + half() * B_PANEL, patch, B_PANEL, full);
            }
            gather(index, pieces, panel, ring.stage);
            panel += 2;
            ring.next(STAGES);
        }
        wait_for_rows(stop);
    }
};
