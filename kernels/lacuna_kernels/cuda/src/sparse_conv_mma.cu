// Sparse convolution in fp16 or bf16 on tensor cores: an implicit GEMM, output-stationary.
// A block makes TILE_M rows x TILE_N channels of y. Step by step it gathers TILE_K channels of the rows that one offset
// leads to (zeros where there is none), and the TILE_K x TILE_N patch of that offset's weight, STAGES steps ahead.
// weight [padded ci of all offsets and then of the shortcut, padded co], zeros up to multiples of TILE_K and TILE_N;
// its width is weight_pitch.
// ALIGNED: x and the shortcut have ci, pitch and address in multiples of 8 elements, so that 16 bytes can be copied at
// a time.
#ifndef TILE_M
#define TILE_M 128
#define TILE_N 64
#define TILE_K 32
#define WARPS_M 4
#define WARPS_N 2
#define STAGES 3
#define ALIGNED 1
#endif
#if TILE_N % (16 * WARPS_N) || TILE_M % (16 * WARPS_M) || TILE_K % 16
#error "a warp's patch is made of 16 x 16 products of 16 channels"
#endif

#define THREADS (WARPS_M * WARPS_N * 32)
#define VECTOR 8  // elements that are copied at a time
#include "sparse_conv_steps.cuh"

#define PIECES_N (TILE_N / PIECE)
#define PITCH_A (TILE_K + PIECE)  // one row further is 4, 12 or 20 banks further, so that 8 rows share none
#define PITCH_B (TILE_N + PIECE)
#define STAGE_ELEMENTS (TILE_M * PITCH_A + TILE_K * PITCH_B)
#define BLOCKS (ALIGNED ? 512 / THREADS : 1)  // at least, at the same time: 128 registers a thread, or what it takes

__device__ inline unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Copies 16 bytes to shared memory, or zeros where there is no source.
__device__ inline void copy_piece(Element* to, const Element* from, bool there) {
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

__device__ inline void load_matrices(unsigned* to, const Element* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from)));
}

__device__ inline void load_matrices_transposed(unsigned* to, const Element* from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(from)));
}

#define MULTIPLY(TYPE)                                                                                         \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                 \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ inline void multiply(float* sum, const unsigned* a, const unsigned* b, __half) { MULTIPLY("f16"); }
__device__ inline void multiply(float* sum, const unsigned* a, const unsigned* b, __nv_bfloat16) { MULTIPLY("bf16"); }

// Brings the steps of a tile to shared memory, one call a step.
struct Loader : Steps {
    const Element* weight;  // at the tile's first channel
    int weight_pitch;

    __device__ Loader(const Source& input, const Source& shortcut, const Element* weight, int weight_pitch,
                      const OffsetWalk& walk)
        : Steps(input, shortcut, walk), weight(weight), weight_pitch(weight_pitch) {}

    __device__ void load(Element* stage) {
        begin_step();
        gather(stage);
        const Element* from = weight + rows_before() * weight_pitch;
#pragma unroll
        for (int piece = threadIdx.x; piece < TILE_K * PIECES_N; piece += THREADS) {
            const int k = piece / PIECES_N, n = piece % PIECES_N * PIECE;
            copy_piece(stage + TILE_M * PITCH_A + k * PITCH_B + n, from + (size_t)k * weight_pitch + n, true);
        }
        ++chunk;
    }

    __device__ void gather(Element* stage) {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int piece = threadIdx.x + i * THREADS;
            if (TILE_M * VECTORS % THREADS && piece >= TILE_M * VECTORS) break;
            const int channel = chunk * TILE_K + piece % VECTORS * PIECE;
            Element* to = stage + piece / VECTORS * PITCH_A + piece % VECTORS * PIECE;
            const Element* from = source.rows + (size_t)max(rows[i], 0) * source.pitch + channel;
#if ALIGNED
            const bool there = rows[i] >= 0 && channel < source.ci;
            copy_piece(to, there ? from : source.rows, there);
#else
#pragma unroll
            for (int c = 0; c < PIECE; ++c)
                to[c] = rows[i] >= 0 && channel + c < source.ci ? from[c] : from_float<Element>(0.0f);
#endif
        }
    }
};

// Adds the products of one step to the sums of a warp's patch.
__device__ inline void add_products(float (*sums)[PATCHES_N][2][4], const Element* stage, int warp_m, int warp_n) {
    constexpr int unrolled = TILE_K * TILE_N > 4096 ? 1 : TILE_K / 16;  // large tiles have no registers left for more
    const int lane = threadIdx.x % 32;
    const Element* a_from = stage + (warp_m * PATCHES_M * 16 + lane % 16) * PITCH_A + lane / 16 * 8;
    const Element* b_from = stage + TILE_M * PITCH_A + lane % 16 * PITCH_B + warp_n * PATCHES_N * 16 + lane / 16 * 8;
#pragma unroll(unrolled)
    for (int k = 0; k < TILE_K; k += 16) {
        unsigned a[PATCHES_M][4], b[PATCHES_N][4];
#pragma unroll
        for (int i = 0; i < PATCHES_M; ++i) load_matrices(a[i], a_from + i * 16 * PITCH_A + k);
#pragma unroll
        for (int j = 0; j < PATCHES_N; ++j) load_matrices_transposed(b[j], b_from + k * PITCH_B + j * 16);
#pragma unroll
        for (int i = 0; i < PATCHES_M; ++i)
#pragma unroll
            for (int j = 0; j < PATCHES_N; ++j) {
                multiply(sums[i][j][0], a[i], b[j], Element());
                multiply(sums[i][j][1], a[i], b[j] + 2, Element());
            }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
sparse_conv_mma(const Element* __restrict__ x, int x_pitch, int ci, const Element* __restrict__ shortcut,
                int shortcut_pitch, int shortcut_ci, const Element* __restrict__ weight, int weight_pitch,
                const int* __restrict__ map_rows, const unsigned* __restrict__ present, const int* __restrict__ order,
                const int* __restrict__ keys, const int* __restrict__ ones, const int*, int parts, int volume,
                int words, int capacity, const int* __restrict__ count, float* part_sums, int part_pitch,
                Progress* progress, const float* __restrict__ bias, const Element* residual, int residual_pitch,
                Element* y, int y_pitch, int co, int activation, float negative_slope) {
    extern __shared__ __align__(16) unsigned char shared_memory[];
    Element* stages = reinterpret_cast<Element*>(shared_memory);
    const KernelMap map = {map_rows, present, order, keys, ones, nullptr, parts, volume, words, capacity};
    const Tiles<TILE_M, TILE_N> tiles = {map, min(*count, capacity), weight_pitch / TILE_N};
    const Tile tile = take_tile(tiles, progress, reinterpret_cast<int*>(shared_memory));
    if (tile.part < 0) return leave_tile(map, tile, progress);
    const bool last = map.is_last(tile.part);
    const Source input = {x, x_pitch, ci}, beside = {shortcut, shortcut_pitch, shortcut_ci};
    const OffsetWalk walk{map, tile.part, tile.place, min(tiles.rows, tile.place + TILE_M), shortcut != nullptr};
    Loader loader(input, beside, weight + tile.column, weight_pitch, walk);
#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) {
        if (step < loader.steps) loader.load(stages + step * STAGE_ELEMENTS);
        asm volatile("cp.async.commit_group;");
    }

    float sums[PATCHES_M][PATCHES_N][2][4] = {};
    const int warp_m = threadIdx.x / 32 % WARPS_M, warp_n = threadIdx.x / 32 / WARPS_M;
    const PartSums before = {part_sums, part_pitch, capacity};
    const Output ends{bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    const auto rows_of = [&](int i) {
        const int first = tile.place + (warp_m * PATCHES_M + i) * 16;
        return WarpRows<WARP_N>(map, tile.part, first, walk.places, tile.column + warp_n * WARP_N);
    };
    if (last) {
#pragma unroll
        for (int i = 0; i < PATCHES_M; ++i) rows_of(i).begin(ends, reinterpret_cast<Patch&>(sums[i]));
    }
    for (int step = 0; step < loader.steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
        __syncthreads();  // the step is here, and all are done with the stage that is filled next
        const int ahead = step + STAGES - 1;
        if (ahead < loader.steps) loader.load(stages + ahead % STAGES * STAGE_ELEMENTS);
        asm volatile("cp.async.commit_group;");
        add_products(sums, stages + step % STAGES * STAGE_ELEMENTS, warp_m, warp_n);
    }

    __syncthreads();  // all are done with the stages: each warp takes a part of them
    Element* own = stages + threadIdx.x / 32 * WarpRows<WARP_N>::ELEMENTS;
    end_sums(sums, rows_of, own, ends, before, tiles, tile.part, progress);
    leave_tile(map, tile, progress);
}
