// Sums that were exchanged, and in 16 bits rounded, before the residual is added: exchange_out.cuh and ks_chain.cu.
#pragma once

#include "hopper.cuh"
#include "ks_matmul.cuh"

__device__ __forceinline__ void spread(const uint4& v, float (&values)[4], float) {
    values[0] = __uint_as_float(v.x), values[1] = __uint_as_float(v.y);
    values[2] = __uint_as_float(v.z), values[3] = __uint_as_float(v.w);
}

template <typename T>
__device__ __forceinline__ void spread(const uint4& v, float (&values)[8], T type) {
    const float2 twos[4] = {unpack(v.x, type), unpack(v.y, type), unpack(v.z, type), unpack(v.w, type)};
#pragma unroll
    for (int t = 0; t < 4; ++t) values[2 * t] = twos[t].x, values[2 * t + 1] = twos[t].y;
}

__device__ __forceinline__ uint4 gathered(const float (&values)[4], float) {
    return make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]),
                      __float_as_uint(values[3]));
}

template <typename T>
__device__ __forceinline__ uint4 gathered(const float (&values)[8], T type) {
    return make_uint4(pack(values[0], values[1], type), pack(values[2], values[3], type),
                      pack(values[4], values[5], type), pack(values[6], values[7], type));
}

// Add the residual to vectors of 16 bytes of sums, and `activate` them as an array of float. Vectors of the residual are
// `apart` elements from one to the next, and only the first `there` of them exist. They take turns, as registers cannot
// be indexed in a loop, and code for all would be long.
template <int VECTORS, typename Activate>
__device__ __forceinline__ void add_residual(uint4 (&vectors)[VECTORS], const Element* from, Index apart, int there,
                                             Activate activate) {
    constexpr int COUNT = 16 / sizeof(Element);
#pragma unroll 1
    for (int turn = 0; turn < VECTORS; ++turn, from += apart) {
        float sums[COUNT], more[COUNT];
        spread(vectors[0], sums, Element());
        spread(turn < there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0), more, Element());
#pragma unroll
        for (int v = 0; v < COUNT; ++v) sums[v] += more[v];
        activate(sums);
#pragma unroll
        for (int v = 0; v + 1 < VECTORS; ++v) vectors[v] = vectors[v + 1];
        vectors[VECTORS - 1] = gathered(sums, Element());
    }
}
