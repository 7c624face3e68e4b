// Sums that were rounded and exchanged before the residual is added: ks_matmul_exchange.cu and ks_chain.cu.
#pragma once

#include "hopper.cuh"
#include "ks_matmul.cuh"

// Add the residual to vectors of 8 rounded sums, and `activate` them as float (&)[8]. Vectors of the residual are `apart`
// elements from one to the next, and only the first `there` of them exist. They take turns, as registers cannot be
// indexed in a loop, and code for all would be long.
template <int VECTORS, typename Activate>
__device__ __forceinline__ void add_residual(uint4 (&vectors)[VECTORS], const Element* from, Index apart, int there,
                                             Activate activate) {
#pragma unroll 1
    for (int turn = 0; turn < VECTORS; ++turn, from += apart) {
        const uint4 residual = turn < there ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
        const uint32_t rounded[4] = {vectors[0].x, vectors[0].y, vectors[0].z, vectors[0].w};
        const uint32_t more[4] = {residual.x, residual.y, residual.z, residual.w};
        float sums[8];
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const float2 a = unpack(rounded[v], Element()), b = unpack(more[v], Element());
            sums[2 * v] = a.x + b.x, sums[2 * v + 1] = a.y + b.y;
        }
        activate(sums);
#pragma unroll
        for (int v = 0; v + 1 < VECTORS; ++v) vectors[v] = vectors[v + 1];
        const auto two = [&](int v) { return pack(sums[2 * v], sums[2 * v + 1], Element()); };
        vectors[VECTORS - 1] = make_uint4(two(0), two(1), two(2), two(3));
    }
}
