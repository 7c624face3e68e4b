// What sums of a convolution begin with and where they go, for kernels whose weights are packed so that a lane's sums are
// of neighbouring channels: all of it goes by 16 bytes a lane (8 of up to 16 channels).
#pragma once
#include "sparse_conv.cuh"

// A lane's two of a warp's 16 rows of WIDTH channels: of each piece of four lanes' neighbours it has its own, WIDE of
// them, as sums 4 * (piece * WIDE / 2 + c / 2) + 2 * h + c % 2 of row h and channel c.
template <int WIDTH>
struct LaneRows {
    static constexpr int WIDE = WIDTH < 32 ? 4 : 8, PIECES = WIDTH / 4 / WIDE;
    static_assert(WIDTH == 16 || WIDTH % 32 == 0, "a lane's channels are whole pieces");
    using Sums = float[WIDTH / 2];
    struct __align__(2 * WIDE) Neighbours { Element values[WIDE]; };

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

    __device__ __forceinline__ void begin_with_bias(const Output& output, Sums& sums) const {
        const bool whole = output.bias && output.channels % WIDE == 0 && (size_t)output.bias % 16 == 0;
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int at = column_of(piece);
            float bias[WIDE] = {};
            if (whole && at < output.channels) {
#pragma unroll
                for (int c = 0; c < WIDE; c += 4) {
                    const float4 four = *reinterpret_cast<const float4*>(output.bias + at + c);
                    bias[c] = four.x, bias[c + 1] = four.y, bias[c + 2] = four.z, bias[c + 3] = four.w;
                }
            } else if (!whole && output.bias) {
#pragma unroll
                for (int c = 0; c < WIDE; ++c) bias[c] = output.bias_of(at + c);
            }
#pragma unroll
            for (int c = 0; c < WIDE; ++c) sum(sums, piece, 0, c) = sum(sums, piece, 1, c) = bias[c];
        }
    }

    __device__ __forceinline__ void add_residual(const Output& output, Sums& sums) const {
        if (!output.residual) return;
        const bool whole = is_made_of<Neighbours>(output.residual, output.residual_pitch, output.channels);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            if (piece % 4 == 0) asm volatile("" ::: "memory");  // else more is under way than there are registers for
            const int at = column_of(piece);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (rows[h] < 0 || at >= output.channels) continue;
                const Element* from = output.residual + (size_t)rows[h] * output.residual_pitch + at;
                Neighbours more = {};
                if (whole) {
                    more = *reinterpret_cast<const Neighbours*>(from);
                } else {
#pragma unroll
                    for (int c = 0; c < WIDE; ++c)
                        if (at + c < output.channels) more.values[c] = from[c];
                }
#pragma unroll
                for (int c = 0; c < WIDE; ++c) sum(sums, piece, h, c) += to_float(more.values[c]);
            }
        }
    }

    // Keeps the sums of a part before the last.
    __device__ __forceinline__ void keep(Sums& sums, const PartSums& parts, int part) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (rows[h] < 0) continue;
#pragma unroll
            for (int piece = 0; piece < PIECES; ++piece) {
                float4* to = reinterpret_cast<float4*>(parts.at(part, rows[h], column_of(piece)));
#pragma unroll
                for (int c = 0; c < WIDE; c += 4)
                    to[c / 4] = make_float4(sum(sums, piece, h, c), sum(sums, piece, h, c + 1), sum(sums, piece, h, c + 2),
                                            sum(sums, piece, h, c + 3));
            }
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
                float4 fours[PIECES][WIDE / 4];  // all under way before the first is added
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
                    for (int c = 0; c < WIDE; c += 4)
                        fours[piece][c / 4] = has ? *reinterpret_cast<const float4*>(parts.at(part, rows[h], column_of(piece) + c)) : float4{};
#pragma unroll
                for (int piece = 0; piece < PIECES; ++piece)
#pragma unroll
                    for (int c = 0; c < WIDE; c += 4) {
                        const float4& four = fours[piece][c / 4];
                        sum(sums, piece, h, c) += four.x, sum(sums, piece, h, c + 1) += four.y;
                        sum(sums, piece, h, c + 2) += four.z, sum(sums, piece, h, c + 3) += four.w;
                    }
            }
        }
    }

    __device__ __forceinline__ void write(const Output& output, Sums& sums) const {
        output.activate_all(sums);
        const bool whole = is_made_of<Neighbours>(output.y, output.y_pitch, output.channels);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const int at = column_of(piece);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (rows[h] < 0 || at >= output.channels) continue;
                Neighbours made;
#pragma unroll
                for (int c = 0; c < WIDE; ++c) made.values[c] = from_float<Element>(sum(sums, piece, h, c));
                Element* to = output.y + (size_t)rows[h] * output.y_pitch + at;
                if (whole) {
                    *reinterpret_cast<Neighbours*>(to) = made;
                    continue;
                }
#pragma unroll
                for (int c = 0; c < WIDE; ++c)
                    if (at + c < output.channels) to[c] = made.values[c];
            }
        }
    }
};
