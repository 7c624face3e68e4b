// What the sparse convolutions share:
//   y[m] = f(sum over offsets k of x[map[k, i]] @ weight[k] + bias + residual[m])   for places i in use, m = order[i].
// Sums run over k and then over the channels, upwards, in fp32; what a tile skips would have added zeros. So a row's
// bits depend on its neighbours alone: not on its place, the tile, the batch or the capacity.
#pragma once
#include "activation.cuh"
#include "element.cuh"

#define GROUP 64  // places of a word of `present`, as in kernel_map.cu
#define PIECE 8   // elements of 16 bytes, in 16-bit types

using Element = ELEMENT;

// map int32 [volume, capacity], present uint32 [capacity / GROUP, words]; both null for the identity, of volume 1, as
// `order` of the epilogue is.
struct KernelMap {
    const int* map;
    const unsigned* present;
    int volume, words, capacity;
};

// The offsets that any place of a tile has, in rising order, as a thread walks through them.
struct OffsetWalk {
    const KernelMap& map;
    int place, places;  // first place of the tile; places past the tile or past those in use start here
    int word = -1;
    unsigned left = 0;

    __device__ unsigned bits(int index) const {
        if (!map.present) return 1;
        unsigned any = 0;
        for (int group = place / GROUP; group * GROUP < places; ++group)
            any |= map.present[(size_t)group * map.words + index];
        return any;
    }

    __device__ int total() const {
        int sum = 0;
        for (int index = 0; index < map.words; ++index) sum += __popc(bits(index));
        return sum;
    }

    __device__ int next() {  // only as often as total() says
        while (!left) left = bits(++word);
        const int bit = __ffs(left) - 1;
        left &= left - 1;
        return word * 32 + bit;
    }
};

__device__ inline int input_row(const KernelMap& map, int offset, int place) {
    return map.map ? map.map[(size_t)offset * map.capacity + place] : place;
}

// The first place of a tile, counted from the last tile back: rows with far offsets come last in the order, and their
// tiles take longest. Negative past the first.
__device__ inline int place_of_tile(int from, int tile, int places) {
    return ((places + tile - 1) / tile - 1 - from) * tile;
}

// Null pointers stand for rows in their order, no bias and no residual. A pitch is the distance between rows, in
// elements.
struct Epilogue {
    const int* order;
    const float* bias;
    const Element* residual;
    Element* y;
    int residual_pitch, y_pitch, channels, activation;
    float negative_slope;

    __device__ int row_of(int place) const { return order ? order[place] : place; }

    __device__ float finish(float sum, int row, int column) const {
        if (bias) sum += bias[column];
        if (residual) sum += to_float(residual[(size_t)row * residual_pitch + column]);
        return activate(sum, activation, negative_slope);
    }

    // Two neighbouring columns, in one store where the address allows it.
    __device__ void write_pair(float one, float other, int row, int column) const {
        struct __align__(2 * sizeof(Element)) Pair { Element values[2]; };
        if (column >= channels) return;
        const bool both = column + 1 < channels;
        Element* to = y + (size_t)row * y_pitch + column;
        const Pair pair = {{from_float<Element>(finish(one, row, column)),
                            from_float<Element>(both ? finish(other, row, column + 1) : 0.0f)}};
        if (both && (size_t)to % sizeof(Pair) == 0) {
            *reinterpret_cast<Pair*>(to) = pair;
        } else {
            to[0] = pair.values[0];
            if (both) to[1] = pair.values[1];
        }
    }

    __device__ void write(float sum, int row, int column) const {
        if (column < channels) y[(size_t)row * y_pitch + column] = from_float<Element>(finish(sum, row, column));
    }

    // PIECE columns side by side, in one store where the address allows it.
    __device__ void write_piece(const float* sums, int row, int column) const {
        struct __align__(PIECE * sizeof(Element)) Piece { Element values[PIECE]; };
        const int there = min(PIECE, channels - column);
        if (there <= 0) return;
        Piece piece;
#pragma unroll
        for (int c = 0; c < PIECE; ++c)
            piece.values[c] = from_float<Element>(c < there ? finish(sums[c], row, column + c) : 0.0f);
        Element* to = y + (size_t)row * y_pitch + column;
        if (there == PIECE && (size_t)to % sizeof(Piece) == 0)
            *reinterpret_cast<Piece*>(to) = piece;
        else
            for (int c = 0; c < there; ++c) to[c] = piece.values[c];
    }
};
