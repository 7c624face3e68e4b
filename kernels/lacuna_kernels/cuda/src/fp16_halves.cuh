// fp32 values as the sum of one or two halves of 11 bits each, in fp16, scaled by powers of two: its exponents are few.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

// Where values are this small there is no power of two for them.
constexpr float SMALLEST_SCALED = 3.2e-30f;

// From the largest values of a lane, of each l: by what values are multiplied so that the largest becomes 2^14 to
// 2^15, and by what their sums are then. The factor's own scale makes up for 2^14 too. The upper 16 bits tell the
// exponent, so two l are compared at once; `among` gives the largest of all lanes that share a scale.
template <int COUNT, class Among>
__device__ __forceinline__ void scales_of(const float (&largest)[COUNT], float (&scale)[COUNT], float (&back)[COUNT],
                                          Among among) {
    constexpr uint32_t EXPONENT = 0x7f800000, UP = (127u + 127 + 14) << 23, DOWN = (14u + 14) << 23;
#pragma unroll
    for (int l = 0; l < COUNT; l += 2) {
        const bool second = l + 1 < COUNT;
        const uint32_t both = among(__byte_perm(__float_as_uint(largest[l]),
                                                __float_as_uint(largest[second ? l + 1 : l]), 0x7632));
        const uint32_t low = both << 16 & EXPONENT, high = both & EXPONENT;
        scale[l] = __uint_as_float(UP - low), back[l] = __uint_as_float(low - DOWN);
        if (second) scale[l + 1] = __uint_as_float(UP - high), back[l + 1] = __uint_as_float(high - DOWN);
    }
}

__device__ __forceinline__ uint32_t bits(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

// Two values rounded to fp16, and what that leaves of them, rounded again.
__device__ __forceinline__ void split(float first, float second, uint32_t& big, uint32_t& small) {
    const __half2 rounded = __floats2half2_rn(first, second);
    const float2 taken = __half22float2(rounded);
    big = bits(rounded);
    small = bits(__floats2half2_rn(first - taken.x, second - taken.y));
}
