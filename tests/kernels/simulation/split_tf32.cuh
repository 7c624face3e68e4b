// Stands in for src/split_tf32.cuh where kernels run on a CPU.
#pragma once

#include "hopper.cuh"

constexpr int GATHER = 32;

inline uint32_t to_tf32(float x) { return (__float_as_uint(x) + 0x1000) & ~0x1fffu; }
inline uint32_t left_over(float x, uint32_t big) { return __float_as_uint(x - __uint_as_float(big)); }
inline void pin(uint32_t&) {}

// 8 k of tf32: 4 of them are 16 bytes of a matrix of 8 rows.
template <int COLUMNS>
struct Wgmma {
    static void run(float* sums, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        const auto mine = of_four_lanes({a[0], a[1], a[2], a[3]});
        const auto& shared = machine::cluster->blocks[machine::current->block].shared;
        const int thread = machine::current->index % machine::WARPGROUP;
        const auto tf32 = [](uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); };
        start([=, &shared] {
            for (int n = 0; n < COLUMNS / 2; ++n) {
                const int column = n / 4 * 8 + thread % 4 * 2 + n % 2, row = n / 2 % 2;
                float sum = accumulate ? sums[n] : 0.0f;
                for (int k = 0; k < 8; ++k) {
                    const uint32_t start = (b & 0x3fff) << 4, next_k = (b >> 16 & 0x3fff) << 4;
                    uint32_t bits;
                    memcpy(&bits, &shared.at(start + k / 4 * next_k + column * 16 + k % 4 * 4), 4);
                    sum += tf32(mine[(row + k / 4 * 2) * 4 + k % 4]) * tf32(bits);
                }
                sums[n] = sum;
            }
        });
    }
};
