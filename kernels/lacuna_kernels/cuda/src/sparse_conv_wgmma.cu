// Sparse convolution in fp16 or bf16 on Hopper's tensor cores: an implicit GEMM, output-stationary (sparse_conv.cuh).
// A block makes TILE_M rows x TILE_N channels of y from panels, 32 channels of what one offset leads to: those of the
// tile's first offset, then those of its next, two at a time, whichever they are of. Of the threads
//   multiply  each of TILE_M / 64 warpgroups has 64 rows of the tile
//   bring     BRINGERS threads more copy what rows the next offsets lead to, and gather panels (zeros where there is no
//             row) in 16-byte copies; two of them have the patches of the offsets' weights copied beside them, STAGES
//             pairs of panels ahead
// TEAM blocks, a cluster, share the offsets of a tile: each has one part of all that there are, whichever the tile has,
// so that a row's bits do not depend on its tile. Then each adds up what the parts come to, in their order, for its
// share of the channels.
// A launch may begin before the kernel before it has ended: x, residual and y are touched only after that. `settled`
// tells whether all else was there before that kernel began.
// ci, and x's pitch and address, are multiples of 8 elements, and those of the shortcut. weight, packed: [panels of all
// offsets and then of the shortcut, tiles of TILE_N channels, TILE_N, 32], rows of 32 swizzled by 64 bytes, zeros past
// ci and co.
#include "hopper.cuh"
#include "lane_copies.cuh"
#include "launch_order.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"
#include "team.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 128
#define BLOCKS 1  // of a multiprocessor
#define TEAM 1
#endif

constexpr int MULTIPLIERS = TILE_M * 2, THREADS = MULTIPLIERS + BRINGERS;
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW_BYTES = 2 * PANEL_K;
constexpr int A_PANEL = TILE_M * ROW_BYTES, B_PANEL = TILE_N * ROW_BYTES, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = BRINGERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024;          // bytes before the stages
constexpr int OFFSETS = 8, CHUNKS = 3;  // offsets whose rows are copied together; chunks of them in shared memory
constexpr int SHARE_N = TILE_N / TEAM, GROUPS = SHARE_N / 8;  // channels that a block of a team writes; eights of them
constexpr int SUMS = TEAM == 1 ? 0 : TILE_M * TILE_N * 4;     // bytes that a block is sent, where the stages were
constexpr int EVEN = 65536 / (THREADS * BLOCKS) / 8 * 8;  // registers of a thread, if all have equally many
constexpr int ENOUGH = 64, SPARED = EVEN > ENOUGH && BRINGERS % 128 == 0;
constexpr int BRING = SPARED ? ENOUGH : EVEN, MULTIPLY = EVEN + (EVEN - BRING) * BRINGERS / MULTIPLIERS / 8 * 8;
using Share = WarpRows<SHARE_N>;
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(16 * STAGES + 8 + 8 * CHUNKS <= BARRIERS, "room for the barriers");
static_assert(OFFSETS >= 2 * STAGES, "nobody is so far ahead that it overwrites rows that others still read");
static_assert(SHARE_N % 16 == 0, "a warp writes whole rounds of pieces");
static_assert(SUMS + TILE_M / 16 * Share::ELEMENTS * 2 <= STAGES * STAGE, "rows lie where the stages were");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t shared_out() const { return shared + 16 * STAGES; }  // by a team
    __device__ __forceinline__ uint32_t looked_up(int chunk) const { return shared + 16 * STAGES + 8 + 8 * chunk; }
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

// `a` and `b` are the first of two panels.
__device__ __forceinline__ void multiply_step(float (&sums)[TILE_N / 2], uint32_t a, uint32_t b) {
    products_begin();
#pragma unroll
    for (int k = 0; k < 2 * PANEL_K / 16; ++k)
        multiply_add<TILE_N, 0>(sums, operand_of_32(a + k / 2 * A_PANEL + k % 2 * 32),
                                operand_of_32(b + k / 2 * B_PANEL + k % 2 * 32), 1, Element());
    products_commit();
}

// Where a thread's sums of eight channels lie, of those that part `part` comes to.
__device__ __forceinline__ uint32_t place_of_sums(uint32_t start, int part, int group) {
    return start + ((part * GROUPS + group) * MULTIPLIERS + threadIdx.x) * 16;
}

// Send all blocks of the team their channels.
__device__ __forceinline__ void share(const float (&sums)[TILE_N / 2], const Stages& stages, int part) {
#pragma unroll
    for (int block = 0; block < TEAM; ++block) {
        const uint32_t there = in_block(stages.a(0), block), barrier = in_block(stages.shared_out(), block);
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            const float* four = sums + (block * GROUPS + group) * 4;
            store_there(place_of_sums(there, part, group),
                        make_uint4(__float_as_uint(four[0]), __float_as_uint(four[1]), __float_as_uint(four[2]),
                                   __float_as_uint(four[3])),
                        barrier);
        }
    }
}

__device__ __forceinline__ void add_up(float (&sums)[SHARE_N / 2], uint32_t start) {
#pragma unroll
    for (int group = 0; group < GROUPS; ++group)
#pragma unroll
        for (int part = 0; part < TEAM; ++part) {
            const uint4 four = read_16_bytes(place_of_sums(start, part, group));
            const float values[4] = {__uint_as_float(four.x), __uint_as_float(four.y), __uint_as_float(four.z),
                                     __uint_as_float(four.w)};
#pragma unroll
            for (int n = 0; n < 4; ++n)
                sums[group * 4 + n] = part ? sums[group * 4 + n] + values[n] : values[n];
        }
}

// What a block does with its tiles, one after another, as a thread that brings or one that multiplies. A launch has
// about as many blocks as there are tiles, and seldom is one left with a second tile; but blocks without any would take
// time to come and go, and there is room for many more rows than there are.
struct Work {
    const Stages& stages;
    const KernelMap& map;
    const Source &input, &beside;
    const char* weight;
    int across, rows;  // tiles side by side; rows of y in use
    int part = blockIdx.x % TEAM, tile = blockIdx.x / TEAM;
    int looked_up = 0;  // offsets of all tiles before, in whole chunks
    Ring ring;

    __device__ __forceinline__ int place() const { return place_of_tile(tile / across, TILE_M, rows); }
    __device__ __forceinline__ int column() const { return tile % across * TILE_N; }

    __device__ __forceinline__ void go_on() {
        __syncthreads();  // the stages are free: rows lay there
        tile += gridDim.x / TEAM;
    }

    __device__ __forceinline__ OffsetWalk walk() const {
        const int first = map.volume * part / TEAM, last = map.volume * (part + 1) / TEAM;
        return {map, place(), min(rows, place() + TILE_M), first, last, beside.rows != nullptr};
    }

    // At least one, of zeros if need be: the assembler makes products wait for one another if there may be none.
    __device__ __forceinline__ int steps(const OffsetWalk& walk, int offsets) const {
        return max(1, (walk.steps(offsets, panels_of(input), panels_of(beside)) + 1) / 2);
    }

    __device__ __forceinline__ void bring() {
        const OffsetWalk offsets = walk();
        const int total = offsets.total(), steps = this->steps(offsets, total);
        Bringer{stages, input, beside, offsets, offsets, int(threadIdx.x) - MULTIPLIERS, total, looked_up}.bring(
            weight + (size_t)(tile % across) * B_PANEL, (size_t)across * B_PANEL, steps, ring);
        looked_up += (total + OFFSETS - 1) / OFFSETS * OFFSETS;
        if (TEAM > 1) meet_team();
    }

    __device__ __forceinline__ void multiply(const Output& output, uint32_t turn) {
        const int warp = warp_of_block(), group = warp / 4;
        const OffsetWalk offsets = walk();
        const int steps = this->steps(offsets, offsets.total());
        const WarpRows<TILE_N> mine(output, map, offsets.place + warp * 16, offsets.places, column());
        float sums[TILE_N / 2] = {};
        wait_for_kernels_before();
        let_next_kernel_begin();
        if (part == 0) mine.begin(sums);
        int before = 0, step = 0;
        do {
            barrier_wait(stages.full(ring.stage), ring.phase);
            publish_shared();  // what copies of 16 bytes brought
            multiply_step(sums, stages.a(ring.stage) + group * (64 * ROW_BYTES), stages.b(ring.stage));
            products_wait<1>();
            if (step) barrier_arrive(stages.empty(before));
            before = ring.stage;
            ring.next(STAGES);
        } while (++step < steps);
        products_wait<0>();
        barrier_arrive(stages.empty(before));
#pragma unroll
        for (int n = 0; n < TILE_N / 2; ++n) is_changed(sums[n]);
        Element* own = static_cast<Element*>(shared_pointer(stages.a(0) + SUMS)) + warp * Share::ELEMENTS;
        if constexpr (TEAM == 1) {
            barrier_of<MULTIPLIERS>(1);  // all are done with the stages: each warp takes a part of them
            mine.write(sums, own);
        } else {
            if (threadIdx.x == 0) barrier_expect(stages.shared_out(), SUMS);
            meet_team();  // all are done with their stages
            share(sums, stages, part);
            barrier_wait(stages.shared_out(), turn % 2);
            float total[SHARE_N / 2];
            add_up(total, stages.a(0));
            Share{output, mine.row, mine.column + part * SHARE_N}.write(total, own);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
sparse_conv_wgmma(const Element* __restrict__ x, int x_pitch, int ci, const Element* __restrict__ shortcut,
                  int shortcut_pitch, int shortcut_ci, const char* __restrict__ weight, int weight_pitch,
                  const int* __restrict__ map_rows, const unsigned* __restrict__ present, const int* __restrict__ order,
                  int volume, int words, int capacity, const int* __restrict__ count, const float* __restrict__ bias,
                  const Element* residual, int residual_pitch, Element* y, int y_pitch, int co, int activation,
                  float negative_slope, int settled) {
    const Stages stages{dynamic_shared()};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s)
            barrier_init(stages.full(s), BRINGERS + 2), barrier_init(stages.empty(s), MULTIPLIERS);
        for (int chunk = 0; chunk < CHUNKS; ++chunk) barrier_init(stages.looked_up(chunk), BRINGERS);
        barrier_init(stages.shared_out(), 1);
        barriers_are_ready();
    }
    __syncthreads();
    if (!settled) wait_for_kernels_before();
    const KernelMap map = {map_rows, present, order, volume, words, capacity};
    const Source input = {x, x_pitch, ci}, beside = {shortcut, shortcut_pitch, shortcut_ci};
    const Output output = {bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    Work work{stages, map, input, beside, weight, weight_pitch / TILE_N, min(*count, capacity)};
    if (work.place() < 0) return wait_for_kernels_before();  // whoever waits for this kernel waits for all before it
    if (threadIdx.x >= MULTIPLIERS) {
        take_registers<BRING, EVEN>();
        for (; work.place() >= 0; work.go_on()) work.bring();
    } else {
        take_registers<MULTIPLY, EVEN>();
        for (uint32_t turn = 0; work.place() >= 0; work.go_on(), ++turn) work.multiply(output, turn);
    }
}
