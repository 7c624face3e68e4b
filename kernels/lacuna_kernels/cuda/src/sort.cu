// One pass of a stable radix sort of (key, value) pairs by up to 9 bits of the key: count digits by tile, [scan.cu], move.
// counts int32 [512, tiles], digit by digit; tiles past *count count nothing, so that the scan may run over all. Few
// tiles are not scanned: every block adds up what it needs of counts [tiles, 512].
// A key of -1 has nothing but the highest digits, and so sorts last.
#include "scan.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROUNDS 8  // of 32 pairs, by warp
#define TILE (THREADS * ROUNDS)
#define DIGITS 512  // of which a thread has two, side by side

__device__ inline int digit_of(int key, int shift, int bits) { return (key >> shift) & ((1 << bits) - 1); }

extern "C" __global__ void __launch_bounds__(THREADS)
sort_count(const int* __restrict__ keys, const int* __restrict__ count, int shift, int bits, int scanned,
           int* __restrict__ counts) {
    __shared__ int found[DIGITS];
    found[threadIdx.x] = found[threadIdx.x + THREADS] = 0;
    __syncthreads();
    const int n = *count, start = blockIdx.x * TILE;
    for (int i = start + threadIdx.x; i < min(n, start + TILE); i += THREADS)
        atomicAdd(&found[digit_of(keys[i], shift, bits)], 1);
    __syncthreads();
    for (int digit = threadIdx.x; digit < DIGITS; digit += THREADS)
        counts[scanned ? digit * gridDim.x + blockIdx.x : blockIdx.x * DIGITS + digit] = found[digit];
}

// The first places of this thread's digits in this tile: after all lower digits, and those of earlier tiles. Tiles past
// the first `tiles` are empty.
__device__ inline int2 first_places(const int* __restrict__ counts, int tiles) {
    int2 before = {0, 0}, sum = {0, 0};
#pragma unroll 16
    for (int tile = 0; tile < tiles; ++tile) {
        const int* two = counts + tile * DIGITS + 2 * threadIdx.x;
        const int2 found = {two[0], two[1]};
        if (tile < blockIdx.x) before.x += found.x, before.y += found.y;
        sum.x += found.x, sum.y += found.y;
    }
    int all;
    const int lower = block_exclusive_sum<THREADS>(sum.x + sum.y, &all);
    return {before.x + lower, before.y + lower + sum.x};
}

// places: the running sum of counts if they were scanned, or counts. Without values a pair's value is its index. Each
// warp takes ROUNDS*32 pairs in a row; a pair's place is that of its tile and digit, plus equal digits of earlier warps,
// plus those before it.
extern "C" __global__ void __launch_bounds__(THREADS)
sort_move(const int* __restrict__ keys, const int* __restrict__ values, const int* __restrict__ count, int shift,
          int bits, int scanned, const int* __restrict__ places, int* __restrict__ keys_out,
          int* __restrict__ values_out) {
    __shared__ int place[WARPS][DIGITS];
    const int n = *count, start = blockIdx.x * TILE;
    if (start >= n) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = 2 * threadIdx.x;
    for (int w = 0; w < WARPS; ++w) place[w][own] = place[w][own + 1] = 0;
    __syncthreads();

    int key[ROUNDS], value[ROUNDS], rank[ROUNDS];
    const int first = start + warp * ROUNDS * 32 + lane;
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int from = first + round * 32;
        key[round] = from < n ? keys[from] : 0;
        value[round] = values && from < n ? values[from] : from;
    }
    const int* scan = places + own * gridDim.x + blockIdx.x;
    int2 next = scanned ? int2{scan[0], scan[gridDim.x]} : first_places(places, (n + TILE - 1) / TILE);
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const bool here = first + round * 32 < n;
        const int digit = here ? digit_of(key[round], shift, bits) : DIGITS;
        const unsigned equal = __match_any_sync(0xffffffffu, digit);
        const int before = here ? place[warp][digit] : 0;
        __syncwarp();
        if (here && lane == __ffs(equal) - 1) place[warp][digit] = before + __popc(equal);
        __syncwarp();
        rank[round] = before + __popc(equal & ((1u << lane) - 1));
    }
    __syncthreads();
    // this thread's digits: counts become places, warp by warp
    for (int w = 0; w < WARPS; ++w) {
        const int2 found = {place[w][own], place[w][own + 1]};
        place[w][own] = next.x, place[w][own + 1] = next.y;
        next.x += found.x, next.y += found.y;
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        if (first + round * 32 >= n) continue;
        const int to = place[warp][digit_of(key[round], shift, bits)] + rank[round];
        keys_out[to] = key[round];
        values_out[to] = value[round];
    }
}
