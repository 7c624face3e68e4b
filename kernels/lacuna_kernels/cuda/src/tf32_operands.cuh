// What a warpgroup of ks_matmul_tf32.cu makes of its share of a stage of x, and how it multiplies by that.
#pragma once

#include "fp16_halves.cuh"
#include "tf32_tiles.cuh"

#if !HALVES
// A lane's share of a stage of x in tf32, as the A operand of steps of 8 k.
struct Rounded {
    uint32_t big[STEPS][4], small[STEPS][4];

    __device__ __forceinline__ explicit Rounded(const float (&x)[STEPS][4]) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                big[s][v] = to_tf32(x[s][v]);
                pin(big[s][v]);
                if (PARTS == 2) small[s][v] = left_over(x[s][v], big[s][v]), pin(small[s][v]);
            }
    }

    // Multiply COUNT times 8 k, by the values that descriptor `w` begins with; in the background. The tensor cores'
    // sums of small products come before those of big ones, see split_tf32.cuh; with one part they are those of all
    // steps.
    template <int COUNT>
    __device__ __forceinline__ void multiply(float (&sums)[SUMS], uint64_t w) const {
        constexpr int NEXT = 2 * W_PLANE >> 4, SMALL = TILE_B * 16 >> 4;
        products_begin();
        if (PARTS == 2) {
#pragma unroll
            for (int s = 0; s < COUNT; ++s) {
                Wgmma<TILE_B>::run(sums, big[s], w + s * NEXT + SMALL, s);
                Wgmma<TILE_B>::run(sums, small[s], w + s * NEXT, 1);
            }
        }
#pragma unroll
        for (int s = 0; s < COUNT; ++s) Wgmma<TILE_B>::run(sums, big[s], w + s * NEXT, 1);
        products_commit();
    }
};

// Add the products of a stage; `meanwhile` is done while they are under way.
template <class Meanwhile>
__device__ __forceinline__ void add_products(float (&sums)[SUMS], const Rounded& x, uint64_t w, bool half,
                                             Meanwhile meanwhile) {
    float part[SUMS];
    float(&into)[SUMS] = PARTS == 2 ? part : sums;
    if (half)
        x.multiply<STEPS / 2>(into, w);
    else
        x.multiply<STEPS>(into, w);
    meanwhile();
    products_wait<0>();
    if (PARTS == 2) {
#pragma unroll
        for (int s = 0; s < SUMS; ++s) sums[s] += part[s];
    }
}

using Operand = Rounded;
#else
static_assert(PARTS == 2 && STEPS == 4, "a stage is two steps of 16 k");

// A lane's share of a stage of x in fp16, in steps of 16 k: two rows, each scaled by a power of two of its own in a
// step.
struct Scaled {
    float x[STEPS][4], scale[STEPS / 2][2], back[STEPS / 2][2];

    __device__ __forceinline__ explicit Scaled(const float (&raw)[STEPS][4]) {
#pragma unroll
        for (int s = 0; s < STEPS; ++s)
#pragma unroll
            for (int v = 0; v < 4; ++v) x[s][v] = raw[s][v];
#pragma unroll
        for (int step = 0; step < STEPS / 2; ++step) {
            const auto largest_of = [&](int row) {
                const auto two = [&](int s) { return fmaxf(fabsf(x[s][row]), fabsf(x[s][row + 2])); };
                return fmaxf(fmaxf(two(2 * step), two(2 * step + 1)), SMALLEST_SCALED);
            };
            const float largest[2] = {largest_of(0), largest_of(1)};
            scales_of(largest, scale[step], back[step], [](uint32_t both) {  // of the four lanes that have the 16 k
                both = __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 1));
                return __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 2));
            });
        }
    }

    // Start the products of a step; small ones first, while the sum is small.
    __device__ __forceinline__ void multiply(float (&t)[SUMS], int step, uint64_t w) const {
        uint4 big, small;
        const auto both_of = [&](int s, int row, uint32_t& high, uint32_t& low) {
            split(x[s][row] * scale[step][row], x[s][row + 2] * scale[step][row], high, low);
        };
        both_of(2 * step, 0, big.x, small.x), both_of(2 * step, 1, big.y, small.y);
        both_of(2 * step + 1, 0, big.z, small.z), both_of(2 * step + 1, 1, big.w, small.w);
        products_begin();
        multiply_add_registers<TILE_B, 0>(t, small, w, 0, __half());
        multiply_add_registers<TILE_B, 0>(t, big, w + (TILE_B * 16 >> 4), 1, __half());
        multiply_add_registers<TILE_B, 0>(t, big, w, 1, __half());
        products_commit();
    }

    __device__ __forceinline__ void add(float (&sums)[SUMS], float (&t)[SUMS], int step) const {
        products_wait<0>();
#pragma unroll
        for (int s = 0; s < SUMS; ++s) {
            is_changed(t[s]);
            sums[s] = fmaf(t[s], back[step][s / 2 % 2], sums[s]);
        }
    }
};

template <class Meanwhile>
__device__ __forceinline__ void add_products(float (&sums)[SUMS], const Scaled& x, uint64_t w, bool half,
                                             Meanwhile meanwhile) {
    constexpr int NEXT = 2 * W_PLANE >> 4;
    float t[SUMS];
    x.multiply(t, 0, w);
    if (half) meanwhile();
    x.add(sums, t, 0);
    if (half) return;
    x.multiply(t, 1, w + NEXT);
    meanwhile();
    x.add(sums, t, 1);
}

using Operand = Scaled;
#endif
