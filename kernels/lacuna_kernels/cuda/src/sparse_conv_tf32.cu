// Sparse convolution of fp32 on tensor cores (sm_80 and later), which multiply tf32: an implicit GEMM,
// output-stationary. A block makes TILE_M rows x TILE_N channels of y. Step by step it gathers TILE_K channels of the
// rows that one offset leads to (zeros where there is none), and the TILE_K x TILE_N patch of that offset's weight,
// STAGES steps ahead.
// PRODUCTS  1: in tf32, to which x is rounded here, and the weight was before.
//           3: in fp32, each operand being two tf32 (split_tf32.cuh). What 8 channels add up to, by the tensor cores,
//              whose sums are truncated, is added to an ordinary sum. Infinity becomes NaN.
// weight    [steps of all offsets and then of the shortcut, padded co / TILE_N, TILE_K / 8, TILE_N / 16, 32, 4], zeros
//           up to multiples of TILE_K and TILE_N: of 8 x 16 each lane has its four side by side. weight_pitch is the
//           padded co.
// ALIGNED   x and the shortcut have ci, pitch and address in multiples of 4 elements, so that 16 bytes can be copied at
//           a time.
#include "lane_copies.cuh"
#include "mma_tf32.cuh"
#include "split_tf32.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 64
#define TILE_K 32
#define WARPS_M 4
#define WARPS_N 2
#define STAGES 3
#define PRODUCTS 1
#define ALIGNED 1
#endif
#if TILE_N % (16 * WARPS_N) || TILE_M % (16 * WARPS_M)
#error "a warp's patch is made of 16 x 16 products"
#endif
#if TILE_K != 16 && TILE_K != 32
#error "rows in shared memory are half a line of banks, or a line"
#endif

#define THREADS (WARPS_M * WARPS_N * 32)
#define VECTOR 4  // elements that are copied at a time
#include "sparse_conv_steps.cuh"

#define STAGE_ELEMENTS (TILE_K * (TILE_M + TILE_N))
#define BLOCKS (ALIGNED ? 512 / THREADS : 1)  // at least, at the same time: 128 registers a thread, or what it takes

// Where vector v of row m of x lies in the row: so that 8 rows share no banks, be it where they are read or written.
__device__ __forceinline__ int swizzled(int m, int v) { return v ^ m * VECTORS / 8 % VECTORS; }

// Brings the steps of a tile to shared memory, one call a step.
struct Loader : Steps {
    const float* weight;  // the tile's first patch
    int weight_pitch;

    __device__ Loader(const Source& input, const Source& shortcut, const float* weight, int weight_pitch,
                      const OffsetWalk& walk)
        : Steps(input, shortcut, walk), weight(weight), weight_pitch(weight_pitch) {}

    __device__ void load(float* stage) {
        begin_step();
        gather(stage);
        const float* from = weight + rows_before() * weight_pitch;
        const uint32_t to = shared_address(stage + TILE_M * TILE_K);
#pragma unroll
        for (int at = threadIdx.x; at < TILE_K * TILE_N / VECTOR; at += THREADS)
            copy_16_bytes(to + at * 16, from + at * VECTOR, true);
        ++chunk;
    }

    __device__ void gather(float* stage) {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int at = threadIdx.x + i * THREADS, m = at / VECTORS, v = at % VECTORS;
            if (TILE_M * VECTORS % THREADS && at >= TILE_M * VECTORS) break;
            const int channel = chunk * TILE_K + v * VECTOR;
            const uint32_t to = shared_address(stage + m * TILE_K + swizzled(m, v) * VECTOR);
            const float* from = source.rows + (size_t)max(rows[i], 0) * source.pitch + channel;
#if ALIGNED
            const bool there = rows[i] >= 0 && channel < source.ci;
            copy_16_bytes(to, there ? from : source.rows, there);
#else
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                const bool there = rows[i] >= 0 && channel + c < source.ci;
                copy_4_bytes(to + c * 4, there ? from + c : source.rows, there);
            }
#endif
        }
    }
};

enum Half { BIG, SMALL };

// Four numbers as the tensor cores take them: rounded to tf32, and what that left over.
struct Four {
    uint32_t halves[2][4];

    __device__ __forceinline__ void split(const uint32_t (&bits)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            halves[BIG][i] = to_tf32(__uint_as_float(bits[i]));
            halves[SMALL][i] = left_over(__uint_as_float(bits[i]), halves[BIG][i]);
        }
    }

    __device__ __forceinline__ void take(const uint32_t (&bits)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) halves[BIG][i] = bits[i];
    }

    __device__ __forceinline__ void load(uint32_t from) {
        uint32_t bits[4];
        load_rows(bits, from);
        split(bits);
    }

    __device__ __forceinline__ void load_weight(const float* from) {
        const float4 x = *reinterpret_cast<const float4*>(from);
        const uint32_t bits[4] = {__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z),
                                  __float_as_uint(x.w)};
        if constexpr (PRODUCTS == 3)
            split(bits);
        else
            take(bits);
    }
};

// Adds the products of 8 channels to a warp's sums of 16 rows and columns.
__device__ __forceinline__ void multiply(float (&sums)[2][4], const Four& a, const Four& b) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
        const auto add = [&](float (&to)[4], Half of_a, Half of_b) {
            add_product(to, a.halves[of_a], b.halves[of_b][2 * n], b.halves[of_b][2 * n + 1]);
        };
        if constexpr (PRODUCTS == 1) {
            add(sums[n], BIG, BIG);
        } else {
            float added[4] = {};
            add(added, BIG, SMALL), add(added, SMALL, BIG), add(added, BIG, BIG);  // truncation takes a part of a sum
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] += added[i];
        }
    }
}

// Adds the products of one step to the sums of a warp's patch.
__device__ inline void add_products(float (&sums)[PATCHES_M][PATCHES_N][2][4], const float* stage, int warp_m,
                                    int warp_n) {
    constexpr int most = 2 * 4096 / (TILE_K * TILE_N);  // large tiles have no registers left for more
    constexpr int unrolled = PRODUCTS == 3 || TILE_N > 96 ? 1 : most > TILE_K / 8 ? TILE_K / 8 : most > 2 ? 2 : 1;
    const int lane = threadIdx.x % 32, m = warp_m * PATCHES_M * 16 + lane % 16, vector = swizzled(lane, lane / 16);
    const uint32_t a_from = shared_address(stage + m * TILE_K);
    const float* b_from = stage + TILE_M * TILE_K + warp_n * PATCHES_N * 128 + lane * VECTOR;
#pragma unroll(unrolled)
    for (int k = 0; k < TILE_K; k += 8) {
        Four a[PATCHES_M];
#pragma unroll
        for (int i = 0; i < PATCHES_M; ++i) a[i].load(a_from + i * 16 * TILE_K * 4 + (vector ^ k / 4) * 16);
#pragma unroll
        for (int j = 0; j < PATCHES_N; ++j) {
            Four b;
            b.load_weight(b_from + k * TILE_N + j * 128);
#pragma unroll
            for (int i = 0; i < PATCHES_M; ++i) multiply(sums[i][j], a[i], b);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
sparse_conv_tf32(const float* __restrict__ x, int x_pitch, int ci, const float* __restrict__ shortcut,
                 int shortcut_pitch, int shortcut_ci, const float* __restrict__ weight, int weight_pitch,
                 const int* __restrict__ map_rows, const unsigned* __restrict__ present, const int* __restrict__ order,
                 const int* __restrict__ keys, const int* __restrict__ ones, const int*, int parts, int volume,
                 int words, int capacity, const int* __restrict__ count, float* part_sums, int part_pitch,
                 Progress* progress, const float* __restrict__ bias, const float* residual, int residual_pitch,
                 float* y, int y_pitch, int co, int activation, float negative_slope) {
    extern __shared__ __align__(128) unsigned char shared[];
    float* stages = reinterpret_cast<float*>(shared);
    const KernelMap map = {map_rows, present, order, keys, ones, nullptr, parts, volume, words, capacity};
    const Tiles<TILE_M, TILE_N> tiles = {map, min(*count, capacity), weight_pitch / TILE_N};
    const Tile tile = take_tile(tiles, progress, reinterpret_cast<int*>(shared));
    if (tile.part < 0) return leave_tile(map, tile, progress);
    const bool last = map.is_last(tile.part);
    const Source input = {x, x_pitch, ci}, beside = {shortcut, shortcut_pitch, shortcut_ci};
    const OffsetWalk walk{map, tile.part, tile.place, min(tiles.rows, tile.place + TILE_M), shortcut != nullptr};
    Loader loader(input, beside, weight + tile.column * TILE_K, weight_pitch, walk);
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < loader.steps) loader.load(stages + step * STAGE_ELEMENTS);
        commit_copies();
    }

    float sums[PATCHES_M][PATCHES_N][2][4] = {};
    const int warp_m = threadIdx.x / 32 % WARPS_M, warp_n = threadIdx.x / 32 / WARPS_M;
    const PartSums before = {part_sums, part_pitch, capacity};
    const Output ends = {bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    const auto rows_of = [&](int i) {
        const int first = tile.place + (warp_m * PATCHES_M + i) * 16;
        return WarpRows<WARP_N>(map, tile.part, first, walk.places, tile.column + warp_n * WARP_N);
    };
    if (last) {
#pragma unroll
        for (int i = 0; i < PATCHES_M; ++i) rows_of(i).begin(ends, reinterpret_cast<Patch&>(sums[i]));
    }
    for (int step = 0; step < loader.steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // the step is here, and all are done with the stage that is filled next
        const int ahead = step + STAGES - 1;
        if (ahead < loader.steps) loader.load(stages + ahead % STAGES * STAGE_ELEMENTS);
        commit_copies();
        add_products(sums, stages + step % STAGES * STAGE_ELEMENTS, warp_m, warp_n);
    }

    __syncthreads();  // all are done with the stages: each warp takes a part of them
    float* own = stages + threadIdx.x / 32 * WarpRows<WARP_N>::ELEMENTS;
    end_sums(sums, rows_of, own, ends, before, tiles, tile.part, progress);
    leave_tile(map, tile, progress);
}
