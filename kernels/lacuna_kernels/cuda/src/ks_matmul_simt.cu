// A Kronecker-sparse factor by fused multiply-adds in fp32 (see ks_matmul.cuh): one block makes a tile of y of TILE_N
// rows, TILE_B columns j and TILE_D neighbouring l, for one i. A thread makes THREAD_N rows by THREAD_B columns of one
// l.
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
constexpr int AT_ONCE = THREADS / RUN;     // a thread stays at one (k, l) and goes from row to row, column to column
constexpr int PITCH_X = TILE_N + 4;
constexpr int PITCH_W = (TILE_B + 1) * TILE_D;
static_assert(THREADS % RUN == 0, "threads share rows evenly");
static_assert(THREAD_N % 4 == 0 && TILE_N % THREAD_N == 0 && TILE_B % THREAD_B == 0, "a thread owns groups of 4 rows");

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_THREADS / THREADS)
ks_matmul_simt(const Element* __restrict__ x, const Element* __restrict__ values, const float* __restrict__ bias,
               const Element* residual, Element* y, const int* __restrict__ count, int rows, int a, int b, int c, int d,
               int activation, float negative_slope) {
    __shared__ __align__(16) float x_tile[RUN * PITCH_X];
    __shared__ float w_tile[TILE_K * PITCH_W];
    const Pattern p{a, b, c, d};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const Index width_in = p.width_in();
    const int thread = threadIdx.x;
    const int my_l = thread % TILE_D, my_j = thread / TILE_D % STEP_B, my_row = thread / (TILE_D * STEP_B) * THREAD_N;
    const int load_row = thread / RUN, load_k = thread % RUN / TILE_D, load_l = thread % TILE_D;
    rows = rows_in_use(count, rows);
    const Index tiles = TileIndex::tiles(rows, p, TILE_N, TILE_B, TILE_D);

    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileIndex at(tile, p, TILE_N, TILE_B, TILE_D);
        const Element* x_from = x + at.row * width_in + Index(at.i) * c * d + at.l;
        const Element* w_from = values + (Index(at.i) * b + at.j) * c * d + at.l;
        const int rows_left = rows - at.row, columns_left = b - at.j, l_left = d - at.l;

        auto load = [&](int k0) {
            const bool there = k0 + load_k < c && load_l < l_left;
            const Element* from = x_from + load_row * 4 * width_in + Index(k0 + load_k) * d + load_l;
#pragma unroll 2
            for (int group = 0; group < TILE_N / 4; group += AT_ONCE, from += 4 * AT_ONCE * width_in) {
                const int row = (group + load_row) * 4;
                if (group + AT_ONCE > TILE_N / 4 && row >= TILE_N) break;
                float4 four;
                four.x = there && row < rows_left ? to_float(from[0]) : 0.0f;
                four.y = there && row + 1 < rows_left ? to_float(from[width_in]) : 0.0f;
                four.z = there && row + 2 < rows_left ? to_float(from[2 * width_in]) : 0.0f;
                four.w = there && row + 3 < rows_left ? to_float(from[3 * width_in]) : 0.0f;
                *reinterpret_cast<float4*>(x_tile + thread % RUN * PITCH_X + row) = four;
            }
            const Element* w = w_from + (Index(load_row) * c + k0 + load_k) * d + load_l;
#pragma unroll 4
            for (int column = 0; column < TILE_B; column += AT_ONCE, w += Index(AT_ONCE) * c * d) {
                const int j = column + load_row;
                if (column + AT_ONCE > TILE_B && j >= TILE_B) break;
                w_tile[load_k * PITCH_W + j * TILE_D + load_l] = there && j < columns_left ? to_float(*w) : 0.0f;
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

        asm volatile("" : "+r"(a), "+r"(b), "+r"(d));  // so that what follows from them takes no registers before
        const Index width_out = Index(a) * b * d;
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
