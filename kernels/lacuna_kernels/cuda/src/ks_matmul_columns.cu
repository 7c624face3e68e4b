// A Kronecker-sparse factor with thin blocks (see ks_matmul.cuh): one thread makes one column of y for ROWS rows.
// Neighbouring threads make neighbouring columns, so that reads and writes are coalesced whatever a, b, c and d are.
#include "ks_matmul.cuh"

#ifndef ROWS
#define ROWS 8
#endif

extern "C" __global__ void __launch_bounds__(256)
ks_matmul_columns(const Element* __restrict__ x, const Element* __restrict__ values, const float* __restrict__ bias,
                  const Element* residual, Element* y, const int* __restrict__ count, int rows, int a, int b, int c,
                  int d, int activation, float negative_slope) {
    const Pattern p{a, b, c, d};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const Index width_in = p.width_in(), width_out = p.width_out();
    rows = rows_in_use(count, rows);
    const Index strips = (rows + ROWS - 1) / ROWS;

    for (Index unit = Index(blockIdx.x) * blockDim.x + threadIdx.x; unit < strips * width_out;
         unit += Index(gridDim.x) * blockDim.x) {
        const int row = int(unit / width_out) * ROWS;
        const Index column = unit % width_out;
        const Index ij = column / d, l = column % d, i = ij / b;
        const Element* w = values + ij * c * d + l;
        const Element* from = x + row * width_in + i * c * d + l;
        float sums[ROWS] = {};
        for (int k = 0; k < c; ++k) {
            const float weight = to_float(w[Index(k) * d]);
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if (row + r < rows) sums[r] = fmaf(to_float(from[r * width_in + Index(k) * d]), weight, sums[r]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Index at = (row + r) * width_out + column;
            if (row + r < rows) epilogue.write(sums[r], column, at);
        }
    }
}
