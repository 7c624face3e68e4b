// Means over the points of each row, added in the order of the points.
// Launched in this order, once the counts are cleared: count_points, start_rows, list_points, order_points, row_mean. The
// points of a row are listed side by side, in whatever order they come, and then put in order: each finds out how many of
// its row come before it. That is quick for few points; where a row has many, a block finds them among all points instead.
#include "element.cuh"
#include "scan.cuh"

#ifndef ELEMENT_IN
#define ELEMENT_IN float
#define ELEMENT_OUT float
#endif

#define THREADS 256
#define LONG 1024  // points: a row of more is a whole block's
#define EACH 8     // points that a thread of that block reads at a time

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

// Calls `make` with each long row and its number of points, by whole blocks. A block has every so-manyth row, as long ones
// may be neighbours.
template <class Make>
__device__ __forceinline__ void each_long_row(const int* counts, int rows, Make make) {
    const int step = gridDim.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int first = blockIdx.x; first < rows; first += THREADS * step) {
        const int mine = first + thread * step, stop = min(rows, first + THREADS * step);
        if (!__syncthreads_or(mine < rows && counts[mine] > LONG)) continue;
        for (int row = first; row < stop; row += step)
            if (const int size = counts[row]; size > LONG) make(row, size);
    }
}

// Writes `size` points of a row in their order. All threads must call it; each reads points side by side.
__device__ __forceinline__ void order_long_row(const int* row_of_point, int points, int row, int size, int* order) {
    for (int first = 0, written = 0; written < size; first += THREADS * EACH) {
        const int mine = first + threadIdx.x * EACH;
        unsigned own = 0;  // a bit each
#pragma unroll
        for (int i = 0; i < EACH; ++i) own |= unsigned(mine + i < points && row_of_point[mine + i] == row) << i;
        int all, to = written + block_exclusive_sum<THREADS>(__popc(own), &all);
        for (; own; own &= own - 1) order[to++] = mine + __ffs(own) - 1;
        written += all;
    }
}

// order int32 [points]: the same, the points of each row in their order.
extern "C" __global__ void __launch_bounds__(THREADS)
order_points(const int* __restrict__ row_of_point, const int* __restrict__ count, const int* __restrict__ rows,
             const int* __restrict__ starts, const int* __restrict__ counts, const int* __restrict__ listed,
             int* __restrict__ order) {
    const int p = blockIdx.x * THREADS + threadIdx.x, points = *count, n = *rows;
    const int row = p < points ? row_at(row_of_point, p, n) : -1, size = row < 0 ? 0 : counts[row];
    if (row >= 0 && size <= LONG) {
        const int start = starts[row];
        int before = 0;
#pragma unroll 8
        for (int i = 0; i < size; ++i) before += listed[start + i] < p;
        order[start + before] = p;
    }
    each_long_row(counts, n, [&](int long_row, int all) {
        order_long_row(row_of_point, points, long_row, all, order + starts[long_row]);
    });
}

__device__ inline void write_mean(float sum, int size, ELEMENT_OUT* to) {
    *to = from_float<ELEMENT_OUT>(size ? __fdiv_rn(sum, (float)size) : sum);
}

// The mean over `size` points of x, and zeros past its channels, by a whole block: all threads read, and of those that have
// a channel the first adds up in the order of the points.
__device__ __forceinline__ void long_row_mean(const ELEMENT_IN* x, int x_pitch, const int* order, int size,
                                              ELEMENT_OUT* y, int width, int channels) {
    __shared__ float waiting[EACH * THREADS];
    const int across = blockDim.x, together = EACH * blockDim.y;
    for (int at = 0; at < width; at += across) {
        const int c = at + threadIdx.x;
        float sum = 0.0f;
        for (int first = 0; first < size; first += together) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
                const int place = i * blockDim.y + threadIdx.y, point = first + place;
                if (c < channels && point < size)
                    waiting[place * across + threadIdx.x] = to_float(x[(size_t)order[point] * x_pitch + c]);
            }
            __syncthreads();
#pragma unroll 8
            for (int i = 0; !threadIdx.y && c < channels && i < min(together, size - first); ++i)
                sum += waiting[i * across + threadIdx.x];
            __syncthreads();
        }
        if (!threadIdx.y && c < width) write_mean(sum, size, y + c);
    }
}

// y[row] = mean over its points, added in their order, or its first point alone; zeros for a row without points.
// x, y: `pitch` elements from row to row, of which `width` of y are written: `channels`, and then zeros.
// Six blocks a multiprocessor, as the compiler would spill rather than make room for fewer.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
row_mean(const ELEMENT_IN* __restrict__ x, int x_pitch, const int* __restrict__ order, const int* __restrict__ starts,
         const int* __restrict__ counts, const int* __restrict__ rows, int first_only, ELEMENT_OUT* __restrict__ y,
         int y_pitch, int width, int channels) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y, n = *rows;
    const int all = row < n ? counts[row] : 0, size = first_only ? min(all, 1) : all;
    if (row < n && size <= LONG) {
        const int start = starts[row], stop = start + size;
        for (int c = threadIdx.x; c < width; c += blockDim.x) {
            float sum = 0.0f;
#pragma unroll 4
            for (int i = start; c < channels && i < stop; ++i) sum += to_float(x[(size_t)order[i] * x_pitch + c]);
            write_mean(sum, size, y + (size_t)row * y_pitch + c);
        }
    }
    if (first_only) return;
    each_long_row(counts, n, [&](int long_row, int points) {
        ELEMENT_OUT* to = y + (size_t)long_row * y_pitch;
        long_row_mean(x, x_pitch, order + starts[long_row], points, to, width, channels);
    });
}
