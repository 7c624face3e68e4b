// What ks_matmul_planes.cu needs of Hopper (sm_90a), one function an instruction.
#pragma once

#include <cstdint>
#include <type_traits>

#include "element.cuh"

// The driver's description of a matrix in device memory (CUtensorMap); a kernel's first parameters.
struct alignas(64) TensorMap {
    char opaque[128];
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Whether the phase of this parity is over.
__device__ __forceinline__ bool barrier_is_over(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
    return over;
}

// Wait until it is.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!over);
}

// What threads stored in shared memory becomes visible to the copies and products that follow.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

struct Coordinates {
    int x, y, z, w;  // fastest first
};

// Copies into shared memory, which complete on a barrier.
__device__ __forceinline__ void copy_in(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ void copy_in(uint32_t to, const TensorMap& map, const Coordinates& at, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
        ::"r"(to), "l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(barrier)
        : "memory");
}

// Copies out of shared memory, each a group of its own.
__device__ __forceinline__ void copy_out(const TensorMap& map, const Coordinates& at, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
                 ::"l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(from)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Wait until all but the last PENDING of this thread's copies out have read shared memory.
template <int PENDING>
__device__ __forceinline__ void copies_out_have_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void copies_out_are_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Where 16 bytes lie in a box whose rows are BYTES wide, in the order that the copy engine swizzles them.
template <int BYTES>
__device__ __forceinline__ uint32_t swizzled(uint32_t offset) {
    return offset ^ ((offset >> 7 & (BYTES / 16 - 1)) << 4);
}

// An operand in shared memory, made of matrices [8 rows][8 k] of 128 bytes each: how far the next 8 k and the next 8 rows are.
__device__ __forceinline__ uint64_t operand(uint32_t address, uint32_t next_k, uint32_t next_rows) {
    return uint64_t(address >> 4 & 0x3fff) | uint64_t(next_k >> 4) << 16 | uint64_t(next_rows >> 4) << 32;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define SUMS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SUMS_16 SUMS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define SUMS_32 SUMS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SUMS_64                                                                          \
    SUMS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49," \
            "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define REGISTERS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define REGISTERS_16(i) REGISTERS_8(i), REGISTERS_8(i + 8)
#define REGISTERS_32(i) REGISTERS_16(i), REGISTERS_16(i + 16)
#define REGISTERS_64 REGISTERS_32(0), REGISTERS_32(32)
#define PRODUCT(width, sums, registers, type, w_at, x_at, add_at)                                                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\n"                                                  \
                 "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32." type "." type " {" sums "}, %" #w_at ", %" #x_at \
                 ", p, 1, 1, 0, 0;\n}"                                                                                  \
                 : registers                                                                                            \
                 : "l"(w), "l"(x), "r"(add))
#define PRODUCTS(type)                                                              \
    if constexpr (N == 16) PRODUCT(16, SUMS_8, REGISTERS_8(0), type, 8, 9, 10);     \
    if constexpr (N == 32) PRODUCT(32, SUMS_16, REGISTERS_16(0), type, 16, 17, 18); \
    if constexpr (N == 64) PRODUCT(64, SUMS_32, REGISTERS_32(0), type, 32, 33, 34); \
    if constexpr (N == 128) PRODUCT(128, SUMS_64, REGISTERS_64, type, 64, 65, 66)

// d [64, N] = w [64, 16] x^T [16, N], plus d if `add`. Thread t of the warpgroup has rows t / 32 * 16 + t % 32 / 4 (+ 8)
// and columns 8 i + t % 4 * 2 (+ 1): d[4 i + 2 * second row + second column].
template <int N>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], uint64_t w, uint64_t x, int add, __half) {
    PRODUCTS("f16");
}

template <int N>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], uint64_t w, uint64_t x, int add, __nv_bfloat16) {
    PRODUCTS("bf16");
}

__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}
__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
}
__device__ __forceinline__ float2 unpack(uint32_t both, __half) {
    return __half22float2(*reinterpret_cast<const __half2*>(&both));
}
__device__ __forceinline__ float2 unpack(uint32_t both, __nv_bfloat16) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&both));
}

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
