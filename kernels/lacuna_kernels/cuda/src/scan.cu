// Exclusive running sum of int32 [n], in three launches: sums of tiles, running sum of those, running sums in tiles.
// n is *count if there is a count, else `length`; values past it are neither read nor written.
#include "scan.cuh"

#define THREADS 256
#define ITEMS 16
#define TILE (THREADS * ITEMS)
#define WIDE 1024

__device__ inline int length_of(const int* count, int length) { return count ? min(*count, length) : length; }

extern "C" __global__ void __launch_bounds__(THREADS)
scan_tile_sums(const int* __restrict__ values, const int* __restrict__ count, int length, int* __restrict__ sums) {
    const int n = length_of(count, length), start = blockIdx.x * TILE;
    if (start >= n) return;
    int sum = 0, total;
    for (int i = threadIdx.x; i < TILE; i += THREADS)
        if (start + i < n) sum += values[start + i];
    block_exclusive_sum<THREADS>(sum, &total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// One block. total [1] becomes the sum of all values, at most `limit`; more than the limit raises the flag `overflow`.
extern "C" __global__ void __launch_bounds__(WIDE)
scan_sums(const int* __restrict__ count, int length, int* __restrict__ sums, int* __restrict__ total, int limit,
          int* __restrict__ overflow) {
    const int tiles = (length_of(count, length) + TILE - 1) / TILE;
    int before = 0;
    for (int start = 0; start < tiles; start += WIDE) {
        const int tile = start + threadIdx.x;
        int sum;
        const int here = block_exclusive_sum<WIDE>(tile < tiles ? sums[tile] : 0, &sum);
        if (tile < tiles) sums[tile] = before + here;
        before += sum;
    }
    if (threadIdx.x || !total) return;
    *total = min(before, limit);
    if (before > limit) *overflow = 1;
}

// running may be values.
extern "C" __global__ void __launch_bounds__(THREADS)
scan_tiles(const int* values, const int* __restrict__ count, int length, const int* __restrict__ sums, int* running) {
    const int n = length_of(count, length), start = blockIdx.x * TILE;
    if (start >= n) return;
    const int first = start + threadIdx.x * ITEMS;
    int mine[ITEMS], sum = 0, total;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        mine[i] = first + i < n ? values[first + i] : 0;
        sum += mine[i];
    }
    int before = sums[blockIdx.x] + block_exclusive_sum<THREADS>(sum, &total);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i < n) running[first + i] = before;
        before += mine[i];
    }
}
