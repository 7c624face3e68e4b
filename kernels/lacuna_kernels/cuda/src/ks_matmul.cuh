// What the kernels for one Kronecker-sparse factor share. The factor K has the support kron(I_a, ones(b, c), I_d), so
//   y[n, i, j, l] = f(sum over k of x[n, i, k, l] * values[i, j, k, l] + bias[i, j, l] + residual[n, i, j, l])
// for x [rows, a*c*d], values [a, b, c, d], y and residual [rows, a*b*d] of ELEMENT, and bias [a*b*d] of float.
// Sums run over k upwards from 0 in fp32, in every tile, so that the choice of a tile never changes a result.
#pragma once

#include "activation.cuh"
#include "element.cuh"

// Threads that a multiprocessor should have room for, with their registers.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 1000 || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
constexpr int RESIDENT_THREADS = 256;  // 512 would spill
#else
constexpr int RESIDENT_THREADS = 512;
#endif

using Element = ELEMENT;
using Index = long long;  // element counts may pass 2^31

struct Pattern {
    int a, b, c, d;

    __device__ Index width_in() const { return Index(a) * c * d; }
    __device__ Index width_out() const { return Index(a) * b * d; }
};

// Null pointers stand for no bias and no residual; residual may be y itself.
struct Epilogue {
    const float* bias;
    const Element* residual;
    Element* y;
    int activation;
    float negative_slope;

    // Finish the sums for N neighbouring columns of y, from `column` on; they lie in y and residual from `at` on.
    template <int N>
    __device__ __forceinline__ void finish(float (&sums)[N], Index column, Index at) const {
#pragma unroll
        for (int v = 0; v < N; ++v) {
            if (bias) sums[v] += bias[column + v];
            if (residual) sums[v] += to_float(residual[at + v]);
        }
        if (activation == ACTIVATION_NONE) return;
#pragma unroll
        for (int v = 0; v < N; ++v) sums[v] = activate(sums[v], activation, negative_slope);
    }

    __device__ __forceinline__ void write(float sum, Index column, Index at) const {
        float sums[1] = {sum};
        finish(sums, column, at);
        y[at] = from_float<Element>(sums[0]);
    }
};

// Rows in use: all of them, or as many as the device counted.
__device__ __forceinline__ int rows_in_use(const int* count, int rows) {
    return count ? min(*count, rows) : rows;
}

// One tile of y, rows slowest, so that a strip of rows is finished before the next is read.
struct TileIndex {
    int row, i, j, l;

    __device__ static Index parts(int size, int tile) { return (Index(size) + tile - 1) / tile; }

    __device__ static Index tiles(int rows, const Pattern& p, int tile_n, int tile_b, int tile_d) {
        return parts(rows, tile_n) * p.a * parts(p.b, tile_b) * parts(p.d, tile_d);
    }

    __device__ TileIndex(Index tile, const Pattern& p, int tile_n, int tile_b, int tile_d) {
        const Index across_b = parts(p.b, tile_b), across_d = parts(p.d, tile_d);
        l = int(tile % across_d) * tile_d;
        tile /= across_d;
        j = int(tile % across_b) * tile_b;
        tile /= across_b;
        i = int(tile % p.a);
        row = int(tile / p.a) * tile_n;
    }
};
