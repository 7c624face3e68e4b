// The tiles of ks_matmul_halves.cu, where things are in a block's memory, and the warps that fill the stages. See there
// for the idea.
#pragma once

#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "lane_copies.cuh"
#include "layout.cuh"
#include "team.cuh"

constexpr int N = COLUMNS, UNITS = PASSES * RUN;  // a unit: 64 rows and one l of a group
constexpr int R = 64 * PASSES * GROUPS_N, J = N * GROUPS_B, L = RUN * GROUPS_D;
constexpr int CONSUMERS = 128 * GROUPS_N * GROUPS_B * GROUPS_D, PRODUCERS = 128;
constexpr int THREADS = CONSUMERS + PRODUCERS, START_REGISTERS = 65536 / THREADS / 8 * 8;
constexpr int K = 16;

// Floats from one row of x to the next in shared memory, so that neighbouring rows lie in different banks.
constexpr int row_pitch(int pitch) {
    const int banks = L % 8 == 0 ? 4 : L == 4 ? 16 : L == 2 ? 8 : 12;
    while (pitch % 32 != banks) pitch += 4;
    return pitch;
}

constexpr int PITCH_X = row_pitch(K * L);
constexpr int X_BYTES = 4 * R * PITCH_X;
constexpr int HALF_BYTES = 8 * K * 2, EIGHT_BYTES = HALVES * HALF_BYTES;  // 8 j of one l, one step; with all halves
constexpr int RUN_BYTES = J / 8 * EIGHT_BYTES;                            // all j of one l
constexpr int W_AT = X_BYTES, SCALE_AT = W_AT + L * RUN_BYTES, BIAS_AT = SCALE_AT + 4 * J * L;
constexpr int STAGE_BYTES = (BIAS_AT + 4 * J * L + 127) / 128 * 128;
constexpr int TEAM = 32 * GROUPS_D;  // warps that share rows and j: they write all l together, 8 EIGHTS j at a time
constexpr int EIGHTS = L < 4 ? 2 : 1;  // of j that are laid out at once
constexpr bool FOURS = L == 3;  // whether a lane has four neighbouring j of 16, or else every fourth
constexpr int PITCH_Y = 8 * EIGHTS * L, Y_PASS = 16 * PITCH_Y, Y_BUFFER = PASSES * Y_PASS;  // floats
constexpr bool SWIZZLED_Y = PITCH_Y == 32;  // as the copy engine does, against bank conflicts
constexpr int STAGES_AT = 128, Y_AT = (STAGES_AT + STAGES * STAGE_BYTES + 1023) / 1024 * 1024;
#ifdef SHARED_BYTES
static_assert(SHARED_BYTES >= Y_AT + 4 * (CONSUMERS / TEAM) * BUFFERS * Y_BUFFER, "too little memory");
#endif

// Which stage of the ring is next; `full` and `empty` are its barriers.
struct Ring {
    uint32_t full, empty, parity;
    int slot = 0;

    __device__ __forceinline__ uint32_t filled() const { return full + 8 * slot; }
    __device__ __forceinline__ uint32_t emptied() const { return empty + 8 * slot; }
    __device__ __forceinline__ void next() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
};

struct Tile {
    int row, i, j, l;
};

// Where in a pass over y an element lies, at `at` of a row.
__device__ __forceinline__ int place_of_y(int row, int at) {
    return row * PITCH_Y + (SWIZZLED_Y ? at ^ row % 8 * 4 : at);
}

// Sums of one group, by unit, as wgmma hands them out: for each 8 columns, row lane / 4 (+ 8 for the last two) and the
// j of `column_of`, the first or the second of two.
struct Sums {
    float of[UNITS][N / 2];
};

// Which j a lane has among the n-th 8 columns: those that the host has put there.
__device__ __forceinline__ int column_of(int lane, int n, int second) {
    return FOURS ? n / 2 * 16 + lane % 4 * 4 + n % 2 * 2 + second : n * 8 + second * 4 + lane % 4;
}

// What is multiplied, and how it is cut into tiles: neighbouring blocks read the same x for other j, and then that of
// neighbouring l, so that whole lines are read and written at about the same time.
struct Work {
    Pattern p;
    int rows;

    __device__ static int parts(int size, int by) { return (size + by - 1) / by; }
    __device__ int steps() const { return parts(p.c, K); }
    __device__ int eights() const { return FOURS ? 2 * parts(p.b, 16) : parts(p.b, 8); }
    __device__ int tiles() const { return parts(rows, R) * p.a * parts(p.b, J) * parts(p.d, L); }

    __device__ Tile tile(int index) const {
        const int across_j = parts(p.b, J), across_l = parts(p.d, L);
        Tile tile;
        tile.j = index % across_j * J;
        index /= across_j;
        tile.l = index % across_l * L;
        index /= across_l;
        tile.i = index % p.a;
        tile.row = index / p.a * R;
        return tile;
    }
};

// Whether rows of [k][l] may be moved 16 bytes at once: all runs that a tile takes start and end at multiples.
__device__ __forceinline__ bool whole_vectors(const void* data, Index row, Index block, int d) {
    const bool runs = L % 4 == 0 ? d % 4 == 0 : d == L;
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row % 4 == 0 && block % 4 == 0 && runs;
}

struct Sources {
    const float* x;
    const char* packed;   // [a][d][steps][eights] of EIGHT_BYTES
    const float* scale;   // [a*b*d]: what sums are multiplied by at the end
    const float* bias;    // [a*b*d] or null
    bool vectors;
};

// Copy the rows of a tile for the 16 k from `k` on, as [row][k][l].
__device__ __forceinline__ void copy_rows(const Work& work, const Sources& from, const Tile& tile, int k,
                                          uint32_t stage) {
    constexpr int IN_ROW = K * L / 4, AT_ONCE = PRODUCERS / IN_ROW, ROUNDS = (R + AT_ONCE - 1) / AT_ONCE;
    const int thread = threadIdx.x - CONSUMERS;
    const int first = thread / IN_ROW, at = thread % IN_ROW * 4;
    if (PRODUCERS % IN_ROW != 0 && first >= AT_ONCE) return;
    const Index pitch = work.p.width_in();
    const int left = work.rows - tile.row - first;
    const float* source = from.x + (tile.row + first) * pitch + (Index(tile.i) * work.p.c + k) * work.p.d + tile.l;
    uint32_t to = stage + 4 * (first * PITCH_X + at);
    if (from.vectors) {
        const bool there = k + at / L < work.p.c && tile.l + at % L < work.p.d;
        source += Index(at / L) * work.p.d + at % L;
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const bool wanted = there && round * AT_ONCE < left;
            if (R % AT_ONCE == 0 || round * AT_ONCE + first < R)
                copy_16_bytes(to + round * AT_ONCE * PITCH_X * 4, wanted ? source : from.x, wanted);
            source += AT_ONCE * pitch;
        }
    } else {
#pragma unroll 1
        for (int round = 0; round * AT_ONCE + first < R; ++round) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int kk = (at + e) / L, l = (at + e) % L;
                const bool wanted = round * AT_ONCE < left && k + kk < work.p.c && tile.l + l < work.p.d;
                copy_4_bytes(to + 4 * e, wanted ? source + Index(kk) * work.p.d + l : from.x, wanted);
            }
            source += AT_ONCE * pitch;
            to += AT_ONCE * PITCH_X * 4;
        }
    }
}

// Copy what the columns of a tile are multiplied by, and their bias, as [j][l].
__device__ __forceinline__ void copy_columns(const Work& work, const Sources& from, const Tile& tile, uint32_t stage) {
#pragma unroll 1
    for (int at = threadIdx.x - CONSUMERS; at < J * L; at += PRODUCERS) {
        const int j = tile.j + at / L, l = tile.l + at % L;
        const bool there = j < work.p.b && l < work.p.d;
        const Index column = there ? (Index(tile.i) * work.p.b + j) * work.p.d + l : 0;
        copy_4_bytes(stage + SCALE_AT + 4 * at, from.scale + column, there);
        if (from.bias) copy_4_bytes(stage + BIAS_AT + 4 * at, from.bias + column, there);
    }
}

__device__ __forceinline__ void produce(const Work& work, const Sources& from, uint32_t stages, Ring ring) {
    const int steps = work.steps(), eights = work.eights(), tiles = work.tiles();
#pragma unroll 1
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Tile tile = work.tile(index);
        const Index matrix = Index(tile.i) * work.p.d + tile.l;
        const char* packed = from.packed + (matrix * steps * eights + tile.j / 8) * EIGHT_BYTES;
        const int bytes = min(J / 8, eights - tile.j / 8) * EIGHT_BYTES, runs = min(L, work.p.d - tile.l);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            barrier_wait_unseen(ring.emptied(), ring.parity);
            const uint32_t stage = stages + ring.slot * STAGE_BYTES;
            if (threadIdx.x == CONSUMERS) {
                barrier_expect(ring.filled(), bytes * runs);
#pragma unroll 1
                for (int l = 0; l < runs; ++l)
                    copy_in(stage + W_AT + l * RUN_BYTES, packed + Index(l) * steps * eights * EIGHT_BYTES, bytes,
                            ring.filled());
            }
            copy_rows(work, from, tile, step * K, stage);
            if (step == steps - 1) copy_columns(work, from, tile, stage);
            arrive_after_copies(ring.filled());
            packed += Index(eights) * EIGHT_BYTES;
            ring.next();
        }
    }
}
