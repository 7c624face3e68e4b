// Where things lie in shared memory, as Hopper's copy engine writes them and its tensor cores read them.
#pragma once

#include <cstdint>

// Where 16 bytes lie in a box whose rows are BYTES wide, in the order that the copy engine swizzles them: rows of 96
// bytes it leaves as they are.
template <int BYTES>
__device__ __forceinline__ uint32_t swizzled(uint32_t offset) {
    if (BYTES == 96) return offset;
    return offset ^ ((offset >> 7 & (BYTES / 16 - 1)) << 4);
}

// An operand in shared memory, made of matrices [8 rows][8 k] of 128 bytes each: how far the next 8 k and the next 8
// rows are.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t next_k, uint32_t next_rows) {
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(next_k >> 4) << 16 | uint64_t(next_rows >> 4) << 32;
}
