// What sums of a convolution begin with and where they go, for kernels whose weights are packed so that a lane's sums are
// of neighbouring channels: all of it goes by 16 bytes a lane (8 of up to 16 channels) where that can be.
#pragma once
#include <type_traits>

#include "read_if.cuh"
#include "sparse_conv.cuh"

// A lane's two of a warp's 16 rows of WIDTH channels. Four lanes share a piece of 4 * WIDE channels, of which each has
// WIDE neighbours: sum 4 * (piece * WIDE / 2 + c / 2) + 2 * h + c % 2 is that of row h and its c-th.
template <int WIDTH>
struct LaneRows {
    static constexpr int WIDE = WIDTH < 32 ? 4 : 8, PIECES = WIDTH / 4 / WIDE;
    static_assert(WIDTH == 16 || WIDTH % 32 == 0, "a lane's channels are whole pieces");
    using Sums = float[WIDTH / 2];
    template <class T>
    struct __align__(sizeof(T) * WIDE) Neighbours { T values[WIDE]; };

    int rows[2];  // of y; negative past the last
    int column;   // the lane's first

    LaneRows() = default;
    // Of a part's places from `first` on, for channels from `column` on.
    __device__ __forceinline__ LaneRows(const KernelMap& map, int part, int first, int places, int column)
        : column(column + int(threadIdx.x) % 4 * WIDE) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int place = first + int(threadIdx.x) % 32 / 4 + 8 * h;
            rows[h] = place < places ? map.row_of(part, place) : -1;
        }
    }

    static __device__ __forceinline__ float& sum(Sums& sums, int piece, int h, int c) {
        return sums[4 * (piece * (WIDE / 2) + c / 2) + 2 * h + c % 2];
    }
    __device__ __forceinline__ int column_of(int piece) const { return column + piece * 4 * WIDE; }

    // Do something with each sum, its row and channel, by code that is short.
    template <class Do>
    __device__ __forceinline__ void each(const Output& output, Sums& sums, Do what) const {
        in_turns(sums, [&](int group, float (&four)[4]) {
            const int at = column_of(group / (WIDE / 2)) + group % (WIDE / 2) * 2;
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (rows[n / 2] >= 0 && at + n % 2 < output.channels) what(four[n], rows[n / 2], at + n % 2);
        });
    }

    // Do something with each row's neighbours that there are.
    template <class Do>
    __device__ __forceinline__ void each_piece(const Output& output, Do what) const {
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            if (piece % 4 == 0) asm volatile("" ::: "memory");  // else more is under way than there are registers for
#pragma unroll
            for (int h = 0; h < 2; ++h)
                if (rows[h] >= 0 && column_of(piece) < output.channels) what(piece, h, column_of(piece));
        }
    }

    __device__ __forceinline__ void begin_with_bias(const Output& output, Sums& sums) const {
#pragma unroll
        for (int n = 0; n < WIDTH / 2; ++n) sums[n] = 0.0f;
        if (!output.bias) return;
        if (output.channels % WIDE || (size_t)output.bias % 16) {
            each(output, sums, [&](float& sum, int, int at) { sum = output.bias[at]; });
            return;
        }
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            if (column_of(piece) >= output.channels) continue;
#pragma unroll
            for (int c = 0; c < WIDE; c += 4) {
                const float4 four = *reinterpret_cast<const float4*>(output.bias + column_of(piece) + c);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    sum(sums, piece, h, c) = four.x, sum(sums, piece, h, c + 1) = four.y;
                    sum(sums, piece, h, c + 2) = four.z, sum(sums, piece, h, c + 3) = four.w;
                }
            }
        }
    }

    // AT_ONCE: all pieces are read before the first is added; left to itself, the compiler may wait for each. Where others
    // bring x meanwhile, that gains nothing.
    template <bool AT_ONCE>
    __device__ __forceinline__ void add_residual(const Output& output, Sums& sums) const {
        if (!output.residual) return;
        const auto from = [&](int row, int at) { return output.residual + (int64_t)row * output.residual_pitch + at; };
        if (!is_made_of<Neighbours<Element>>(output.residual, output.residual_pitch, output.channels)) {
            each(output, sums, [&](float& sum, int row, int at) { sum += to_float(*from(row, at)); });
            return;
        }
        const auto add = [&](int piece, int h, const Neighbours<Element>& more) {
#pragma unroll
            for (int c = 0; c < WIDE; ++c) sum(sums, piece, h, c) += to_float(more.values[c]);
        };
        if constexpr (AT_ONCE) {
            std::conditional_t<WIDE == 8, uint4, uint2> words[PIECES][2];
#pragma unroll
            for (int n = 0; n < 2 * PIECES; ++n) {
                const int at = column_of(n / 2), row = at < output.channels ? rows[n % 2] : -1;
                read_row(words[n / 2][n % 2], row, from(row, at));
            }
#pragma unroll
            for (int n = 0; n < 2 * PIECES; ++n)
                add(n / 2, n % 2, reinterpret_cast<const Neighbours<Element>&>(words[n / 2][n % 2]));
        } else {
            each_piece(output, [&](int piece, int h, int at) {
                const auto more = *reinterpret_cast<const Neighbours<Element>*>(from(rows[h], at));
                add(piece, h, more);
            });
        }
    }

    // Keeps the sums of a part before the last.
    __device__ __forceinline__ void keep(Sums& sums, const PartSums& parts, int part) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (rows[h] < 0) continue;
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
                for (int c = 0; c < WIDE; c += 4)
                    *reinterpret_cast<float4*>(parts.at(part, rows[h], column_of(piece) + c)) =
                        make_float4(sum(sums, piece, h, c), sum(sums, piece, h, c + 1), sum(sums, piece, h, c + 2),
                                    sum(sums, piece, h, c + 3));
        }
    }

    // Adds what parts before the last came to, once `progress` tells that all tiles of them are there.
    __device__ __forceinline__ void add_parts(Sums& sums, const KernelMap& map, const PartSums& parts,
                                              const Progress* progress, int tiles) const {
        int before[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) before[h] = rows[h] < 0 ? 0 : map.parts_before(rows[h]);
        if (!__any_sync(EVERY_LANE, before[0] | before[1])) return;
        progress->wait_for(tiles);
#pragma unroll 1
        for (int part = 0; part < map.parts - 1; ++part) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const bool has = before[h] >> 8 * part & 0xff;
                const float* from = parts.at(part, max(rows[h], 0), column);
                float4 fours[WIDTH / 16];  // all under way before the first is added
#pragma unroll
                for (int n = 0; n < WIDTH / 16; ++n) {
                    const int at = n / (WIDE / 4) * 4 * WIDE + n % (WIDE / 4) * 4;
                    fours[n] = has ? *reinterpret_cast<const float4*>(from + at) : float4{};
                }
#pragma unroll
                for (int n = 0; n < WIDTH / 16; ++n) {
                    const int piece = n / (WIDE / 4), c = n % (WIDE / 4) * 4;
                    sum(sums, piece, h, c) += fours[n].x, sum(sums, piece, h, c + 1) += fours[n].y;
                    sum(sums, piece, h, c + 2) += fours[n].z, sum(sums, piece, h, c + 3) += fours[n].w;
                }
            }
        }
    }

    // As a Result: y's type, which may be fp32.
    template <class Result>
    __device__ __forceinline__ void write(const Output& output, Sums& sums) const {
        output.activate_all(sums);
        Result* y = reinterpret_cast<Result*>(output.y);
        const auto to = [&](int row, int at) { return y + (size_t)row * output.y_pitch + at; };
        if (!is_made_of<Neighbours<Result>>(y, output.y_pitch, output.channels)) {
            each(output, sums, [&](float& sum, int row, int at) { *to(row, at) = from_float<Result>(sum); });
            return;
        }
        each_piece(output, [&](int piece, int h, int at) {
            Neighbours<Result> made;
#pragma unroll
            for (int c = 0; c < WIDE; ++c) made.values[c] = from_float<Result>(sum(sums, piece, h, c));
            *reinterpret_cast<Neighbours<Result>*>(to(rows[h], at)) = made;
        });
    }
};
