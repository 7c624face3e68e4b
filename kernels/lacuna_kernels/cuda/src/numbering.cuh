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

// Which candidates are the first of their site, a bit for each, and how many of each tile are.
struct Firsts {
    const unsigned* bits;  // [tiles, TILE / 32]
    const int* sums;       // [tiles]
};

// The room for the sites of a level: their number is told, at most `capacity`, else the flag is raised. The cells of
// their blocks become -1.
struct Room {
    int* count;
    int capacity;
    int* overflow;
    Site* sites;
    Cells* cells;

    __device__ void tell(int number) const {
        *count = min(number, capacity);
        if (number > capacity) *overflow = 1;
    }
    __device__ void put(int row, Site site) const { sites[row] = site, cells[row] = no_cells(); }
};

// Calls visit(candidate, row) for the first candidate of each site, of n; row is -1 if there is no room for it.
template <class Visit>
__device__ inline void number_firsts(int n, const Firsts& firsts, const Room& room, Visit visit) {
    __shared__ unsigned words[TILE / 32];
    __shared__ int before_word[TILE / 32];
    __shared__ int found[TILE];
    const int tiles = max(1, (n + TILE - 1) / TILE), start = blockIdx.x * TILE;
    if (blockIdx.x >= tiles) return;
    int earlier = 0, before, all;
#pragma unroll 8
    for (int tile = threadIdx.x; tile < blockIdx.x; tile += THREADS) earlier += firsts.sums[tile];
    const bool mine = threadIdx.x < TILE / 32 && start + 32 * (int)threadIdx.x < n;
    const unsigned word = mine ? firsts.bits[start / 32 + threadIdx.x] : 0;
    block_exclusive_sum<THREADS>(earlier, &before);
    const int here = block_exclusive_sum<THREADS>(__popc(word), &all);
    if (threadIdx.x < TILE / 32) words[threadIdx.x] = word, before_word[threadIdx.x] = here;
    if (threadIdx.x == 0 && blockIdx.x == tiles - 1) room.tell(before + all);
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int at = turn * THREADS + threadIdx.x, lane = threadIdx.x % 32;
        const unsigned bits = words[at / 32];
        if (bits >> lane & 1) found[before_word[at / 32] + __popc(bits & ((1u << lane) - 1))] = start + at;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < all; i += THREADS) visit(found[i], before + i < room.capacity ? before + i : -1);
}
