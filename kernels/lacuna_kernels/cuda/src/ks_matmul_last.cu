// A Kronecker-sparse factor batch-size-last, x [a*c*d, n] and y [a*b*d, n], by fused multiply-adds in fp32, for any
// pattern, any n and any alignment (see ks_matmul.cuh for the meaning): the way that always fits.
//
// Threads of a warp make neighbouring columns n of y, so that reads and writes are coalesced; a thread makes JS rows j
// of one (i, l), whose values are the same for the whole warp.
#include "ks_matmul.cuh"

#ifndef JS
#define JS 8
#endif

extern "C" __global__ void __launch_bounds__(256, 2)
ks_matmul_last(const Element* __restrict__ x, const Element* __restrict__ values, const float* __restrict__ bias,
               const Element* residual, Element* y, const int* __restrict__ count, int rows, int a, int b, int c, int d,
               int activation, float negative_slope) {
    const Pattern p{a, b, c, d};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const Index pitch = rows;  // rows of x and y, whatever their number in use
    const int used = rows_in_use(count, rows), strips_j = (b + JS - 1) / JS;
    const Index strips_n = (Index(used) + blockDim.x - 1) / blockDim.x;

    for (Index unit = blockIdx.x; unit < strips_n * strips_j * a * d; unit += gridDim.x) {
        const Index n = unit % strips_n * blockDim.x + threadIdx.x;
        const Index which = unit / strips_n;
        const int j0 = int(which % strips_j) * JS, l = int(which / strips_j % d);
        const Index i = which / strips_j / d;
        if (n >= used) continue;
        const Element* from = x + (i * c * d + l) * pitch + n;
        const Element* w[JS];  // rows past b are those of the last, and nobody writes their sums
#pragma unroll
        for (int j = 0; j < JS; ++j) w[j] = values + (i * b + min(j0 + j, b - 1)) * c * d + l;
        float sums[JS] = {};
#pragma unroll 1
        for (int k = 0; k < c; ++k) {
            const float value = to_float(from[Index(k) * d * pitch]);
#pragma unroll
            for (int j = 0; j < JS; ++j) sums[j] = fmaf(value, to_float(w[j][Index(k) * d]), sums[j]);
        }
#pragma unroll
        for (int j = 0; j < JS; ++j) {
            const Index row = (i * b + j0 + j) * d + l;
            if (j0 + j < b) epilogue.write(sums[j], row, row * pitch + n);
        }
    }
}
