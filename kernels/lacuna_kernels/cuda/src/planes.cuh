// What ks_matmul_planes.cu alone needs of Hopper (sm_90a), beside hopper.cuh.
#pragma once

#include <type_traits>

#include "hopper.cuh"
#include "layout.cuh"

__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A copy out of shared memory that is a group of its own; what it writes may stay in the second-level cache.
__device__ __forceinline__ void copy_group_out(const TensorMap& map, const Coordinates& at, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
                 ::"l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(from)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

__device__ __forceinline__ void copies_out_are_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// N words that lie side by side at a multiple of their vectors' size, as few vectors as may be.
template <int N>
struct Words {
    static constexpr int AT_ONCE = N % 4 == 0 ? 4 : N % 2 == 0 ? 2 : 1, VECTORS = N / AT_ONCE;
    using Vector = std::conditional_t<AT_ONCE == 4, uint4, std::conditional_t<AT_ONCE == 2, uint2, uint32_t>>;
    union {
        uint32_t word[N];
        Vector vector[VECTORS];
    };
};
