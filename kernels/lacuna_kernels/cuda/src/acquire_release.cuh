// Counters in device memory by which blocks tell one another what is there.
#pragma once

// These return what was there before.
__device__ __forceinline__ unsigned add_relaxed(unsigned* number, unsigned more) { return atomicAdd(number, more); }

// What the thread wrote, or knew to be written when it met others at a barrier, is there for whoever sees the sum.
__device__ __forceinline__ unsigned add_released(unsigned* number, unsigned more) {
    __threadfence();
    return atomicAdd(number, more);
}

__device__ __forceinline__ unsigned read_acquired(const unsigned* number) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(number) : "memory");
    return value;
}

// What others did before they added something, if the thread saw the sum, is done.
__device__ __forceinline__ void acquire() { __threadfence(); }
