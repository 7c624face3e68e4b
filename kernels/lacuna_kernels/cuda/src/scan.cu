// Exclusive running sum of int32 [n], in three launches: sums of tiles, running sum of those, running sums in tiles.
// Of few tiles, as many as a block has threads, the second is left out: every block adds up what it needs.
// n is *count if there is a count, else `length`; values past it are neither read nor written.
#include "scan.cuh"

#define THREADS 256
#define ITEMS 4
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

// total [1], if there is one, becomes the sum of all values, at most `limit`; more than that raises the flag `overflow`.
__device__ inline void tell_total(int sum, int* total, int limit, int* overflow) {
    if (!total) return;
    *total = min(sum, limit);
    if (sum > limit) *overflow = 1;
}

// One block.
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
    if (threadIdx.x == 0) tell_total(before, total, limit, overflow);
}

// running may be values. sums: the running sums of the tiles, or if they are few their sums.
extern "C" __global__ void __launch_bounds__(THREADS)
scan_tiles(const int* values, const int* __restrict__ count, int length, const int* __restrict__ sums, int few,
           int* running, int* __restrict__ total, int limit, int* __restrict__ overflow) {
    const int n = length_of(count, length), start = blockIdx.x * TILE, tiles = (n + TILE - 1) / TILE;
    int before = 0;
    if (few) {
        const int tile = threadIdx.x, last = max(0, min(tiles, (int)blockIdx.x + 1));
        int up_to;
        const int here = tile < last ? sums[tile] : 0;
        block_exclusive_sum<THREADS>(here, &up_to);
        if (threadIdx.x == 0 && (int)blockIdx.x == max(0, tiles - 1)) tell_total(up_to, total, limit, overflow);
        before = up_to;
    }
    if (start >= n) return;
    const int first = start + threadIdx.x * ITEMS;
    int mine[ITEMS], sum = 0, all;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        mine[i] = first + i < n ? values[first + i] : 0;
        sum += mine[i];
    }
    const int here = block_exclusive_sum<THREADS>(sum, &all);
    before = (few ? before - all : sums[blockIdx.x]) + here;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (first + i < n) running[first + i] = before;
        before += mine[i];
    }
}
