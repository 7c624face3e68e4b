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
constexpr int GATHERERS = 64, SCOUTS = (BRINGERS - GATHERERS) / 32;  // threads and warps of those who bring
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW_BYTES = 2 * PANEL_K;
constexpr int A_PANEL = TILE_M * ROW_BYTES, B_PANEL = TILE_N * ROW_BYTES, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = GATHERERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int OWN_ROWS = GATHERS + 4;  // words that a thread's rows take, so that threads side by side share no banks
constexpr int SLOTS = 16, SLOT = ROWS_APART * OWN_ROWS * 4;  // offsets whose rows are in shared memory; bytes of one
// How many are looked up together, and how far they may be ahead of the offset that the next step begins with: what the
// last STAGES steps are gathered by, up to two offsets each, may still be read.
constexpr int BATCH = 4, AHEAD = SLOTS - 2 * STAGES;
constexpr int BARRIERS = 1024, TILE_AT = 960;  // bytes before the stages; where of these the block's tile is
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(SCOUTS == 1 || SCOUTS == 2, "one looks up where rows lie, one has weights copied");
static_assert(GATHERS % 4 == 0, "a thread reads four of its rows at a time");
static_assert(TILE_M % GROUP == 0, "tiles are of whole groups");
static_assert(TILE_M % (64 * HALVES) == 0, "a warpgroup multiplies 64 rows of each half");
static_assert(16 * STAGES + 8 * SLOTS + 8 <= TILE_AT, "room for the barriers");
static_assert(AHEAD > BATCH, "a step's two offsets are there, though a batch waits until there is room for all of it");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t looked_up(int index) const { return shared + 16 * STAGES + 8 * (index % SLOTS); }
    __device__ __forceinline__ uint32_t taken() const { return shared + 16 * STAGES + 8 * SLOTS; }  // the block's next tile
    __device__ __forceinline__ Tile& tile() const { return *static_cast<Tile*>(shared_pointer(shared + TILE_AT)); }
    __device__ __forceinline__ uint32_t rows(int index) const {  // of an offset
        return shared + BARRIERS + STAGES * STAGE + index % SLOTS * SLOT;
    }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + 2 * A_PANEL; }
};

__device__ __forceinline__ int panels_of(const Source& source) { return (source.ci + PANEL_K - 1) / PANEL_K; }

// A place in the row of a tile's panels: which panel of which offset, the tile's last being `end` - 1 of all offsets that
// the block goes through.
struct Panel {
    int end, width, last;  // panels of an offset, and of the last
    int index, panel;

    __device__ __forceinline__ bool is_there() const { return index < end; }
    __device__ __forceinline__ void go_on(int panels) {
        panel += panels;
        while (index < end) {
            const int here = index == end - 1 ? last : width;
            if (panel < here) return;
            panel -= here, ++index;
        }
    }
};

// Those who bring a tile's panels. Two warps gather, one the even panels and one the odd ones, a thread a piece of every
// ROWS_APART-th row. Scouts go ahead: they look up where the rows of the next offsets lie, and have weights copied; two
// of them share that.
struct Bringers {
    const Stages& stages;
    const Source &input, &shortcut;
    const WarpOffsetWalk& offsets;
    int first, end;  // of all offsets of the block those of the tile
    int steps;

    __device__ __forceinline__ Panel panel(int at) const {
        const int width = panels_of(input);
        Panel panel = {end, width, offsets.ends_in_shortcut() ? panels_of(shortcut) : width, first, at};
        panel.go_on(0);
        return panel;
    }
    __device__ __forceinline__ bool is_shortcut(int index) const {
        return index == end - 1 && offsets.ends_in_shortcut();
    }

    __device__ __forceinline__ void gather(Ring& ring) const {
        const int thread = hidden(threadIdx.x - MULTIPLIERS);  // else all that follows from it is kept in registers
        const int half = warp_of_block() - MULTIPLIERS / 32;
        const int row = thread % 32 / PANEL_PIECES, piece = thread % PANEL_PIECES;
        const uint32_t own = half * A_PANEL + row * ROW_BYTES + (piece ^ row / 2 % 4) * 16;
        Panel at = panel(half);
        int found = first - 1;
        uint32_t rows[GATHERS] = {};
        wait_for_kernels_before();
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const bool is_last = is_shortcut(at.index);
            const int channel = at.panel * PANEL_K + piece * PIECE;
            const bool there = at.is_there() && channel < (is_last ? shortcut.ci : input.ci);
            const char* from = reinterpret_cast<const char*>((is_last ? shortcut.rows : input.rows) + channel);
            if (at.is_there() && at.index != found) {
                found = at.index;
                barrier_wait(stages.looked_up(found), found / SLOTS & 1);
                const uint32_t looked_up = stages.rows(found) + row * (OWN_ROWS * 4);
#pragma unroll
                for (int i = 0; i < GATHERS; i += 4) {
                    const uint4 four = read_16_bytes(looked_up + i * 4);
                    rows[i] = four.x, rows[i + 1] = four.y, rows[i + 2] = four.z, rows[i + 3] = four.w;
                }
            }
            from = hidden(from);  // else it takes two instructions more to find each row
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            const uint32_t to = stages.a(ring.stage) + own;
#pragma unroll
            for (int i = 0; i < GATHERS; ++i)
                copy_16_bytes(to + i * (ROWS_APART * ROW_BYTES), from + uint64_t(rows[i]) * 16,
                              there && int(rows[i]) >= 0);
            arrive_after_copies(stages.full(ring.stage));
            at.go_on(2);
            ring.next(STAGES);
        }
    }

    // Leave where the rows of the next offsets lie, in pieces from the first row, none of which lies 2^31 on; negative if
    // there is none.
    __device__ __forceinline__ void look_up(WarpOffsetWalk& ahead, int& found) const {
        constexpr int OWN = TILE_M / 32;  // rows of a lane
        const KernelMap& map = offsets.map;
        const int lane = threadIdx.x % 32;
        int rows[BATCH][OWN];
#pragma unroll
        for (int n = 0; n < BATCH; ++n) {
            if (found + n >= end) break;
            const int* from = ahead.rows_of(ahead.next());
#pragma unroll
            for (int i = 0; i < OWN; ++i) {
                const int place = ahead.place + i * 32 + lane;
                rows[n][i] = place >= ahead.places ? -1 : from ? from[place] : place;
            }
        }
#pragma unroll
        for (int n = 0; n < BATCH; ++n) {
            if (found >= end) break;
            const int apart = (is_shortcut(found) ? shortcut.pitch : input.pitch) / PIECE;
            int* slot = static_cast<int*>(shared_pointer(stages.rows(found)));
            int* to = slot + lane % ROWS_APART * OWN_ROWS + lane / ROWS_APART;
#pragma unroll
            for (int i = 0; i < OWN; ++i) to[i * (32 / ROWS_APART)] = rows[n][i] < 0 ? -1 : rows[n][i] * apart;
            barrier_arrive(stages.looked_up(found++));
        }
    }

    // `weight` is that of the tile's channels, of the first panel of the first offset; the next panel is `apart` on. Past
    // the last panel there are none but zeros, times any weights.
    __device__ __forceinline__ void scout(const char* weight, size_t apart, Ring& ring) const {
        const int warp = warp_of_block() - (MULTIPLIERS + GATHERERS) / 32;
        const bool looks_up = SCOUTS == 1 || warp == 0, copies = SCOUTS == 1 || warp == 1;
        WarpOffsetWalk ahead = offsets, walk = offsets;
        Panel at = panel(0);
        int found = first, offset = 0, known = first - 1;  // looked up are all before; the offset of the last index
        const auto next_weight = [&] {
            if (!at.is_there()) return weight;
            if (at.index != known) offset = walk.next(), known = at.index;
            const char* next = weight + (size_t)(offset * at.width + at.panel) * apart;
            at.go_on(1);
            return next;
        };
        if (looks_up)
            while (found < end && found + BATCH <= first + AHEAD) look_up(ahead, found);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const char* of_panels[2];
            if (copies)
                of_panels[0] = next_weight(), of_panels[1] = next_weight();
            else
                at.go_on(2);
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            // So that no stage is filled again before this warp, too, has seen it empty.
            if (!copies && threadIdx.x % 32 == 0) barrier_arrive(stages.full(ring.stage));
            if (copies && threadIdx.x % 32 == 0) {
                barrier_expect(stages.full(ring.stage), 2 * B_PANEL);
#pragma unroll
                for (int half = 0; half < 2; ++half)
                    copy_in(stages.b(ring.stage) + half * B_PANEL, of_panels[half], B_PANEL, stages.full(ring.stage));
            }
            if (looks_up)
                while (found < end && found + BATCH <= at.index + AHEAD) look_up(ahead, found);
            ring.next(STAGES);
        }
        wait_for_kernels_before();
    }
};
