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

// The distance between rows of a warp's WIDTH sums in shared memory.
template <int WIDTH>
constexpr int pitch_of_sums = WIDTH + PIECE;

// Write `rows` (at most 16) rows of a warp's WIDTH channels, by way of shared memory, so that neighbours write side by
// side. Of every 8 channels a lane has four sums: two of row lane / 4, from channel lane % 4 * 2 on, and of 8 rows on.
template <int WIDTH>
__device__ inline void write_rows(const Epilogue& epilogue, float* own, const float* sums, int first, int rows,
                                  int column) {
    const int lane = threadIdx.x % 32;
    float* to = own + lane / 4 * pitch_of_sums<WIDTH> + lane % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j) {
        *reinterpret_cast<float2*>(to + j * 8) = make_float2(sums[4 * j], sums[4 * j + 1]);
        *reinterpret_cast<float2*>(to + 8 * pitch_of_sums<WIDTH> + j * 8) = make_float2(sums[4 * j + 2], sums[4 * j + 3]);
    }
    __syncwarp();
#pragma unroll 1
    for (int piece = lane; piece < rows * (WIDTH / PIECE); piece += 32) {
        const int m = piece / (WIDTH / PIECE), n = piece % (WIDTH / PIECE) * PIECE;
        epilogue.write_piece(own + m * pitch_of_sums<WIDTH> + n, epilogue.row_of(first + m), column + n);
    }
}
