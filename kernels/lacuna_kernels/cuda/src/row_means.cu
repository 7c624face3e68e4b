// Means over the points of each row, once the points are sorted by row: row_starts, then row_mean.
#include "element.cuh"

#ifndef ELEMENT_IN
#define ELEMENT_IN float
#define ELEMENT_OUT float
#endif

#define THREADS 256

// starts [rows + 1]: where the points of each row begin among the sorted keys. A key of -1 belongs to no row; it is the
// largest unsigned number, and so sorts last.
extern "C" __global__ void __launch_bounds__(THREADS)
row_starts(const unsigned* __restrict__ keys, const int* __restrict__ count, const int* __restrict__ rows,
           int* __restrict__ starts) {
    const int place = blockIdx.x * THREADS + threadIdx.x, n = *count;
    if (place > n) return;
    const unsigned all = *rows, last = place < n ? min(keys[place], all) : all;
    for (unsigned row = place ? min(keys[place - 1], all) + 1 : 0; row <= last; ++row) starts[row] = place;
}

// y[row] = mean over its points, added in their order, or its first point alone; zeros for a row without points.
// order: the points sorted by row. x, y: `pitch` elements from row to row, of which `width` of y are written: `channels`,
// and then zeros.
extern "C" __global__ void __launch_bounds__(THREADS)
row_mean(const ELEMENT_IN* __restrict__ x, int x_pitch, const int* __restrict__ order, const int* __restrict__ starts,
         const int* __restrict__ rows, int first_only, ELEMENT_OUT* __restrict__ y, int y_pitch, int width, int channels) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= *rows) return;
    const int start = starts[row], size = starts[row + 1] - start, stop = start + (first_only ? min(size, 1) : size);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 4
        for (int i = start; c < channels && i < stop; ++i) sum += to_float(x[(size_t)order[i] * x_pitch + c]);
        if (stop > start) sum = __fdiv_rn(sum, (float)(stop - start));
        y[(size_t)row * y_pitch + c] = from_float<ELEMENT_OUT>(sum);
    }
}
