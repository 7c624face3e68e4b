// 1 / x within a unit in the last place, in one instruction; 0 for what is too large.
#pragma once

__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
