// Means over the points of each row, added in the order of the points.
// Launched in this order, once the counts are cleared: count_points, start_rows, list_points, order_points, row_mean. The
// points of a row are listed side by side, in whatever order they come, and then put in order: each finds out how many of
// its row come before it. Rows are mostly of few points; of many, it takes as long as all of them read all of them.
#include "element.cuh"
#include "scan.cuh"

#ifndef ELEMENT_IN
#define ELEMENT_IN float
#define ELEMENT_OUT float
#endif

#define THREADS 256

// The row that a point belongs to, -1 if that is not among the rows in use.
__device__ inline int row_at(const int* row_of_point, int point, int rows) {
    const int row = row_of_point[point];
    return row < rows ? max(row, -1) : -1;
}

// counts int32 [rows], from 0: how many points each row has. ranks int32 [points]: how many of its row a point has found
// counted.
extern "C" __global__ void __launch_bounds__(THREADS)
count_points(const int* __restrict__ row_of_point, const int* __restrict__ count, const int* __restrict__ rows,
             int* __restrict__ counts, int* __restrict__ ranks) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p >= *count) return;
    const int row = row_at(row_of_point, p, *rows);
    if (row >= 0) ranks[p] = atomicAdd(counts + row, 1);
}

// starts int32 [rows]: where the list of each row begins. taken [1], from 0: the room that blocks have taken for theirs,
// in whatever order they come.
extern "C" __global__ void __launch_bounds__(THREADS)
start_rows(const int* __restrict__ counts, const int* __restrict__ rows, int* __restrict__ taken,
           int* __restrict__ starts) {
    __shared__ int start;
    const int row = blockIdx.x * THREADS + threadIdx.x, n = *rows;
    if (int(blockIdx.x) * THREADS >= n) return;
    int all;
    const int before = block_exclusive_sum<THREADS>(row < n ? counts[row] : 0, &all);
    if (threadIdx.x == 0) start = atomicAdd(taken, all);
    __syncthreads();
    if (row < n) starts[row] = start + before;
}

// listed int32 [points]: those of each row from its start on.
extern "C" __global__ void __launch_bounds__(THREADS)
list_points(const int* __restrict__ row_of_point, const int* __restrict__ count, const int* __restrict__ rows,
            const int* __restrict__ starts, const int* __restrict__ ranks, int* __restrict__ listed) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p >= *count) return;
    const int row = row_at(row_of_point, p, *rows);
    if (row >= 0) listed[starts[row] + ranks[p]] = p;
}

// order int32 [points]: the same, the points of each row in their order.
extern "C" __global__ void __launch_bounds__(THREADS)
order_points(const int* __restrict__ row_of_point, const int* __restrict__ count, const int* __restrict__ rows,
             const int* __restrict__ starts, const int* __restrict__ counts, const int* __restrict__ listed,
             int* __restrict__ order) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p >= *count) return;
    const int row = row_at(row_of_point, p, *rows);
    if (row < 0) return;
    const int start = starts[row], size = counts[row];
    int before = 0;
#pragma unroll 8
    for (int i = 0; i < size; ++i) before += listed[start + i] < p;
    order[start + before] = p;
}

// y[row] = mean over its points, added in their order, or its first point alone; zeros for a row without points.
// x, y: `pitch` elements from row to row, of which `width` of y are written: `channels`, and then zeros.
extern "C" __global__ void __launch_bounds__(THREADS)
row_mean(const ELEMENT_IN* __restrict__ x, int x_pitch, const int* __restrict__ order, const int* __restrict__ starts,
         const int* __restrict__ counts, const int* __restrict__ rows, int first_only, ELEMENT_OUT* __restrict__ y,
         int y_pitch, int width, int channels) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= *rows) return;
    const int start = starts[row], size = counts[row], stop = start + (first_only ? min(size, 1) : size);
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 4
        for (int i = start; c < channels && i < stop; ++i) sum += to_float(x[(size_t)order[i] * x_pitch + c]);
        if (stop > start) sum = __fdiv_rn(sum, (float)(stop - start));
        y[(size_t)row * y_pitch + c] = from_float<ELEMENT_OUT>(sum);
    }
}
