// How the sums of ks_matmul_halves.cu are written. Without residual and activation, and with d of 2, 3 or 4, lanes
// write what they have, where y can be written by vectors. Otherwise teams lay some columns out in shared memory
// without gaps, while the copy engine writes those before; it takes whole runs of l, threads write parts of runs.
#pragma once

#include "halves.cuh"

struct Output {
    const TensorMap& map;  // of y, if vectors and d is L: boxes of 16 rows of 8 EIGHTS j
    const float* residual;
    float* y;
    int activation;
    float negative_slope;
    bool vectors;  // whether y can be written 16 bytes at once
};

// A warp and those that have the neighbouring l of the same rows and j.
struct Team {
    int number, thread;

    __device__ __forceinline__ void wait() const {
        if constexpr (GROUPS_D > 1)
            barrier_of<TEAM>(1 + number);
        else
            __syncwarp();
    }
};

// Lay out a part, 8 EIGHTS columns, as [row][j][l]; `l` is the first of this lane's.
__device__ __forceinline__ void spread(const Sums& sums, int part, float* buffer, int lane, int l) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
        if (n / EIGHTS != part) continue;
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                const int j = column_of(lane, n % EIGHTS, v % 2);
                float* to = buffer + pass * Y_PASS + v / 2 * 8 * PITCH_Y + place_of_y(lane / 4, j * L + l);
                const int unit = pass * RUN, at = n * 4 + v;
                if constexpr (RUN == 4) {
                    *reinterpret_cast<float4*>(to) = make_float4(sums.of[unit][at], sums.of[unit + 1][at],
                                                                 sums.of[unit + 2][at], sums.of[unit + 3][at]);
                } else if constexpr (RUN == 2) {
                    *reinterpret_cast<float2*>(to) = make_float2(sums.of[unit][at], sums.of[unit + 1][at]);
                } else {
#pragma unroll
                    for (int l = 0; l < RUN; ++l) to[l] = sums.of[unit + l][at];
                }
            }
    }
}

// Whether a lane's sums are whole vectors of y, or become so once two lanes have exchanged some.
constexpr bool DIRECT = GROUPS_D == 1 && RUN <= 4 && RUN > 1;

__device__ __forceinline__ uint4 from_other_lane(const uint4& v) {
    const auto from_other = [](uint32_t word) { return __shfl_xor_sync(0xffffffff, word, 1); };
    return make_uint4(from_other(v.x), from_other(v.y), from_other(v.z), from_other(v.w));
}
__device__ __forceinline__ uint4 choose(bool first, const uint4& v, const uint4& w) {
    return make_uint4(first ? v.x : w.x, first ? v.y : w.y, first ? v.z : w.z, first ? v.w : w.w);
}

// A lane's sums of one row: of `unit` and the next ones, from `first` on. `left` j are there, in whole vectors.
struct RowOfSums {
    const Sums& sums;
    int unit, first, lane, left;
    float* to;  // where j = 0 belongs

    __device__ __forceinline__ uint32_t word(int n, int second, int l) const {
        return __float_as_uint(sums.of[unit + l][n * 4 + first + second]);
    }

    __device__ __forceinline__ void write() const {
        if constexpr (RUN == 4) {
#pragma unroll
            for (int n = 0; n < N / 8; ++n) write_fours(n);
        } else if constexpr (RUN == 2) {
#pragma unroll
            for (int n = 0; n < N / 8; ++n) write_twos(n);
        } else if constexpr (RUN == 3) {
#pragma unroll
            for (int n = 0; n < N / 8; n += 2) write_threes(n);
        }
    }

    // Four l of a j are a vector.
    __device__ __forceinline__ void write_fours(int n) const {
#pragma unroll
        for (int second = 0; second < 2; ++second) {
            const int j = column_of(lane, n, second);
            if (j < left)
                write_out(to + j * L, make_uint4(word(n, second, 0), word(n, second, 1), word(n, second, 2),
                                                 word(n, second, 3)));
        }
    }

    // Of every two lanes the even one gets both lanes' first j, the odd one the second.
    __device__ __forceinline__ void write_twos(int n) const {
        const bool odd = lane % 2;
        const uint4 mine = make_uint4(word(n, 0, 0), word(n, 0, 1), word(n, 1, 0), word(n, 1, 1));
        const uint4 other = from_other_lane(mine);
        const int j = column_of(lane & ~1, n, odd);
        if (j < left)
            write_out(to + j * L, odd ? make_uint4(other.z, other.w, mine.z, mine.w)
                                      : make_uint4(mine.x, mine.y, other.x, other.y));
    }

    // A lane has four neighbouring j, three vectors. Two lanes exchange the second, to write neighbours at a time.
    __device__ __forceinline__ void write_threes(int n) const {
        const bool odd = lane % 2;
        const auto at = [&](int w) { return word(n + w / 6, w / 3 % 2, w % 3); };
        const auto vector = [&](int v) { return make_uint4(at(v), at(v + 1), at(v + 2), at(v + 3)); };
        const uint4 own = vector(0), last = vector(8), other = from_other_lane(vector(4));
        const int even_j = column_of(lane & ~1, n, 0), odd_j = even_j + 4;
        float* both = to + even_j * L + odd * 4;
        if (even_j < left) write_out(both, choose(odd, other, own));
        if ((odd ? odd_j : even_j) < left) write_out(both + 8, choose(odd, own, last));
        if (odd_j < left) write_out(both + 16, choose(odd, last, other));
    }
};

// What a team has of a tile: its first row, and the first j of a part; and which of it a lane laid out.
struct Share : Tile {
    const Work& work;
    const Output& out;
    int lane, l_of_lane;  // the first of those of the lane

    __device__ __forceinline__ Index at(int row, int j, int l) const {
        return (((this->row + row) * Index(work.p.a) + i) * work.p.b + this->j + j) * work.p.d + this->l + l;
    }
    __device__ __forceinline__ bool is_there(int row, int j, int l) const {
        return this->row + row < work.rows && this->j + j < work.p.b && this->l + l < work.p.d;
    }

    // Add the residual to what this lane laid out, and activate.
    __device__ __forceinline__ void amend(float* from) const {
#pragma unroll 1
        for (int v = 0; v < PASSES * EIGHTS * 4; ++v) {
            const int pass = v / (EIGHTS * 4), row = v / 2 % 2 * 8 + lane / 4;
            const int j = column_of(lane, v / 4 % EIGHTS, v % 2);
            float* sums = from + pass * Y_PASS + place_of_y(row, j * L + l_of_lane);
#pragma unroll
            for (int l = 0; l < RUN; ++l) {
                float sum = sums[l];
                if (out.residual && is_there(pass * 64 + row, j, l_of_lane + l))
                    sum += out.residual[at(pass * 64 + row, j, l_of_lane + l)];
                sums[l] = activate(sum, out.activation, out.negative_slope);
            }
        }
    }

    // Whether the sums can be written as they are.
    __device__ __forceinline__ bool goes_directly() const {
        return DIRECT && out.vectors && work.p.d == L && !out.residual && out.activation == ACTIVATION_NONE;
    }

    // Write the sums as they are, so that lanes beside each other write whole sectors.
    __device__ __forceinline__ void write_directly(const Sums& sums) const {
        const Index pitch = Index(work.p.a) * work.p.b * work.p.d;
        float* to = out.y + at(lane / 4, 0, 0);
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = pass * 64 + half * 8;
                const int left = this->row + lane / 4 + row < work.rows ? work.p.b - j : 0;
                RowOfSums{sums, pass * RUN, half * 2, lane, left, to + row * pitch}.write();
            }
    }

    // Write 16 rows of what was laid out. Whole runs are for the copy engine, if all rows are there, as it would write
    // those past the count; parts of runs are too short for it.
    __device__ __forceinline__ void write(const float* from, int pass, const Team& team) const {
        if (out.vectors && work.p.d == L && row + pass * 64 + 16 <= work.rows) {
            if (team.thread == 0) copy_out(out.map, {j * L, i, row + pass * 64, 0}, shared_address(from));
        } else if (L % 4 == 0 && out.vectors) {
#pragma unroll 4
            for (int e = team.thread * 4; e < Y_PASS; e += TEAM * 4) {
                const int row = pass * 64 + e / PITCH_Y, j = e % PITCH_Y / L, l = e % L;
                const float* vector = from + place_of_y(e / PITCH_Y, e % PITCH_Y);
                if (is_there(row, j, l)) write_out(out.y + at(row, j, l), *reinterpret_cast<const uint4*>(vector));
            }
        } else {
#pragma unroll 1
            for (int e = team.thread; e < Y_PASS; e += TEAM) {
                const int row = pass * 64 + e / PITCH_Y, j = e % PITCH_Y / L, l = e % L;
                if (is_there(row, j, l)) out.y[at(row, j, l)] = from[place_of_y(e / PITCH_Y, e % PITCH_Y)];
            }
        }
    }
};
