// What Hopper (sm_90a) adds, one function an instruction: barriers in shared memory that count bytes, bulk tensor
// copies that complete on them, and products of a warpgroup (wgmma) on operands in shared memory. Operand tiles are
// 128-byte rows, swizzled by 128 bytes, in memory that starts at multiples of 1024 bytes.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// The driver's description of a matrix in device memory (CUtensorMap); a kernel's first parameters.
struct alignas(64) TensorMap {
    char opaque[128];
};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void* shared_pointer(uint32_t address) { return __cvta_shared_to_generic(address); }

// The block's dynamic shared memory, which starts at a multiple of 1024 bytes.
__device__ __forceinline__ uint32_t dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return shared_address(memory);
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// For what threads themselves have read or stored each of them arrives: racecheck does not see that a warp has met
// before one of its lanes arrives.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// 0, which is there once words that this thread reads from shared memory have come. An arrival overtakes loads under
// way, so that a copy may overwrite what they are to read, and the compiler may move what is done with the words behind
// the arrival. So the barrier it is at is made to depend on them, by gridDim.y - 1, which is 0 though the compiler cannot
// know.
template <class... Words>
__device__ __forceinline__ uint32_t nothing_after(Words... words) {
    return (... ^ words) & (gridDim.y - 1);
}

// Barriers that were initialised become visible to the cluster and to copies.
__device__ __forceinline__ void barriers_are_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

// Wait until the phase of this parity is over.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// The same, but the compiler does not see the loop.
__device__ __forceinline__ void barrier_wait_unseen(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Whether the phase of this parity is over, without waiting.
__device__ __forceinline__ bool barrier_is_over(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done;
}

struct Coordinates {
    int x, y, z, w;  // fastest first
};

// Copies into shared memory, which complete on a barrier: of neighbouring bytes, or of a box.
__device__ __forceinline__ void copy_in(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void copy_in(uint32_t to, const TensorMap& map, const Coordinates& at, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
        "[%1, {%2, %3, %4, %5}], [%6];"
        ::"r"(to), "l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(barrier)
        : "memory");
}

// The same into all blocks of the cluster that are in `blocks`, bit by bit, at the same place, and on their barriers.
__device__ __forceinline__ void copy_in_all(uint32_t to, const TensorMap& map, const Coordinates& at, uint32_t barrier,
                                            uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3, %4, %5}], [%6], %7;"
        ::"r"(to), "l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(barrier), "h"(blocks)
        : "memory");
}

__device__ __forceinline__ void copy_out(const TensorMap& map, const Coordinates& at, uint32_t from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];"
                 ::"l"(&map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(from)
                 : "memory");
}

__device__ __forceinline__ void copies_out_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Wait until all but the last PENDING copies out have read shared memory.
template <int PENDING>
__device__ __forceinline__ void copies_out_have_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// What threads stored in shared memory becomes visible to the copies and products that follow.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Where so many threads meet; `id` is one of 1 to 15.
template <int THREADS>
__device__ __forceinline__ void barrier_of(int id) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
__device__ __forceinline__ void barrier_of_warpgroup(int id) { barrier_of<128>(id); }

// An operand tile in shared memory.
// Rows of 64 elements along k: groups of 8 rows lie 1024 bytes apart, k16 steps 32.
// Rows of 64 elements across k: groups of 8 k lie 1024 bytes apart, the next 64 elements `apart`, k16 steps 2048.
__device__ __forceinline__ uint64_t operand(uint32_t address, int apart = 16) {
    return uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(apart >> 4) << 16 | (address & 0x3FFFF) >> 4;
}

// The same, swizzled by 64 bytes: rows of 32 elements along k, of which groups of 8 lie 512 bytes apart, k16 steps 32; or
// rows of 32 elements across k, of which groups of 8 k lie 512 bytes apart, k16 steps 1024.
__device__ __forceinline__ uint64_t operand_of_32(uint32_t address) {
    return uint64_t(2) << 62 | uint64_t(512 >> 4) << 32 | uint64_t(1) << 16 | (address & 0x3FFFF) >> 4;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// A sum that the first product overwrites: to the compiler it has a value.
__device__ __forceinline__ void is_overwritten(float& sum) { asm volatile("" : "=f"(sum)); }

// What products change, the compiler does not read before this.
__device__ __forceinline__ void is_changed(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }

// Hide where a number comes from, so that what follows from it is computed again and takes no registers meanwhile.
__device__ __forceinline__ int hidden(int number) {
    asm volatile("" : "+r"(number));
    return number;
}
__device__ __forceinline__ const char* hidden(const char* address) {
    asm volatile("" : "+l"(address));
    return address;
}

// Which of the block's warps this is, the same for all its threads to the compiler, too: what follows from it takes no
// registers of theirs. For whole warps together.
__device__ __forceinline__ int warp_of_block() { return __shfl_sync(0xffffffff, threadIdx.x / 32, 0); }

// Take so many registers, or leave all but so many, of START with which the kernel was started.
template <int REGISTERS, int START>
__device__ __forceinline__ void take_registers() {
    if constexpr (REGISTERS < START) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    if constexpr (REGISTERS > START) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#define TEN(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define ONES "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,"
#define SUMS_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SUMS_16 ONES "%10,%11,%12,%13,%14,%15"
#define SUMS_24 ONES TEN(1) "%20,%21,%22,%23"
#define SUMS_32 ONES TEN(1) TEN(2) "%30,%31"
#define SUMS_48 ONES TEN(1) TEN(2) TEN(3) "%40,%41,%42,%43,%44,%45,%46,%47"
#define SUMS_64 ONES TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60,%61,%62,%63"
#define SUMS_96 ONES TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) "%90,%91,%92,%93,%94,%95"
#define SUMS_128 \
    ONES TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)                       \
    "%120,%121,%122,%123,%124,%125,%126,%127"
#define EIGHT(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define REGISTERS_16 EIGHT(0), EIGHT(8)
#define REGISTERS_24 EIGHT(0), EIGHT(8), EIGHT(16)
#define REGISTERS_32(i) EIGHT(i), EIGHT(i + 8), EIGHT(i + 16), EIGHT(i + 24)
#define REGISTERS_48 REGISTERS_32(0), EIGHT(32), EIGHT(40)
#define REGISTERS_64 REGISTERS_32(0), REGISTERS_32(32)
#define REGISTERS_96 REGISTERS_64, REGISTERS_32(64)
#define REGISTERS_128 REGISTERS_96, REGISTERS_32(96)
#define PRODUCT(width, sums, registers, type, x_at, y_at, add_at, across_at)                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32." type "." type " {" sums "}, %" #x_at \
                 ", %" #y_at ", p, 1, 1, 0, %" #across_at ";\n}"                                          \
                 : registers                                                                              \
                 : "l"(x), "l"(y), "r"(add), "n"(CROSS))
#define PRODUCTS(type)                                                                    \
    static_assert(N == 16 || N == 32 || N == 48 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256, \
                  "not written down");                                                    \
    if constexpr (N == 16) PRODUCT(16, SUMS_8, EIGHT(0), type, 8, 9, 10, 11);             \
    if constexpr (N == 32) PRODUCT(32, SUMS_16, REGISTERS_16, type, 16, 17, 18, 19);      \
    if constexpr (N == 48) PRODUCT(48, SUMS_24, REGISTERS_24, type, 24, 25, 26, 27);      \
    if constexpr (N == 64) PRODUCT(64, SUMS_32, REGISTERS_32(0), type, 32, 33, 34, 35);   \
    if constexpr (N == 96) PRODUCT(96, SUMS_48, REGISTERS_48, type, 48, 49, 50, 51);      \
    if constexpr (N == 128) PRODUCT(128, SUMS_64, REGISTERS_64, type, 64, 65, 66, 67);    \
    if constexpr (N == 192) PRODUCT(192, SUMS_96, REGISTERS_96, type, 96, 97, 98, 99);    \
    if constexpr (N == 256) PRODUCT(256, SUMS_128, REGISTERS_128, type, 128, 129, 130, 131)

// d [64, N] = x [64, 16 k] y [16 k, N], plus d if `add`. Rows of x are along k; those of y too, or lie CROSS it.
// Thread t of the warpgroup has row t / 32 * 16 + t % 32 / 4 (+ 8 for the last two of every four sums) and columns
// 8 i + t % 4 * 2 (+ 1) in d[4 i ...].
template <int N, int CROSS>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], uint64_t x, uint64_t y, int add, __half) {
    PRODUCTS("f16");
}

template <int N, int CROSS>
__device__ __forceinline__ void multiply_add(float (&d)[N / 2], uint64_t x, uint64_t y, int add, __nv_bfloat16) {
    PRODUCTS("bf16");
}

#define REGISTER_PRODUCT(width, sums, registers, type, x0, x1, x2, x3, y_at, add_at, across_at)                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\n"                                               \
                 "wgmma.mma_async.sync.aligned.m64n" #width "k16.f32." type "." type " {" sums "}, {%" #x0 ",%" #x1  \
                 ",%" #x2 ",%" #x3 "}, %" #y_at ", p, 1, 1, %" #across_at ";\n}"                                     \
                 : registers                                                                                         \
                 : "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "l"(y), "r"(add), "n"(CROSS))
#define REGISTER_PRODUCTS(type)                                                                             \
    static_assert(N == 16 || N == 32 || N == 48 || N == 64 || N == 96 || N == 128, "not written down");      \
    if constexpr (N == 16) REGISTER_PRODUCT(16, SUMS_8, EIGHT(0), type, 8, 9, 10, 11, 12, 13, 14);           \
    if constexpr (N == 32) REGISTER_PRODUCT(32, SUMS_16, REGISTERS_16, type, 16, 17, 18, 19, 20, 21, 22);    \
    if constexpr (N == 48) REGISTER_PRODUCT(48, SUMS_24, REGISTERS_24, type, 24, 25, 26, 27, 28, 29, 30);    \
    if constexpr (N == 64) REGISTER_PRODUCT(64, SUMS_32, REGISTERS_32(0), type, 32, 33, 34, 35, 36, 37, 38); \
    if constexpr (N == 96) REGISTER_PRODUCT(96, SUMS_48, REGISTERS_48, type, 48, 49, 50, 51, 52, 53, 54);    \
    if constexpr (N == 128) REGISTER_PRODUCT(128, SUMS_64, REGISTERS_64, type, 64, 65, 66, 67, 68, 69, 70)

// The same, where x is in registers, which must not change before the products are done: of rows r, r + 8, r, r + 8,
// r = thread / 32 * 16 + thread % 32 / 4, k 2 t and 2 t + 1 for the first two, and 8 more for the others, t = thread % 4.
template <int N, int CROSS>
__device__ __forceinline__ void multiply_add_registers(float (&d)[N / 2], const uint4& x, uint64_t y, int add, __half) {
    REGISTER_PRODUCTS("f16");
}

template <int N, int CROSS>
__device__ __forceinline__ void multiply_add_registers(float (&d)[N / 2], const uint4& x, uint64_t y, int add,
                                                       __nv_bfloat16) {
    REGISTER_PRODUCTS("bf16");
}

#define SPARSE_PRODUCT(width, sums, registers, type, x_at, y_at, which_at, add_at)                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_at ", 0;\n"                                         \
                 "wgmma.mma_async.sp.sync.aligned.m64n" #width "k32.f32." type "." type " {" sums "}, %" #x_at \
                 ", %" #y_at ", %" #which_at ", 0, p, 1, 1, 0, 0;\n}"                                          \
                 : registers                                                                                   \
                 : "l"(x), "l"(y), "r"(which), "r"(add))
#define SPARSE_PRODUCTS(type)                                                               \
    static_assert(N == 128 || N == 256, "not written down");                                \
    if constexpr (N == 128) SPARSE_PRODUCT(128, SUMS_64, REGISTERS_64, type, 64, 65, 66, 67); \
    if constexpr (N == 256) SPARSE_PRODUCT(256, SUMS_128, REGISTERS_128, type, 128, 129, 130, 131)

// d [64, N] = x [64, 32 k] y [32 k, N], plus d if `add`, where of every 4 neighbours of a row of x two are there, side
// by side, and the others are 0: 16 k of them. Rows of y are along k. `which` tells their places: for each 4 neighbours
// those of the first and the second, of two bits each. Lane 4 r + h has those of rows r (low half) and r + 8 of its
// warp's 16 rows, of the h-th 16 of the 32 k, for h = 0 and 1. It must not change before the products are done.
template <int N>
__device__ __forceinline__ void multiply_add_sparse(float (&d)[N / 2], uint64_t x, uint64_t y, uint32_t which, int add,
                                                    __half) {
    SPARSE_PRODUCTS("f16");
}

template <int N>
__device__ __forceinline__ void multiply_add_sparse(float (&d)[N / 2], uint64_t x, uint64_t y, uint32_t which, int add,
                                                    __nv_bfloat16) {
    SPARSE_PRODUCTS("bf16");
}

// Two neighbours in a word.
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

// Four 8x8 matrices between registers (a pair of neighbours of row lane / 4 each) and rows of 16 bytes, one a lane.
__device__ __forceinline__ void store_matrices(uint32_t row, const uint32_t (&pairs)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(row), "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
}

// The same, each matrix turned: a lane's row of 16 bytes is a column of its matrix.
__device__ __forceinline__ void store_turned(uint32_t row, const uint32_t (&pairs)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 ::"r"(row), "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
}

__device__ __forceinline__ void load_turned(uint32_t (&pairs)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(row)
                 : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&pairs)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(row)
                 : "memory");
}
