// Sparse convolution in fp16 or bf16 on Hopper's tensor cores: an implicit GEMM, output-stationary (sparse_conv.cuh).
// A block makes TILE_M rows x TILE_N channels of y from panels, 32 channels of what one offset leads to: those of the
// tile's first offset, then those of its next, two at a time, whichever they are of. Of the threads
//   multiply  each warpgroup has 64 rows of the tile, or 64 of each of its HALVES
//   bring     BRINGERS threads more gather panels in 16-byte copies, zeros where there is no row, up to STAGES pairs of
//             panels ahead. Scouts among them look up before where the rows lie, and have the patches of the offsets'
//             weights copied beside them: so those who gather do little else
// A launch may begin before the kernel before it has ended: x, residual and y are touched only after that, but tiles are
// taken at once, so that launches which follow one another must not have the same `progress`. `settled` tells whether
// map, order of tiles and count were complete before that kernel began; if not, they may be written while this one runs
// already, and are read after it, too.
// ci, and x's pitch and address, are multiples of 8 elements, and those of the shortcut. weight, packed: [panels of all
// offsets and then of the shortcut, tiles of TILE_N channels, TILE_N, 32], rows of 32 swizzled by 64 bytes, zeros past
// ci and co. Channels of y are in an order by which a lane makes neighbours (lane_rows.cuh).
#ifndef ELEMENT
#define ELEMENT __half
#endif
#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 128
#define BLOCKS 1  // of a multiprocessor
#define HALVES 1
#define SPLIT 0   // whether the offsets are in parts
#endif

#include "lane_rows.cuh"
#include "sparse_conv_panels.cuh"

constexpr int AT_ONCE = SPLIT && BLOCKS > 4 ? 4 : BLOCKS;  // parts take more than the 56 registers that five leave
constexpr int EVEN = 65536 / (THREADS * AT_ONCE) / 8 * 8;  // registers of a thread, if all have equally many
constexpr int ENOUGH = 64, SPARED = EVEN > ENOUGH && BRINGERS % 128 == 0;
constexpr int BRING = SPARED ? ENOUGH : EVEN, MULTIPLY = EVEN + (EVEN - BRING) * BRINGERS / MULTIPLIERS / 8 * 8;
using Rows = LaneRows<TILE_N>;
using Tiling = Tiles<TILE_M, TILE_N>;
static_assert(TILE_M == GROUP || TILE_M == 2 * GROUP, "tiles of other sizes are in no order");

// What a thread adds up, of each half of the tile.
using Sums = float[HALVES][TILE_N / 2];

// `a` and `b` are the first of two panels.
__device__ __forceinline__ void multiply_step(Sums& sums, uint32_t a, uint32_t b) {
    products_begin();
#pragma unroll
    for (int k = 0; k < 2 * PANEL_K / 16; ++k)
#pragma unroll
        for (int half = 0; half < HALVES; ++half)
            multiply_add<TILE_N, 0>(sums[half],
                                    operand_of_32(a + half * (A_PANEL / HALVES) + k / 2 * A_PANEL + k % 2 * 32),
                                    operand_of_32(b + k / 2 * B_PANEL + k % 2 * 32), 1, Element());
    products_commit();
}

// What a block does with its tiles, one after another, as a thread that brings or one that multiplies. A launch has
// about as many blocks as there are tiles, and seldom is one left with a second tile; but blocks without any would take
// time to come and go, and there is room for many more rows than there are.
struct Work {
    const Stages& stages;
    const KernelMap& map;
    const Source &input, &beside;
    const char* weight;
    const Tiling& tiles;
    Progress* progress;
    int index = blockIdx.x;
    Tile own = SPLIT ? Tile{} : tiles.at(index);  // all threads find it out, unless one takes it for them
    int looked_up = 0;                            // offsets of the tiles before
    int turn = 0;                                 // of tiles that were taken
    Ring ring;

    __device__ __forceinline__ Tile tile() const { return SPLIT ? stages.tile() : own; }

    // By whole warps, whose lanes all have the same, to the compiler, too.
    __device__ __forceinline__ Tile tile_of_warp() const {
        if (!SPLIT) return own;
        const Tile read = tile();
        return {__shfl_sync(EVERY_LANE, read.part, 0), __shfl_sync(EVERY_LANE, read.place, 0),
                __shfl_sync(EVERY_LANE, read.column, 0)};
    }

    // By one thread, while the others wait for it.
    __device__ __forceinline__ void take() const { stages.tile() = tiles.at(progress->take()); }

    // The next tile. If tiles are taken, once all threads are done with this one.
    __device__ __forceinline__ void go_on() {
        if (!SPLIT) {
            own = tiles.at(index += gridDim.x);
            return;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            if (!map.is_last(tile().part)) progress->tell_made();
            if (tiles.all() > int(gridDim.x))
                take();
            else
                stages.tile().part = -1;
            barrier_arrive(stages.taken());
        }
        barrier_wait(stages.taken(), turn);  // not a second __syncthreads, of which racecheck takes both for one
        turn ^= 1;
    }

    __device__ __forceinline__ WarpOffsetWalk walk() const {
        const Tile tile = tile_of_warp();
        return {map, tile.part, tile.place, min(tiles.rows, tile.place + TILE_M), beside.rows != nullptr};
    }

    // At least one, of zeros if need be: the assembler makes products wait for one another if there may be none.
    __device__ __forceinline__ int steps(const WarpOffsetWalk& walk, int offsets) const {
        return max(1, (walk.steps(offsets, panels_of(input), panels_of(beside)) + 1) / 2);
    }

    __device__ __forceinline__ void bring() {
        const WarpOffsetWalk offsets = walk();
        const int total = offsets.total(), steps = this->steps(offsets, total);
        const Bringers bringers{stages, input, beside, offsets, looked_up, looked_up + total, steps};
        if (warp_of_block() < (MULTIPLIERS + GATHERERS) / 32)
            bringers.gather(ring);
        else
            bringers.scout(weight + (size_t)(tile_of_warp().column / TILE_N) * B_PANEL, (size_t)tiles.across * B_PANEL, ring);
        looked_up += total;
    }

    __device__ __forceinline__ void multiply(const Output& y, const PartSums& parts) {
        const int warp = warp_of_block(), group = warp / 4;
        const WarpOffsetWalk offsets = walk();
        Rows mine[HALVES];
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            const int first = offsets.place + half * (TILE_M / HALVES) + warp * 16;
            mine[half] = Rows(map, offsets.part, first, offsets.places, tile().column);
        }
        const bool last = map.is_last(offsets.part);
        Sums sums = {};
        if (!SPLIT || last) {  // under way while offsets are counted
#pragma unroll
            for (int half = 0; half < HALVES; ++half) mine[half].begin_with_bias(y, sums[half]);
        }
        const int steps = this->steps(offsets, offsets.total());
        wait_for_kernels_before();
        let_next_kernel_begin();
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            if (!SPLIT || last) mine[half].template add_residual<false>(y, sums[half]);
        }
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
        for (int n = 0; n < HALVES * TILE_N / 2; ++n) is_changed(sums[n / (TILE_N / 2)][n % (TILE_N / 2)]);
#pragma unroll
        for (int half = 0; half < HALVES; ++half) {
            if (SPLIT && !map.is_last(tile().part)) {
                mine[half].keep(sums[half], parts, tile().part);
                continue;
            }
            if (SPLIT) mine[half].add_parts(sums[half], map, parts, progress, tiles.before_last());
            mine[half].template write<Element>(y, sums[half]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, AT_ONCE)
sparse_conv_wgmma(const Element* __restrict__ x, int x_pitch, int ci, const Element* __restrict__ shortcut,
                  int shortcut_pitch, int shortcut_ci, const char* __restrict__ weight, int weight_pitch,
                  const int* map_rows, const unsigned* present, const int* order, const int* keys, const int* ones,
                  const int* tile_order, int parts, int volume, int words, int capacity, const int* count,
                  float* part_sums, int part_pitch, Progress* progress, const float* __restrict__ bias,
                  const Element* residual, int residual_pitch, Element* y, int y_pitch, int co, int activation,
                  float negative_slope, int settled) {
    const Stages stages{dynamic_shared()};
    if (!settled) wait_for_kernels_before();
    const KernelMap map = {map_rows, present, order, keys, ones, tile_order, SPLIT ? parts : 1, volume, words, capacity};
    const Source input = {x, x_pitch, ci}, beside = {shortcut, shortcut_pitch, shortcut_ci};
    const Output output = {bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    const Tiling tiles = {map, min(*count, capacity), weight_pitch / TILE_N};
    Work work{stages, map, input, beside, weight, tiles, progress};
    if (threadIdx.x == 0) {
        if (SPLIT) work.take();
        for (int s = 0; s < STAGES; ++s)
            barrier_init(stages.full(s), GATHERERS + SCOUTS), barrier_init(stages.empty(s), MULTIPLIERS);
        for (int slot = 0; slot < SLOTS; ++slot) barrier_init(stages.looked_up(slot), 32);
        barrier_init(stages.taken(), 1);
        barriers_are_ready();
    }
    __syncthreads();
    if (work.tile().part < 0) {
        wait_for_kernels_before();  // whoever waits for this kernel waits for all before it
    } else if (threadIdx.x >= MULTIPLIERS) {
        take_registers<BRING, EVEN>();
        for (; work.tile().part >= 0; work.go_on()) work.bring();
    } else {
        take_registers<MULTIPLY, EVEN>();
        for (; work.tile().part >= 0; work.go_on()) work.multiply(output, {part_sums, part_pitch, capacity});
    }
    if (SPLIT && threadIdx.x == 0) progress->leave(gridDim.x);
}
