// What the blocks of a cluster, a team, do with one another's shared memory (Hopper, sm_90a).
#pragma once

#include <cstdint>

// The address of a place of this block's shared memory in another block.
__device__ __forceinline__ uint32_t in_block(uint32_t address, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

__device__ __forceinline__ void arrive_there(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Store in a block of the team; the barrier there counts the bytes.
__device__ __forceinline__ void store_there(uint32_t to, const uint4& v, uint32_t barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
                 : "memory");
}

// The same, or an ordinary store if `away`, from this block's places to those of the other, is 0.
__device__ __forceinline__ void store_in_team(uint32_t to, uint32_t away, const uint4& v, uint32_t barrier) {
    asm volatile(
        "{\n.reg .pred here;\nsetp.eq.u32 here, %6, 0;\n"
        "@here st.shared.v4.b32 [%0], {%2, %3, %4, %5};\n"
        "@!here st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%1], {%2, %3, %4, %5}, [%7];\n}"
        ::"r"(to), "r"(to + away), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(away), "r"(barrier + away)
        : "memory");
}

__device__ __forceinline__ void store_in_team(uint32_t to, uint32_t away, const uint2& v, uint32_t barrier) {
    asm volatile(
        "{\n.reg .pred here;\nsetp.eq.u32 here, %4, 0;\n"
        "@here st.shared.v2.b32 [%0], {%2, %3};\n"
        "@!here st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%1], {%2, %3}, [%5];\n}"
        ::"r"(to), "r"(to + away), "r"(v.x), "r"(v.y), "r"(away), "r"(barrier + away)
        : "memory");
}

__device__ __forceinline__ void store_in_team(uint32_t to, uint32_t away, uint32_t word, uint32_t barrier) {
    asm volatile(
        "{\n.reg .pred here;\nsetp.eq.u32 here, %3, 0;\n"
        "@here st.shared.b32 [%0], %2;\n"
        "@!here st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%1], %2, [%4];\n}"
        ::"r"(to), "r"(to + away), "r"(word), "r"(away), "r"(barrier + away)
        : "memory");
}

__device__ __forceinline__ void meet_team() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

__device__ __forceinline__ uint4 read_16_bytes(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint2 read_8_bytes(uint32_t from) {
    uint2 v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
    return v;
}

__device__ __forceinline__ float read_float(uint32_t from) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
    return v;
}

__device__ __forceinline__ void write_16_bytes(uint32_t to, const uint4& v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

__device__ __forceinline__ void write_8_bytes(uint32_t to, const uint2& v) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
}

// 16 bytes to device memory at once; of an assignment the compiler may make four.
__device__ __forceinline__ void write_out(void* to, const uint4& v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
