// Stands in for src/hopper.cuh where kernels run on a CPU: the same functions, and what else CUDA has that they use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "machine.cuh"

#undef __forceinline__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__

using std::max;
using std::min;

struct Dimensions {
    int x;
};
#define threadIdx Dimensions{machine::current->index}
#define blockIdx Dimensions{machine::first_block + machine::current->block}
#define gridDim Dimensions{machine::grid}

inline void __syncthreads() { machine::meet(machine::part("threads ", 1 << 20), machine::block_threads); }
inline void __syncwarp() { machine::meet(machine::part("warp ", machine::WARP), machine::WARP); }

inline int warp_of_block() { return threadIdx.x / 32; }

// What another thread of the warp has.
inline uint32_t shuffled(uint32_t value, int thread) {
    auto& values = machine::cluster->blocks[machine::current->block].shuffled;
    values[machine::current->index] = value;
    __syncwarp();
    const uint32_t other = values[thread];
    __syncwarp();
    return other;
}
inline uint32_t __shfl_xor_sync(unsigned, uint32_t value, int mask) {
    return shuffled(value, machine::current->index ^ mask);
}

inline int __shfl_sync(unsigned, int value, int lane) {
    return int(shuffled(value, machine::current->index / machine::WARP * machine::WARP + lane));
}

inline bool __any_sync(unsigned, bool predicate) {
    bool any = false;
    for (int lane = 0; lane < machine::WARP; ++lane) any |= __shfl_sync(0, predicate, lane) != 0;
    return any;
}

inline int __syncthreads_or(int predicate) {
    auto& values = machine::cluster->blocks[machine::current->block].shuffled;
    values[machine::current->index] = predicate != 0;
    __syncthreads();
    uint32_t any = 0;
    for (const auto& [thread, value] : values) any |= value;
    __syncthreads();
    return int(any);
}

inline unsigned atomicInc(unsigned* number, unsigned most) {
    const unsigned before = *number;
    *number = before >= most ? 0 : before + 1;
    return before;
}

inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline int __ffs(unsigned word) { return __builtin_ffs(int(word)); }

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t order) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i) out |= uint32_t(bytes >> 8 * (order >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}

inline uint32_t __vmaxu2(uint32_t a, uint32_t b) { return max(a & 0xffff, b & 0xffff) | max(a >> 16, b >> 16) << 16; }

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "alike");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
inline uint32_t __float_as_uint(float value) { return bits_as<uint32_t>(value); }
inline float __uint_as_float(uint32_t value) { return bits_as<float>(value); }

// ---- what hopper.cuh has ----
struct alignas(64) TensorMap {
    unsigned char* from;
    long sizes[4], strides[3];  // in elements, fastest first; in bytes
    int box[4], swizzle_bytes, element_bytes;
};
static_assert(sizeof(TensorMap) == 128, "as the driver's");

struct Coordinates {
    int x, y, z, w;
};

inline uint32_t dynamic_shared() { return uint32_t(machine::current->block + 1) << 24; }  // as in a cluster
inline void* shared_pointer(uint32_t address) { return machine::at(address, 0, 1); }
inline uint32_t shared_address(const void* pointer) {
    const auto& shared = machine::cluster->blocks[machine::current->block].shared;
    return dynamic_shared() + uint32_t(static_cast<const unsigned char*>(pointer) - shared.data());
}

inline void barrier_init(uint32_t barrier, int arrivals) {
    auto& barriers = machine::cluster->blocks[machine::current->block].barriers;
    if (!barriers.emplace(barrier & machine::OFFSET, machine::Barrier{arrivals, arrivals}).second)
        machine::fail("a barrier made twice");
}
inline void barriers_are_ready() {}
inline void barrier_arrive(uint32_t barrier) { machine::arrive(machine::barrier_at(barrier)); }
template <class... Words>
inline uint32_t nothing_after(Words...) {
    return 0;
}
inline void barrier_expect(uint32_t address, int bytes) {
    machine::Barrier& barrier = machine::barrier_at(address);
    barrier.bytes += bytes;
    machine::arrive(barrier);
}
inline void barrier_wait(uint32_t address, uint32_t parity) {
    const machine::Barrier& barrier = machine::barrier_at(address);
    machine::wait_until([&barrier, parity] { return barrier.phase != (parity & 1); }, "barrier " + std::to_string(address));
}

inline void barrier_wait_unseen(uint32_t address, uint32_t parity) { barrier_wait(address, parity); }

inline bool barrier_is_over(uint32_t address, uint32_t parity) {
    return machine::barrier_at(address).phase != (parity & 1);
}
inline void __nanosleep(unsigned) { machine::idle(); }
template <int THREADS>
inline void barrier_of(int id) {
    machine::meet("barrier " + std::to_string(id) + " of block " + std::to_string(machine::current->block), THREADS);
}
inline void barrier_of_warpgroup(int) {
    machine::meet(machine::part("barrier of warpgroup ", machine::WARPGROUP), machine::WARPGROUP);
}

inline void copy_in(uint32_t to, const void* from, int bytes, uint32_t barrier) {
    if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) machine::fail("a bulk copy of no whole 16 bytes");
    unsigned char* there = machine::at(to, bytes, 16);
    machine::send(bytes, machine::barrier_at(barrier), [=] { memcpy(there, from, bytes); });
}

// For each element of a box: how far from `shared`, where the box begins, and where in memory it lies, and whether it
// is there.
template <class Do>
inline void each_element(const TensorMap& m, const Coordinates& at, uint32_t shared, Do what) {
    const long first[4] = {at.x, at.y, at.z, at.w};
    for (int element = 0; element < m.box[0] * m.box[1] * m.box[2] * m.box[3]; ++element) {
        unsigned char* memory = m.from;
        bool inside = true;
        for (int axis = 0, rest = element; axis < 4; rest /= m.box[axis++]) {
            const long place = first[axis] + rest % m.box[axis];
            inside &= 0 <= place && place < m.sizes[axis];
            memory += place * (axis ? m.strides[axis - 1] : m.element_bytes);
        }
        uint32_t offset = shared + element * m.element_bytes;
        if (m.swizzle_bytes) offset ^= (offset >> 7 & (m.swizzle_bytes / 16 - 1)) << 4;
        what(long(offset) - long(shared), memory, inside);
    }
}
inline int box_bytes(const TensorMap& m) { return m.box[0] * m.box[1] * m.box[2] * m.box[3] * m.element_bytes; }

inline void copy_in(uint32_t to, const TensorMap& map, const Coordinates& at, uint32_t barrier) {
    unsigned char* start = machine::at(to, box_bytes(map), 128);
    machine::send(box_bytes(map), machine::barrier_at(barrier), [=, m = map] {
        each_element(m, at, to, [&](long offset, const unsigned char* from, bool inside) {
            inside ? memcpy(start + offset, from, m.element_bytes) : memset(start + offset, 0, m.element_bytes);
        });
    });
}

// What a copy out reads, it reads late: when the thread waits for it.
inline void copy_out(const TensorMap& map, const Coordinates& at, uint32_t from) {
    const unsigned char* start = machine::at(from, box_bytes(map), 128);
    machine::current->copies_out.push_back([=, m = map] {
        each_element(m, at, from, [&](long offset, unsigned char* to, bool inside) {
            if (inside) memcpy(to, start + offset, m.element_bytes);
        });
    });
}
inline void copies_out_commit() {
    machine::current->committed_out.push_back(std::move(machine::current->copies_out));
    machine::current->copies_out.clear();
}
template <int PENDING>
inline void copies_out_have_read() {
    auto& committed = machine::current->committed_out;
    for (; committed.size() > PENDING; committed.pop_front())
        for (const auto& copy : committed.front()) copy();
}

inline void publish_shared() {}
inline void is_overwritten(float& sum) { sum = NAN; }
inline void is_changed(float&) {}
inline int hidden(int number) { return number; }
inline const char* hidden(const char* address) { return address; }
template <int REGISTERS, int START>
inline void take_registers() {}

inline uint64_t operand_of_32(uint32_t address) {
    return uint64_t(2) << 62 | uint64_t(512 >> 4) << 32 | (address & 0x3FFFF) >> 4;
}
inline void products_begin() {}
inline void products_commit() {
    machine::current->committed.push_back(std::move(machine::current->products));
    machine::current->products.clear();
}
template <int PENDING>
inline void products_wait() {
    auto& committed = machine::current->committed;
    for (; committed.size() > PENDING; committed.pop_front())
        for (const auto& product : committed.front()) product();
    machine::meet(machine::part("warpgroup ", machine::WARPGROUP), machine::WARPGROUP);
}

inline float as_float(__half value) { return __half2float(value); }
inline float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// 16 k of a row of an operand in shared memory, which is made of matrices [8][8 k], see layout.cuh, or of rows of 64
// bytes, swizzled so.
template <class T>
inline void read_row(const machine::Memory& shared, uint64_t operand, int row, float (&values)[16]) {
    const bool swizzled = operand >> 62 == 2;
    const uint32_t start = (operand & 0x3fff) << 4, next_k = swizzled ? 16 : (operand >> 16 & 0x3fff) << 4;
    const uint32_t place = start + row / 8 * ((operand >> 32 & 0x3fff) << 4) + row % 8 * (swizzled ? 64 : 16);
    for (int k = 0; k < 16; ++k) {
        const uint32_t from = place + k / 8 * next_k + k % 8 * 2;
        T value;
        memcpy(&value, &shared.at(swizzled ? from ^ (from >> 7 & 3) << 4 : from), sizeof(T));
        values[k] = as_float(value);
    }
}

template <class Product>
inline void start(const Product& product) {
    if (machine::late_products)
        machine::current->products.push_back(product);
    else
        product();
}

// What the thread has of a product is as in src/hopper.cuh; `rows_of` gives its rows of x.
template <int N, class T, class Rows>
inline void start_product(float* d, Rows rows_of, uint64_t y, int add) {
    const auto& shared = machine::cluster->blocks[machine::current->block].shared;
    const int thread = machine::current->index % machine::WARPGROUP;
    start([=, &shared] {
        float rows[2][16], column[16];
        rows_of(rows);
        for (int n = 0; n < N / 2; n += n % 4 ? 3 : 1) {  // sums n and n + 2 are of one column
            read_row<T>(shared, y, n / 4 * 8 + thread % 4 * 2 + n % 2, column);
            for (int h = 0; h < 2; ++h) {
                float sum = add ? d[n + 2 * h] : 0.0f;
                for (int k = 0; k < 16; ++k) sum += rows[h][k] * column[k];
                d[n + 2 * h] = sum;
            }
        }
    });
}

template <int N, int CROSS, class T>
inline void multiply_add(float (&sums)[N / 2], uint64_t x, uint64_t y, int add, T) {
    static_assert(CROSS == 0, "rows along k");
    const auto& shared = machine::cluster->blocks[machine::current->block].shared;
    const int thread = machine::current->index % machine::WARPGROUP;
    const auto rows_of = [=, &shared](float (&rows)[2][16]) {
        for (int h = 0; h < 2; ++h) read_row<T>(shared, x, thread / 32 * 16 + thread % 32 / 4 + 8 * h, rows[h]);
    };
    start_product<N, T>(sums, rows_of, y, add);
}

// [word][lane] of the four lanes that have rows r and r + 8.
inline std::array<uint32_t, 16> of_four_lanes(const std::array<uint32_t, 4>& words) {
    std::array<uint32_t, 16> all;
    for (int word = 0; word < 4; ++word)
        for (int lane = 0; lane < 4; ++lane)
            all[word * 4 + lane] = shuffled(words[word], machine::current->index / 4 * 4 + lane);
    return all;
}

// It reads the registers at once: that they must not change before the products are done is not seen.
template <int N, int CROSS, class T>
inline void multiply_add_registers(float (&sums)[N / 2], const uint4& x, uint64_t y, int add, T) {
    static_assert(CROSS == 0, "rows along k");
    const auto mine = of_four_lanes({x.x, x.y, x.z, x.w});
    const auto rows_of = [mine](float (&rows)[2][16]) {
        for (int h = 0; h < 2; ++h)
            for (int k = 0; k < 16; ++k) {
                T pair[2];
                memcpy(pair, &mine[(h + k / 8 * 2) * 4 + k % 8 / 2], sizeof(pair));
                rows[h][k] = as_float(pair[k % 2]);
            }
    };
    start_product<N, T>(sums, rows_of, y, add);
}

inline uint32_t pack(float low, float high, __half) { return bits_as<uint32_t>(__floats2half2_rn(low, high)); }
inline uint32_t pack(float low, float high, __nv_bfloat16) { return bits_as<uint32_t>(__floats2bfloat162_rn(low, high)); }
inline float2 unpack(uint32_t both, __half) { return __half22float2(bits_as<__half2>(both)); }
inline float2 unpack(uint32_t both, __nv_bfloat16) { return __bfloat1622float2(bits_as<__nv_bfloat162>(both)); }
