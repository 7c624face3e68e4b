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
constexpr int BARRIERS = 1024, TILE_AT = 960;  // bytes before the stages; where of these the block's tile is
constexpr int OFFSETS = 8, CHUNKS = 3;  // offsets whose rows are copied together; chunks of them in shared memory
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(16 * STAGES + 8 * CHUNKS <= TILE_AT, "room for the barriers");
static_assert(OFFSETS >= 2 * STAGES, "nobody is so far ahead that it overwrites rows that others still read");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t looked_up(int chunk) const { return shared + 16 * STAGES + 8 * chunk; }
    __device__ __forceinline__ Tile& tile() const { return *static_cast<Tile*>(shared_pointer(shared + TILE_AT)); }
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
    int thread, total, base;  // offsets of the tile, and of all before, in whole chunks
    int found = 0, here = 0;  // offsets whose rows are copied, and have come

    __device__ __forceinline__ int piece() const { return thread % PANEL_PIECES; }
    __device__ __forceinline__ int half() const { return thread / PANEL_PIECES % 2; }
    __device__ __forceinline__ int row() const { return thread / (2 * PANEL_PIECES); }

    // Have the rows of the next offsets copied.
    __device__ __forceinline__ void look_up() {
        const int chunk = base + found;
#pragma unroll 1
        for (int stop = min(total, found + OFFSETS); found < stop; ++found) {
            const float* from = reinterpret_cast<const float*>(ahead.rows_of(ahead.next()));  // words
#pragma unroll
            for (int at = thread; at < TILE_M; at += BRINGERS)
                copy_4_bytes(stages.rows(base + found) + at * 4, from + ahead.place + at,
                             from && ahead.place + at < ahead.places);
        }
        arrive_after_copies(stages.looked_up(chunk / OFFSETS % CHUNKS));
    }

    // Wait for the rows of all offsets before `stop`.
    __device__ __forceinline__ void wait_for_rows(int stop) {
        for (; here < stop; here += OFFSETS) {
            const int chunk = (base + here) / OFFSETS;
            barrier_wait(stages.looked_up(chunk % CHUNKS), chunk / CHUNKS & 1);
        }
    }

    // Field by field: of a whole one the address would be taken.
    __device__ __forceinline__ Source source_of(int index) const {
        const bool last = index == total - 1 && walk.ends_in_shortcut();
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
            const int row = same ? place : int(__float_as_uint(read_float(stages.rows(base + index) + at * 4)));
            pieces[i] = place < walk.places && row >= 0 ? row * apart + piece() : -1;
        }
    }

    __device__ __forceinline__ void gather(int index, const int (&pieces)[GATHERS], int panel, int stage) const {
        const uint32_t to = stages.a(stage) + half() * A_PANEL + row() * ROW_BYTES + (piece() ^ row() / 2 % 4) * 16;
        const Source source = source_of(index);
        const uint4* from = reinterpret_cast<const uint4*>(source.rows) + panel * PANEL_PIECES;
        const bool inside = index < total && panel * PANEL_K + piece() * PIECE < source.ci;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const bool there = inside && pieces[i] >= 0;
            copy_16_bytes(to + i * (ROWS_APART * ROW_BYTES), from + max(pieces[i], 0), there);
        }
        arrive_after_copies(stages.full(stage));
    }

    // `weight` is that of the tile's channels, of the first panel of the first offset; the next panel is `apart` on.
    // Past the last panel there are none but zeros, times any weights.
    __device__ __forceinline__ void bring(const char* weight, size_t apart, int steps, Ring& ring) {
        int index = 0, panel = half(), found_of = -1, offset = total ? walk.next() : 0;
        int pieces[GATHERS];
        if (total) look_up();
        if (found < total) look_up();
        wait_for_kernels_before();
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            while (index < total && panel >= panels_of(source_of(index))) {
                panel -= panels_of(source_of(index));
                if (++index < total) offset = walk.next();
            }
            if (index / OFFSETS * OFFSETS + 2 * OFFSETS > found && found < total) look_up();
            if (index != found_of && index < total) find_pieces(pieces, index, offset), found_of = index;
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            if (row() == 0 && piece() == 0) {
                const size_t from = index < total ? (size_t)offset * panels_of(input) + panel : 0;
                const uint32_t full = stages.full(ring.stage);
                barrier_expect(full, B_PANEL);
                copy_in(stages.b(ring.stage) + half() * B_PANEL, weight + from * apart, B_PANEL, full);
            }
            gather(index, pieces, panel, ring.stage);
            panel += 2;
            ring.next(STAGES);
        }
        wait_for_rows(total);
    }
};
