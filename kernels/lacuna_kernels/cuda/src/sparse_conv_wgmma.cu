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
// tells whether map and count were complete before that kernel began; if not, they may be written while this one runs
// already, and are read after it, too.
// ci, and x's pitch and address, are multiples of 8 elements, and those of the shortcut. weight, packed: [panels of all
// offsets and then of the shortcut, tiles of TILE_N channels, TILE_N, 32], rows of 32 swizzled by 64 bytes, zeros past
// ci and co.
#ifndef ELEMENT
#define ELEMENT __half
#endif
#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 128
#define BLOCKS 1  // of a multiprocessor
#define TEAM 1
#endif

#include "sparse_conv_panels.cuh"

constexpr int SHARE_N = TILE_N / TEAM, GROUPS = SHARE_N / 8;  // channels that a block of a team writes; eights of them
constexpr int SUMS = TEAM == 1 ? 0 : TILE_M * TILE_N * 4;     // bytes that a block is sent, where the stages were
constexpr int EVEN = 65536 / (THREADS * BLOCKS) / 8 * 8;  // registers of a thread, if all have equally many
constexpr int ENOUGH = 64, SPARED = EVEN > ENOUGH && BRINGERS % 128 == 0;
constexpr int BRING = SPARED ? ENOUGH : EVEN, MULTIPLY = EVEN + (EVEN - BRING) * BRINGERS / MULTIPLIERS / 8 * 8;
using Share = WarpRows<SHARE_N>;
static_assert(SHARE_N % 16 == 0, "a warp writes whole rounds of pieces");
static_assert(SUMS + TILE_M / 16 * Share::ELEMENTS * 2 <= STAGES * STAGE, "rows lie where the stages were");

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

    // The stages are free: rows lay there, and what the next tile's copies write comes after.
    __device__ __forceinline__ void go_on() {
        publish_shared();
        __syncthreads();
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
                  const int* map_rows, const unsigned* present, const int* order, int volume, int words, int capacity,
                  const int* count, const float* __restrict__ bias,
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
