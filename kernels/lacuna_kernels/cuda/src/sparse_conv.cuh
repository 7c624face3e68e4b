// What the sparse convolutions share:
//   y[m] = f(bias + residual[m] + sum over offsets k of x[map[k, i]] @ weight[k] + shortcut[m] @ weight[volume])
// for places i in use, m = order[i]; the shortcut is one offset more, from rows of another matrix to themselves.
// Sums run in that order, over the channels of each offset upwards, in fp32; what a tile skips would have added zeros.
// (sparse_conv_resident.cu has an order of its own, which does not depend on more, either.)
// Where the offsets are in parts, those of each but the last are summed up by themselves and added to the last one's in
// their order. So a row's bits depend on its neighbours alone, and on how the offsets are
// divided: not on its place, the tile, the batch or the capacity.
#pragma once
#include "activation.cuh"
#include "element.cuh"
#include "map_places.cuh"
#include "progress.cuh"

#define PIECE 8   // elements of 16 bytes, in 16-bit types
#define EVERY_LANE 0xffffffffu

using Element = ELEMENT;

// As the host passes it: map int32 [volume, capacity], order int32 [parts, capacity], present uint32 [parts, capacity /
// GROUP, words], keys int32 [capacity], ones int32 [parts], see kernel_map.cu, tiles int32 [2, parts * groups], see
// tile_order.cu; map, order and present are null for the identity, of volume 1, keys and ones may be if there is one part,
// and tiles may be always.
struct KernelMap {
    const int* map;
    const unsigned* present;
    const int *order, *keys, *ones, *tiles;
    int parts, volume, words, capacity;

    __device__ __forceinline__ bool is_last(int part) const { return part == parts - 1; }
    __device__ __forceinline__ int row_of(int part, int place) const {
        return order ? order[(size_t)part * capacity + place] : place;
    }
    __device__ __forceinline__ int groups() const { return (capacity + GROUP - 1) / GROUP; }
    __device__ __forceinline__ unsigned present_of(int part, int group, int word) const {
        return present[((size_t)part * groups() + group) * words + word];
    }
    // Of an output row, whether it has any offset of the parts before the last: a byte of each.
    __device__ __forceinline__ int parts_before(int row) const { return keys[row] & (1 << 8 * (parts - 1)) - 1; }
};

// What a block makes at a time: places of a part's order from `place` on, channels from `column` on. Past the last tile
// the part is negative.
struct Tile {
    int part, place, column;
};

// How tiles of M x N come one after another: as the map tells (tile_order.cu), else part by part, each from its last tile
// back, as rows with far offsets come last in an order, and many of their tiles take longest.
template <int M, int N>
struct Tiles {
    static_assert(MOST_ROWS % M == 0, "a map has all places of a tile, of the offsets that `present` tells, see kernel_map.cu");

    const KernelMap& map;
    int rows, across;  // of y in use; tiles side by side

    __device__ __forceinline__ int of_part(int part) const {
        const int all = (rows + M - 1) / M;
        return map.is_last(part) || !all ? all : all - map.ones[part] / M;
    }

    __device__ __forceinline__ Tile at(int index) const {
        int from = index / across;
        const int column = index % across * N;
        if (map.tiles) {
            if (index >= all()) return {-1, 0, 0};
            const int tile = map.tiles[M / GROUP / 2 * map.parts * map.groups() + from];
            return {tile >> TILE_PART, (tile & (1 << TILE_PART) - 1) * GROUP, column};
        }
#pragma unroll 1
        for (int part = 0; part < map.parts; ++part) {
            const int here = of_part(part);
            if (from < here) return {part, ((rows + M - 1) / M - 1 - from) * M, column};
            from -= here;
        }
        return {-1, 0, 0};
    }

    // Of all parts before the last.
    __device__ __forceinline__ int before_last() const {
        int sum = 0;
#pragma unroll 1
        for (int part = 0; part < map.parts - 1; ++part) sum += of_part(part);
        return sum * across;
    }

    __device__ __forceinline__ int all() const { return before_last() + of_part(map.parts - 1) * across; }
};

// The tile of a block that makes one alone; all threads come here, and to `leave_tile` when its rows are written.
// `taken` is in shared memory, which may then be used for other things.
template <int M, int N>
__device__ inline Tile take_tile(const Tiles<M, N>& tiles, Progress* progress, int* taken) {
    if (tiles.map.parts == 1) return tiles.at(blockIdx.x);
    if (threadIdx.x == 0) *taken = progress->take();
    __syncthreads();
    const int index = *taken;
    __syncthreads();
    return tiles.at(index);
}

__device__ inline void leave_tile(const KernelMap& map, const Tile& tile, Progress* progress) {
    if (map.parts == 1) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (tile.part >= 0 && !map.is_last(tile.part)) progress->tell_made();
    progress->leave(gridDim.x);
}

// What rows are read from: their pitch in elements, their channels.
struct Source {
    const Element* rows;
    int pitch, ci;
};

// The offsets of a part that any place of a tile has, in rising order, as a thread walks through them; after those of
// the last part comes the shortcut, if there is one, as offset `volume`.
// BY_WARPS: whole warps walk together, of TILE_M places, and to the compiler, too, all their lanes have the same.
template <bool BY_WARPS>
struct AnyOffsetWalk {
    const KernelMap& map;
    int part, place, places;  // first place of the tile; places past the tile or past those in use start here
    bool shortcut;
    int word = -1;
    unsigned left = 0;

    __device__ unsigned bits(int index) const {
        if (!map.present) return 1;
        unsigned any = 0;
        if constexpr (BY_WARPS) {
#pragma unroll  // all words are under way at once
            for (int group = 0; group < TILE_M / GROUP; ++group)
                if (place + group * GROUP < places) any |= map.present_of(part, place / GROUP + group, index);
            return __shfl_sync(EVERY_LANE, int(any), 0);
        } else {
            for (int group = place / GROUP; group * GROUP < places; ++group) any |= map.present_of(part, group, index);
            return any;
        }
    }

    __device__ bool ends_in_shortcut() const { return shortcut && map.is_last(part); }

    __device__ int total() const {
        int sum = ends_in_shortcut();
#pragma unroll 1
        for (int index = 0; index < map.words; ++index) sum += __popc(bits(index));
        return sum;
    }

    // Of which each of the offsets is made of `each`, and the shortcut of `more`.
    __device__ int steps(int offsets, int each, int more) const {
        return ends_in_shortcut() ? (offsets - 1) * each + more : offsets * each;
    }

    __device__ int next() {  // only as often as total() says
        while (!left && ++word < map.words) left = bits(word);
        if (!left) return map.volume;
        const int bit = __ffs(left) - 1;
        left &= left - 1;
        return word * 32 + bit;
    }

    // The rows that an offset leads to, by place; null if each place leads to itself.
    __device__ __forceinline__ const int* rows_of(int offset) const {
        if (offset == map.volume) return map.order ? map.order + (size_t)part * map.capacity : nullptr;
        return map.map ? map.map + (size_t)offset * map.capacity : nullptr;
    }

    __device__ __forceinline__ int row(int offset, int place) const {
        const int* rows = rows_of(offset);
        return rows ? rows[place] : place;
    }
};
using OffsetWalk = AnyOffsetWalk<false>;
using WarpOffsetWalk = AnyOffsetWalk<true>;

// Do something with four sums at a time, the others moving up, as registers cannot be indexed in a loop.
template <int COUNT, class Do>
__device__ __forceinline__ void in_turns(float (&sums)[COUNT], Do what) {
#pragma unroll 1
    for (int group = 0; group < COUNT / 4; ++group) {
        float four[4] = {sums[0], sums[1], sums[2], sums[3]};
        what(group, four);
#pragma unroll
        for (int n = 0; n + 4 < COUNT; ++n) sums[n] = sums[n + 4];
#pragma unroll
        for (int n = 0; n < 4; ++n) sums[COUNT - 4 + n] = four[n];
    }
}

// What sums begin with and where they go. Null pointers stand for no bias and no residual. A pitch is the distance
// between rows, in elements.
struct Output {
    const float* bias;
    const Element* residual;
    Element* y;
    int residual_pitch, y_pitch, channels, activation;
    float negative_slope;

    __device__ float begin(int row, int column) const {
        if (column >= channels) return 0.0f;
        const float sum = bias ? bias[column] : 0.0f;
        return residual ? sum + to_float(residual[(size_t)row * residual_pitch + column]) : sum;
    }

    // `activate` in place; code for all activations of all sums would be long.
    template <int COUNT>
    __device__ __forceinline__ void activate_all(float (&sums)[COUNT]) const {
        if (activation == ACTIVATION_NONE) return;
        if (activation == ACTIVATION_RELU) {
#pragma unroll
            for (int n = 0; n < COUNT; ++n) sums[n] = activate(sums[n], ACTIVATION_RELU, 0.0f);
            return;
        }
        in_turns(sums, [&](int, float (&four)[4]) {
#pragma unroll
            for (int n = 0; n < 4; ++n) four[n] = activate(four[n], activation, negative_slope);
        });
    }
};

// Where the sums of parts before the last lie until they are added: fp32 [parts - 1, capacity, pitch], of whole tiles,
// whose columns have an order of the kernel's own.
struct PartSums {
    float* start;
    int pitch, capacity;

    __device__ __forceinline__ float* at(int part, int row, int column) const {
        return start + ((size_t)part * capacity + row) * pitch + column;
    }
};

// Two or eight elements, which are read and written at once.
struct __align__(2 * sizeof(Element)) Pair { Element values[2]; };
struct __align__(PIECE * sizeof(Element)) Piece { Element values[PIECE]; };

// Whether neighbours of a matrix of E can be read or written as a T.
template <class T, class E>
__device__ inline bool is_made_of(const E* start, int pitch, int channels) {
    constexpr int count = sizeof(T) / sizeof(E);
    return ((size_t)start / sizeof(E) | pitch | channels) % count == 0;
}

// A warp's 16 rows of WIDTH channels, whose sums its lanes have as tensor cores make them: of every 8 channels a lane
// has two of row lane / 4, from channel lane % 4 * 2 on, and two of 8 rows further on.
template <int WIDTH>
struct WarpRows {
    static constexpr int PITCH = WIDTH + PIECE;  // in shared memory, so that 8 rows share no banks
    static constexpr int ELEMENTS = 16 * PITCH;

    int row;  // of y, of place lane % 16; negative past the last
    int column;
    int parts_before = 0;  // see KernelMap, if the tile is of the last part

    // Of a part's places from `first` on.
    __device__ __forceinline__ WarpRows(const KernelMap& map, int part, int first, int places, int column)
        : row(first + int(threadIdx.x % 16) < places ? map.row_of(part, first + threadIdx.x % 16) : -1),
          column(column) {
        if (map.parts > 1 && map.is_last(part) && row >= 0) parts_before = map.parts_before(row);
    }

    __device__ __forceinline__ void begin(const Output& output, float (&sums)[WIDTH / 2]) const {
        const int lane = threadIdx.x % 32, from = column + lane % 4 * 2;
        const int rows[2] = {__shfl_sync(EVERY_LANE, row, lane / 4), __shfl_sync(EVERY_LANE, row, lane / 4 + 8)};
        if (output.channels % 2 || !is_made_of<Pair>(output.residual, output.residual_pitch, output.channels)) {
            in_turns(sums, [&](int group, float (&four)[4]) {
#pragma unroll
                for (int n = 0; n < 4; ++n)
                    four[n] = rows[n / 2] < 0 ? 0.0f : output.begin(rows[n / 2], from + group * 8 + n % 2);
            });
            return;
        }
#pragma unroll
        for (int n = 0; n < WIDTH / 2; n += 4) {
            if (n % 32 == 0) asm volatile("" ::: "memory");  // else more is under way than there are registers for
            const int at = from + n / 4 * 8;
            const bool here = at < output.channels;
            const float2 bias = here && output.bias ? *reinterpret_cast<const float2*>(output.bias + at) : float2{};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                sums[n + 2 * h] = bias.x, sums[n + 2 * h + 1] = bias.y;
                if (!output.residual || !here || rows[h] < 0) continue;
                const Element* residual = output.residual + (size_t)rows[h] * output.residual_pitch + at;
                const Pair pair = *reinterpret_cast<const Pair*>(residual);
                sums[n + 2 * h] += to_float(pair.values[0]), sums[n + 2 * h + 1] += to_float(pair.values[1]);
            }
        }
    }

    // The rows that this lane has sums of; negative past the last.
    __device__ __forceinline__ int row_of_half(int row, int h) const {
        return __shfl_sync(EVERY_LANE, row, threadIdx.x % 32 / 4 + 8 * h);
    }

    // Of 16 channels a lane keeps its four side by side, which are one read; the next are four further on.
    __device__ __forceinline__ float4* parts_of_lane(const PartSums& parts, int part, int row) const {
        return reinterpret_cast<float4*>(parts.at(part, row, column + threadIdx.x % 4 * 4));
    }

    // Keeps the sums of a part before the last.
    __device__ __forceinline__ void keep(const float (&sums)[WIDTH / 2], const PartSums& parts, int part) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int m = row_of_half(row, h);
            if (m < 0) continue;
            float4* to = parts_of_lane(parts, part, m);
#pragma unroll
            for (int n = 0; n < WIDTH / 16; ++n) {
                const float* from = sums + 8 * n + 2 * h;
                to[n * 4] = make_float4(from[0], from[1], from[4], from[5]);
            }
        }
    }

    // Adds what parts before the last came to, once `progress` tells that all tiles of them are there.
    __device__ __forceinline__ void add_parts(float (&sums)[WIDTH / 2], const KernelMap& map, const PartSums& parts,
                                              const Progress* progress, int tiles) const {
        if (!__any_sync(EVERY_LANE, parts_before)) return;
        progress->wait_for(tiles);
#pragma unroll 1
        for (int part = 0; part < map.parts - 1; ++part) {
            const int has = parts_before >> 8 * part & 0xff ? row : -1;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int m = row_of_half(has, h);
                const float4* from = parts_of_lane(parts, part, max(m, 0));
                float4 fours[WIDTH / 16];  // all under way before the first is added
#pragma unroll
                for (int n = 0; n < WIDTH / 16; ++n) fours[n] = m < 0 ? float4{} : from[n * 4];
#pragma unroll
                for (int n = 0; n < WIDTH / 16; ++n) {
                    float* to = sums + 8 * n + 2 * h;
                    to[0] += fours[n].x, to[1] += fours[n].y, to[4] += fours[n].z, to[5] += fours[n].w;
                }
            }
        }
    }

    // By way of ELEMENTS of shared memory, which are the warp's own: so neighbours write side by side.
    __device__ __forceinline__ void write(const Output& output, float (&sums)[WIDTH / 2], Element* own) const {
        output.activate_all(sums);
        const int lane = threadIdx.x % 32;
        Element* to = own + lane / 4 * PITCH + lane % 4 * 2;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < WIDTH / 2; n += 2)
            *reinterpret_cast<Pair*>(to + n / 2 % 2 * (8 * PITCH) + n / 4 * 8) =
                Pair{{from_float<Element>(sums[n]), from_float<Element>(sums[n + 1])}};
        __syncwarp();
        const auto each_piece = [&](auto write_piece) {
#pragma unroll 4
            for (int piece = lane; piece < 2 * WIDTH; piece += 32) {
                const int place = piece / (WIDTH / PIECE), n = piece % (WIDTH / PIECE) * PIECE;
                const int m = __shfl_sync(EVERY_LANE, row, place);
                if (m >= 0 && column + n < output.channels)
                    write_piece(output.y + (size_t)m * output.y_pitch + column + n, own + place * PITCH + n, n);
            }
        };
        if (is_made_of<Piece>(output.y, output.y_pitch, output.channels))
            each_piece([](Element* y, const Element* from, int) {
                *reinterpret_cast<Piece*>(y) = *reinterpret_cast<const Piece*>(from);
            });
        else
            each_piece([&](Element* y, const Element* from, int n) {
#pragma unroll 1
                for (int c = 0; c < min(PIECE, output.channels - column - n); ++c) y[c] = from[c];
            });
    }
};
