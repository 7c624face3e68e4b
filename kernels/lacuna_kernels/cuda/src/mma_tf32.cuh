// Products of a warp on tensor cores that multiply tf32 (sm_80 and later), and how it reads its operand from shared
// memory. A lane has, where row and column are lane / 4 and k is lane % 4,
//   of a[16 rows, 8 k]            (row, k), (row + 8, k), (row, k + 4), (row + 8, k + 4)
//   of b[8 k, 8 columns]          (k, column), (k + 4, column)
//   of sums[16 rows, 8 columns]   (row, 2 k), (row, 2 k + 1), (row + 8, 2 k), (row + 8, 2 k + 1)
#pragma once

#include <cstdint>

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A lane's share of a[16, 8]: lane m % 16 gives the address of the first four k of row m, lane 16 + m % 16 that of the
// others, at multiples of 16 bytes.
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(from)
                 : "memory");
}

// sums += a b, of numbers in tf32: what they have past its 11 significant bits is ignored.
__device__ __forceinline__ void add_product(float (&sums)[4], const uint32_t (&a)[4], uint32_t b, uint32_t b_further) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(b_further));
}
