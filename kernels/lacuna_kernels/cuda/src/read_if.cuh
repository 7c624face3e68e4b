// Reads of device memory that may not be there, which the compiler neither splits nor moves.
#pragma once

#include <cstdint>

// 8 or 16 bytes, or zeros if the row is negative.
__device__ __forceinline__ void read_row(uint2& v, int row, const void* from) {
    asm volatile(
        "{\n.reg .pred there;\nsetp.ge.s32 there, %2, 0;\nmov.b32 %0, 0;\nmov.b32 %1, 0;\n"
        "@there ld.global.v2.b32 {%0, %1}, [%3];\n}"
        : "=r"(v.x), "=r"(v.y)
        : "r"(row), "l"(from));
}
__device__ __forceinline__ void read_row(uint4& v, int row, const void* from) {
    asm volatile(
        "{\n.reg .pred there;\nsetp.ge.s32 there, %4, 0;\n"
        "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
        "@there ld.global.v4.b32 {%0, %1, %2, %3}, [%5];\n}"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "r"(row), "l"(from));
}

// The same word, in another register once it is needed: the compiler moves what was read to where it will be used right
// away, and waits for it. So a number is mixed in that is 0, gridDim.y - 1, though the compiler cannot know.
__device__ __forceinline__ uint32_t as_read(uint32_t word) { return word ^ (gridDim.y - 1); }
