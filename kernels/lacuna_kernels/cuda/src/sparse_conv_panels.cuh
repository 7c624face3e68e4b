// How the panels of a tile come to shared memory, for sparse_conv_wgmma.cu, which says how large tiles are and how many
// threads bring them.
#pragma once
#include "hopper.cuh"
#include "lane_copies.cuh"
#include "launch_order.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"
#include "team.cuh"

constexpr int MULTIPLIERS = TILE_M * 2 / HALVES, THREADS = MULTIPLIERS + BRINGERS;
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW_BYTES = 2 * PANEL_K;
constexpr int A_PANEL = TILE_M * ROW_BYTES, B_PANEL = TILE_N * ROW_BYTES, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = BRINGERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024, TILE_AT = 960;  // bytes before the stages; where of these the block's tile is
constexpr int OFFSETS = 8, CHUNKS = 3;  // offsets whose rows are copied together; chunks of them in shared memory
// A tile's first chunk has FIRST, after EMPTY places: with few, tiles of parts, which are short, begin sooner. Layers of
// few channels would soon wait for the next chunk.
constexpr int FIRST = SPLIT ? 2 : OFFSETS, EMPTY = OFFSETS - FIRST;
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(BRINGERS % 64 == 0, "each of the two panels has whole warps");
static_assert(GATHERS % 4 == 0, "a thread reads four of its rows at a time");
static_assert(TILE_M % GROUP == 0, "tiles are of whole groups");
static_assert(TILE_M % (64 * HALVES) == 0, "a warpgroup multiplies 64 rows of each half");
static_assert(16 * STAGES + 8 * CHUNKS + 8 <= TILE_AT, "room for the barriers");
static_assert(OFFSETS >= 2 * STAGES, "nobody is so far ahead that it overwrites rows that others still read");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t looked_up(int chunk) const { return shared + 16 * STAGES + 8 * chunk; }
    __device__ __forceinline__ uint32_t taken() const { return looked_up(CHUNKS); }  // the block's next tile
    __device__ __forceinline__ Tile& tile() const { return *static_cast<Tile*>(shared_pointer(shared + TILE_AT)); }
    __device__ __forceinline__ uint32_t rows(int index) const {  // of an offset, by its place in the chunks
        return shared + BARRIERS + STAGES * STAGE + index % (CHUNKS * OFFSETS) * (TILE_M * 4);
    }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + 2 * A_PANEL; }
};

__device__ __forceinline__ int panels_of(const Source& source) { return (source.ci + PANEL_K - 1) / PANEL_K; }

// A thread that gathers: a piece of every ROWS_APART-th row, of every other panel; half the warps have the even ones, so
// that all but a thread's rows is the same for its warp, to the compiler, too.
struct Bringer {
    const Stages& stages;
    const Source &input, &shortcut;
    WarpOffsetWalk ahead, walk;  // where rows are copied, and where they are used
    int thread;
    int first, end;                   // places of the tile's offsets in the chunks, which go on from tile to tile
    int found = first, here = first;  // rows are copied, and have come, of all before

    static __device__ __forceinline__ int half() { return (warp_of_block() - MULTIPLIERS / 32) / (BRINGERS / 64); }
    __device__ __forceinline__ int piece() const { return thread % PANEL_PIECES; }
    __device__ __forceinline__ int row() const { return thread % (BRINGERS / 2) / PANEL_PIECES; }

    // Whether each place leads to itself.
    __device__ __forceinline__ bool is_same(int offset) const {
        return offset == walk.map.volume ? !walk.map.order : !walk.map.map;
    }

    static __device__ __forceinline__ int next_chunk(int index) { return index / OFFSETS * OFFSETS + OFFSETS; }

    // Have the rows of the next offsets copied, those of a thread side by side.
    __device__ __forceinline__ void look_up() {
        const KernelMap& map = ahead.map;
        const int chunk = found / OFFSETS % CHUNKS, stop = min(end, next_chunk(found));
        const int* mapped = map.map + ahead.place + thread;
        const int* itself = map.order + (size_t)ahead.part * map.capacity + ahead.place + thread;
        uint32_t to = stages.rows(found) + (thread % ROWS_APART * GATHERS + thread / ROWS_APART) * 4;
#pragma unroll 1
        for (; found < stop; ++found) {
            const int offset = ahead.next();
            const bool last = offset == map.volume;
            const int* from = last ? itself : mapped + uint64_t(uint32_t(offset)) * uint32_t(map.capacity);
            const bool some = last ? map.order != nullptr : map.map != nullptr;
#pragma unroll
            for (int i = 0; i < (TILE_M + BRINGERS - 1) / BRINGERS; ++i) {
                const int at = thread + i * BRINGERS;
                if (at < TILE_M || TILE_M % BRINGERS == 0)
                    copy_4_bytes(to + i * (BRINGERS / ROWS_APART * 4), reinterpret_cast<const float*>(from + i * BRINGERS),
                                 some && ahead.place + at < ahead.places);
            }
            to += TILE_M * 4;
        }
        arrive_after_copies(stages.looked_up(chunk));
    }

    // Wait for the rows of all offsets before `stop`.
    __device__ __forceinline__ void wait_for_rows(int stop) {
        for (; here < stop; here = next_chunk(here)) {
            const int chunk = here / OFFSETS;
            barrier_wait(stages.looked_up(chunk % CHUNKS), chunk / CHUNKS & 1);
        }
    }

    // Field by field: of a whole one the address would be taken.
    __device__ __forceinline__ Source source_of(int index) const {
        const bool last = index == end - 1 && walk.ends_in_shortcut();
        return {last ? shortcut.rows : input.rows, last ? shortcut.pitch : input.pitch, last ? shortcut.ci : input.ci};
    }

    // The thread's rows of an offset, from the map itself.
    __device__ __forceinline__ void read_rows(uint32_t (&rows)[GATHERS], int offset) const {
        const int* from = walk.rows_of(offset);
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int place = walk.place + row() + i * ROWS_APART;
            rows[i] = from && place < walk.places ? from[place] : place;
        }
    }

    // The same, once they have been copied.
    __device__ __forceinline__ void read_copied_rows(uint32_t (&rows)[GATHERS], int index, int offset) {
        const bool same = is_same(offset);
        const uint32_t from = stages.rows(index) + row() * (GATHERS * 4);
        wait_for_rows(index + 1);
#pragma unroll
        for (int i = 0; i < GATHERS; i += 4) {
            const int place = walk.place + row() + i * ROWS_APART;
            uint4 four = make_uint4(place, place + ROWS_APART, place + 2 * ROWS_APART, place + 3 * ROWS_APART);
            if (!same) four = read_16_bytes(from + i * 4);
            rows[i] = four.x, rows[i + 1] = four.y, rows[i + 2] = four.z, rows[i + 3] = four.w;
        }
    }

    // Rows become where they begin, in pieces from the first row: none lies 2^31 on. In what is returned, bit
    // GATHERS - 1 - i tells that the i-th is not there.
    __device__ __forceinline__ unsigned to_pieces(uint32_t (&rows)[GATHERS], int index) const {
        const uint32_t apart = source_of(index).pitch / PIECE;
        unsigned absent = 0;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            absent = absent << 1 | rows[i] >> 31;
            rows[i] = max(int(rows[i]), 0) * apart;
        }
        return absent;
    }

    // In the same bits, which of the thread's places are past the last.
    __device__ __forceinline__ unsigned past() const {
        unsigned past = 0;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) past = past << 1 | (walk.place + row() + i * ROWS_APART >= walk.places);
        return past;
    }

    // `weight` is that of the tile's channels, of the first panel of the first offset; the next panel is `apart` on.
    // Past the last panel there are none but zeros, times any weights.
    __device__ __forceinline__ void bring(const char* weight, size_t apart, int steps, Ring& ring) {
        const int half = this->half(), width = panels_of(input);
        const uint32_t own = half * A_PANEL + row() * ROW_BYTES + (piece() ^ row() / 2 % 4) * 16;
        const unsigned past = this->past();
        int index = first, panel = half, found_of = -1, offset = first < end ? walk.next() : 0;
        int ci = source_of(first).ci;  // of the offset
        uint32_t pieces[GATHERS] = {};
        unsigned absent = 0;
        const bool from_map = SPLIT && first < end && panel * PANEL_K < ci;
        if (from_map) read_rows(pieces, offset);  // under way while others are looked up
        if (found < end) look_up();
        if (!SPLIT && found < end) look_up();
        if (from_map) absent = to_pieces(pieces, index) | past, found_of = index;
        wait_for_kernels_before();
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            while (index < end && panel * PANEL_K >= ci) {
                panel -= (ci + PANEL_K - 1) / PANEL_K;
                if (++index >= end) break;
                offset = walk.next(), ci = source_of(index).ci;
            }
            if (step && found < min(end, next_chunk(index) + OFFSETS)) look_up();
            if (index != found_of && index < end) {
                read_copied_rows(pieces, index, offset);
                absent = to_pieces(pieces, index) | past, found_of = index;
            }
            const uint32_t full = stages.full(ring.stage);
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            if (thread % (BRINGERS / 2) == 0) {
                const size_t from = index < end ? (size_t)offset * width + panel : 0;
                barrier_expect(full, B_PANEL);
                copy_in(stages.b(ring.stage) + half * B_PANEL, weight + from * apart, B_PANEL, full);
            }
            const unsigned none = index < end && panel * PANEL_K + piece() * PIECE < ci ? absent : ~0u;
            const uint32_t to = stages.a(ring.stage) + own;
            const Element* rows = index < end ? source_of(index).rows : input.rows;
            const char* from = reinterpret_cast<const char*>(rows) + panel * ROW_BYTES + piece() * 16;
            from = hidden(from);  // else what is the same for the warp is added again for each piece
#pragma unroll
            for (int i = 0; i < GATHERS; ++i)  // hidden, else each bit is shifted to where it is 16
                copy_16_bytes(to + i * (ROWS_APART * ROW_BYTES), from + uint64_t(pieces[i]) * 16,
                              !hidden(none & 1u << (GATHERS - 1 - i)));
            arrive_after_copies(full);
            panel += 2;
            ring.next(STAGES);
        }
        wait_for_rows(end);
    }
};
