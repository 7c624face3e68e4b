// How the portable convolutions go through a tile: offset by offset, TILE_K channels a step; for sources that say how
// large tiles and blocks are, and that a thread copies VECTOR elements of a row at a time.
#pragma once
#include "sparse_conv.cuh"

#define VECTORS (TILE_K / VECTOR)
#define GATHERS ((TILE_M * VECTORS + THREADS - 1) / THREADS)
#define WARP_N (TILE_N / WARPS_N)
#define PATCHES_M (TILE_M / WARPS_M / 16)
#define PATCHES_N (WARP_N / 16)

// Which rows a thread gathers from, step by step.
struct Steps {
    const Source &input, &shortcut;
    OffsetWalk walk;
    int offsets_left, steps;
    int offset = 0, upcoming_offset = 0, chunk = 0;
    Source source{};
    int rows[GATHERS], upcoming[GATHERS];

    static __device__ int chunks_of(const Source& source) { return (source.ci + TILE_K - 1) / TILE_K; }

    __device__ Steps(const Source& input, const Source& shortcut, const OffsetWalk& walk)
        : input(input), shortcut(shortcut), walk(walk), offsets_left(walk.total()),
          steps(walk.steps(offsets_left, chunks_of(input), chunks_of(shortcut))) {
        look_up();
    }

    // The rows of the next offset are asked for one offset ahead, so that nobody waits for them.
    __device__ void look_up() {
        if (!offsets_left) return;
        --offsets_left;
        upcoming_offset = walk.next();
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int at = threadIdx.x + i * THREADS, place = walk.place + at / VECTORS;
            upcoming[i] = at < TILE_M * VECTORS && place < walk.places ? walk.row(upcoming_offset, place) : -1;
        }
    }

    // Go on to the next offset if the channels of this one are through.
    __device__ void begin_step() {
        if (chunk * TILE_K < source.ci) return;
        chunk = 0;
        offset = upcoming_offset;
        source = offset == walk.map.volume ? shortcut : input;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) rows[i] = upcoming[i];
        look_up();
    }

    // Rows of the weight before those of this step.
    __device__ size_t rows_before() const { return ((size_t)offset * chunks_of(input) + chunk) * TILE_K; }
};

using Patch = float[WARP_N / 2];  // of 16 rows

// Where a tile of the last part puts its sums, by way of a warp's `own` shared memory, and where others keep them.
template <class RowsOf>
__device__ __forceinline__ void end_sums(float (&sums)[PATCHES_M][PATCHES_N][2][4], RowsOf rows_of, Element* own,
                                         const Output& ends, const PartSums& before, const Tiles<TILE_M, TILE_N>& tiles,
                                         int part, const Progress* progress) {
#pragma unroll
    for (int i = 0; i < PATCHES_M; ++i) {
        const WarpRows<WARP_N> mine = rows_of(i);
        Patch& patch = reinterpret_cast<Patch&>(sums[i]);
        if (!tiles.map.is_last(part)) {
            mine.keep(patch, before, part);
            continue;
        }
        mine.add_parts(patch, tiles.map, before, progress, tiles.before_last());
        mine.write(ends, patch, own);
    }
}
