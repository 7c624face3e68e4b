// Candidates in the order in which they come, of which the first of each are sites and get the next rows.
#pragma once

#include "hash.cuh"
#include "scan.cuh"

#define THREADS 256
#define TURNS 4
#define TILE (THREADS * TURNS)  // candidates of a block

struct __align__(16) Cells {
    int rows[8];
};

__device__ inline Cells no_cells() { return {{-1, -1, -1, -1, -1, -1, -1, -1}}; }

// The room for the sites of a level: their number is told, at most `capacity`, else the flag is raised.
struct Room {
    int* count;
    int capacity;
    int* overflow;

    __device__ void tell(int number) const {
        *count = min(number, capacity);
        if (number > capacity) *overflow = 1;
    }
};

// Calls visit(candidate, row) for the first candidate of each site, of n; row is -1 if there is no room for it.
// firsts, sums: as count_firsts makes them (sites.cu).
template <class Visit>
__device__ inline void number_firsts(int n, const unsigned* __restrict__ firsts, const int* __restrict__ sums,
                                     const Room& room, Visit visit) {
    __shared__ unsigned words[TILE / 32];
    __shared__ int before_word[TILE / 32];
    const int tiles = max(1, (n + TILE - 1) / TILE), start = blockIdx.x * TILE;
    if (blockIdx.x >= tiles) return;
    int earlier = 0, before, all;
#pragma unroll 8
    for (int tile = threadIdx.x; tile < blockIdx.x; tile += THREADS) earlier += sums[tile];
    const bool mine = threadIdx.x < TILE / 32 && start + 32 * (int)threadIdx.x < n;
    const unsigned word = mine ? firsts[start / 32 + threadIdx.x] : 0;
    block_exclusive_sum<THREADS>(earlier, &before);
    const int here = block_exclusive_sum<THREADS>(__popc(word), &all);
    if (threadIdx.x < TILE / 32) words[threadIdx.x] = word, before_word[threadIdx.x] = before + here;
    if (threadIdx.x == 0 && blockIdx.x == tiles - 1) room.tell(before + all);
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int at = turn * THREADS + threadIdx.x, lane = threadIdx.x % 32;
        const unsigned word = words[at / 32];
        const int row = before_word[at / 32] + __popc(word & ((1u << lane) - 1));
        if (word >> lane & 1) visit(start + at, row < room.capacity ? row : -1);
    }
}
