// A Kronecker-sparse factor by fused multiply-adds in fp32 (see ks_matmul.cuh): one block makes a tile of y of TILE_N
// rows, TILE_B columns j and TILE_D neighbouring l, for one i. A thread makes THREAD_N rows by THREAD_B columns of one l.
//
// Threads of a warp differ in l first and j next: their columns of y lie side by side. Shared memory holds x as
// [k, l][row], four rows of which a thread reads at once, and the values as [k][j, l]; the pitches keep banks apart.
#include "ks_matmul.cuh"

#ifndef TILE_N
#define TILE_N 64
#define TILE_B 32
#define TILE_D 8
#define TILE_K 8
#define THREAD_N 8
#define THREAD_B 8
#endif

constexpr int STEP_B = TILE_B / THREAD_B;  // columns that neighbouring threads cover; a thread's own lie this far apart
constexpr int THREADS = TILE_D * STEP_B * (TILE_N / THREAD_N);
constexpr int RUN = TILE_K * TILE_D;
constexpr int PITCH_X = TILE_N + 4;
constexpr int PITCH_W = (TILE_B + 1) * TILE_D;
static_assert(THREAD_N % 4 == 0 && TILE_N % THREAD_N == 0 && TILE_B % THREAD_B == 0, "a thread owns groups of 4 rows");

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS)
ks_matmul_simt(const Element* __restrict__ x, const Element* __restrict__ values, const float* __restrict__ bias,
               const Element* residual, Element* y, const int* __restrict__ count, int rows, int a, int b, int c, int d,
               int activation, float negative_slope) {
    __shared__ __align__(16) float x_tile[RUN * PITCH_X];
    __shared__ float w_tile[TILE_K * PITCH_W];
    const Pattern p{a, b, c, d};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const Index width_in = p.width_in(), width_out = p.width_out();
    const int thread = threadIdx.x;
    const int my_l = thread % TILE_D, my_j = thread / TILE_D % STEP_B, my_row = thread / (TILE_D * STEP_B) * THREAD_N;
    rows = rows_in_use(count, rows);
    const Index tiles = TileIndex::tiles(rows, p, TILE_N, TILE_B, TILE_D);

    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileIndex at(tile, p, TILE_N, TILE_B, TILE_D);
        const Element* x_from = x + at.row * width_in + Index(at.i) * c * d + at.l;
        const Element* w_from = values + (Index(at.i) * b + at.j) * c * d + at.l;
        const int rows_left = rows - at.row, columns_left = b - at.j, l_left = d - at.l;

        auto load = [&](int k0) {
#pragma unroll 1
            for (int unit = thread; unit < TILE_N / 4 * RUN; unit += THREADS) {
                const int k = unit % RUN / TILE_D, l = unit % TILE_D, row = unit / RUN * 4;
                const bool there = k0 + k < c && l < l_left;
                const Element* from = x_from + row * width_in + Index(k0 + k) * d + l;
                float4 four;
                four.x = there && row < rows_left ? to_float(from[0]) : 0.0f;
                four.y = there && row + 1 < rows_left ? to_float(from[width_in]) : 0.0f;
                four.z = there && row + 2 < rows_left ? to_float(from[2 * width_in]) : 0.0f;
                four.w = there && row + 3 < rows_left ? to_float(from[3 * width_in]) : 0.0f;
                *reinterpret_cast<float4*>(x_tile + unit % RUN * PITCH_X + row) = four;
            }
#pragma unroll 4
            for (int unit = thread; unit < TILE_B * RUN; unit += THREADS) {
                const int k = unit % RUN / TILE_D, l = unit % TILE_D, j = unit / RUN;
                const bool there = j < columns_left && k0 + k < c && l < l_left;
                const float w = there ? to_float(w_from[(Index(j) * c + k0 + k) * d + l]) : 0.0f;
                w_tile[k * PITCH_W + j * TILE_D + l] = w;
            }
        };

        float sums[THREAD_N][THREAD_B] = {};
        for (int k0 = 0; k0 < c; k0 += TILE_K) {
            __syncthreads();
            load(k0);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < TILE_K; ++k) {
                float xs[THREAD_N], ws[THREAD_B];
#pragma unroll
                for (int r = 0; r < THREAD_N; r += 4) {
                    const float* from = x_tile + (k * TILE_D + my_l) * PITCH_X + my_row + r;
                    const float4 four = *reinterpret_cast<const float4*>(from);
                    xs[r] = four.x, xs[r + 1] = four.y, xs[r + 2] = four.z, xs[r + 3] = four.w;
                }
#pragma unroll
                for (int j = 0; j < THREAD_B; ++j)
                    ws[j] = w_tile[k * PITCH_W + (j * STEP_B + my_j) * TILE_D + my_l];
#pragma unroll
                for (int r = 0; r < THREAD_N; ++r)
#pragma unroll
                    for (int j = 0; j < THREAD_B; ++j) sums[r][j] = fmaf(xs[r], ws[j], sums[r][j]);
            }
        }

#pragma unroll
        for (int r = 0; r < THREAD_N; ++r)
#pragma unroll
            for (int j = 0; j < THREAD_B; ++j) {
                const int column_j = j * STEP_B + my_j;
                if (my_row + r >= rows_left || column_j >= columns_left || my_l >= l_left) continue;
                const Index column = (Index(at.i) * b + at.j + column_j) * d + at.l + my_l;
                const Index to = (at.row + my_row + r) * width_out + column;
                epilogue.write(sums[r][j], column, to);
            }
    }
}
