// Turning the small matrices that rows are made of, so that a factor with d > 1 becomes one with d = 1:
//   ks_turn_in    t[n, i, l, k] = x[n, i, k, l]                                  for x of rows [a, c, d]
//   ks_turn_out   y[n, i, j, l] = f(t[n, i, l, j] + bias[i, j, l] + residual[n, i, j, l])    for t of rows [a, d, b]
// A block turns `group` whole matrices, or CHUNK of k (or j) by all l of one, in shared memory: global reads and writes
// are runs of whole vectors of 16 bytes, and the elements are picked one by one on the way out of shared memory.
// x and y are those of the whole batch, t of its rows from `first` on.
#include <cstdint>

#include "ks_matmul.cuh"

constexpr int VECTOR = 16 / sizeof(Element);
constexpr int THREADS = 256;
constexpr int RUN = 4;  // vectors side by side that neighbouring threads write

struct __align__(16) Vector { Element of[VECTOR]; };

// Rows of this part of the batch that are in use.
__device__ __forceinline__ int rows_here(const int* count, int first, int rows) {
    return max(0, min(rows, rows_in_use(count, first + rows) - first));
}

// What a block turns: rows `start` to start + size of `matrices` matrices of [length, d] from number `matrix` on.
struct Unit {
    Index matrix;
    int matrices, start, size;

    __device__ Unit(Index total, int length, int group, int chunk) {
        const int chunks = (length + chunk - 1) / chunk;
        matrix = Index(blockIdx.x / chunks) * group;
        matrices = int(min(Index(group), total - matrix));
        start = int(blockIdx.x % chunks) * chunk;
        size = min(chunk, length - start);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
ks_turn_in(const Element* __restrict__ x, Element* __restrict__ t, const int* __restrict__ count,
           int* __restrict__ count_here, int first, int rows, int a, int c, int d, int group, int chunk) {
    extern __shared__ __align__(16) Element tile[];  // [matrix][k][l], as x has it
    const int used = rows_here(count, first, rows);
    if (blockIdx.x == 0 && threadIdx.x == 0) *count_here = used;
    const Unit unit(Index(used) * a, c, group, chunk);
    if (unit.matrices <= 0) return;
    const Index start = (Index(first) * a + unit.matrix) * c * d + Index(unit.start) * d;
    const Vector* from = reinterpret_cast<const Vector*>(x + start);
    const int size = unit.size * d;
#pragma unroll 4
    for (int v = threadIdx.x; v < unit.matrices * size / VECTOR; v += THREADS)
        reinterpret_cast<Vector*>(tile)[v] = from[v];
    __syncthreads();

    Element* to = t + unit.matrix * c * d + unit.start;
    const int runs = (unit.size / VECTOR + RUN - 1) / RUN, each = runs * d * RUN;
    for (int v = threadIdx.x; v < unit.matrices * each; v += THREADS) {
        const int matrix = v / each, rest = v % each;
        const int k = (rest / (d * RUN) * RUN + rest % RUN) * VECTOR, l = rest / RUN % d;
        if (k >= unit.size) continue;
        const Element* picked = tile + matrix * size + k * d + l;
        Vector out;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) out.of[e] = picked[e * d];
        *reinterpret_cast<Vector*>(to + (Index(matrix) * d + l) * c + k) = out;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
ks_turn_out(const Element* __restrict__ t, const float* __restrict__ bias, const Element* residual, Element* y,
            const int* __restrict__ count, int first, int rows, int a, int b, int d, int group, int chunk,
            int activation, float negative_slope) {
    extern __shared__ __align__(16) Element tile[];  // [matrix][l][j], rows of `pitch`: an odd number of words
    const Unit unit(Index(rows_here(count, first, rows)) * a, b, group, chunk);
    if (unit.matrices <= 0) return;
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const int pitch = chunk + 4 / int(sizeof(Element)), vectors = unit.size / VECTOR;
    const Element* from = t + unit.matrix * b * d + unit.start;
#pragma unroll 4
    for (int v = threadIdx.x; v < unit.matrices * d * vectors; v += THREADS) {
        const int line = v / vectors, j = v % vectors * VECTOR;
        const uint4 in = *reinterpret_cast<const uint4*>(from + Index(line) * b + j);
        uint32_t* to = reinterpret_cast<uint32_t*>(tile + line * pitch + j);
        to[0] = in.x, to[1] = in.y, to[2] = in.z, to[3] = in.w;
    }
    __syncthreads();

    const bool plain = !bias && !residual && activation == ACTIVATION_NONE, within = d % VECTOR == 0;
    const int each = unit.size * d / VECTOR;
#pragma unroll 2
    for (int v = threadIdx.x; v < unit.matrices * each; v += THREADS) {
        const int matrix = v / each, place = (v - matrix * each) * VECTOR;
        int j = place / d, l = place - j * d;
        const Element* picked = tile + (matrix * d + l) * pitch + j;
        Vector out;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            out.of[e] = *picked;
            picked += pitch;
            if (!within && ++l == d) l = 0, picked += 1 - d * pitch;  // the next j
        }
        const Index whole = Index(first) * a + unit.matrix + matrix;  // counted over the batch's rows and i
        const Index offset = Index(unit.start) * d + place, at = whole * b * d + offset;
        if (!plain) {
            float sums[VECTOR];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) sums[e] = to_float(out.of[e]);
            epilogue.finish(sums, (whole % a) * b * d + offset, at);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) out.of[e] = from_float<Element>(sums[e]);
        }
        *reinterpret_cast<Vector*>(y + at) = out;
    }
}
