// fp32 products on Hopper's tensor cores, which multiply tf32 (11 significant bits) and add up in fp32, truncating.
//
// A number is split into big + small, both tf32: big rounds to nearest, small is what is left. Then
//   x * w ~ big(x) * small(w) + small(x) * big(w) + big(x) * big(w)
// loses only small * small, 2^-24 of the whole. The small products come first, so that what truncating them loses is
// 2^-11 of what it loses on the big ones. After GATHER of k the tensor cores' sum is added to an ordinary fp32 one
// and begins anew: truncation always shrinks a sum, so that over a thousand k in one go it would lose 7e-6.
#pragma once

#include <cstdint>

constexpr int GATHER = 32;  // k; a multiple of 8, which is what one instruction adds up

// To tf32 by rounding to nearest, ties away from zero. The tensor cores would ignore the low 13 bits.
__device__ __forceinline__ uint32_t to_tf32(float x) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

// What rounding left over, exact in fp32; the tensor cores drop its bits past the 11th.
__device__ __forceinline__ uint32_t left_over(float x, uint32_t big) {
    return __float_as_uint(x - __uint_as_float(big));
}

// Make the compiler finish with a register here: what a wgmma reads must be there before its fence.
__device__ __forceinline__ void pin(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }

// sums[64, COLUMNS] = (accumulate ? sums : 0) + a[64, 8] * b[COLUMNS, 8]^T for one warpgroup, in the background. A lane
// holds (row lane / 4, k lane % 4), (row + 8, k), (row, k + 4), (row + 8, k + 4) of a, where row counts from 16 * warp,
// and (row, column lane % 4 * 2), (row, column + 1), (row + 8, column), (row + 8, column + 1) of every 8 columns of
// sums.
template <int COLUMNS>
struct Wgmma;

#define S8(s, i)                                                                                              \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]), \
        "+f"(s[i + 7])
template <>
struct Wgmma<48> {
    __device__ __forceinline__ static void run(float* s, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %29, 0; wgmma.mma_async.sync.aligned.m64n48k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23"
            "}, {%24, %25, %26, %27}, %28, p, 1, 1; }"
            : S8(s, 0), S8(s, 8), S8(s, 16)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    }
};

template <>
struct Wgmma<64> {
    __device__ __forceinline__ static void run(float* s, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
            "}, {%32, %33, %34, %35}, %36, p, 1, 1; }"
            : S8(s, 0), S8(s, 8), S8(s, 16), S8(s, 24)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    }
};

template <>
struct Wgmma<96> {
    __device__ __forceinline__ static void run(float* s, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %53, 0; wgmma.mma_async.sync.aligned.m64n96k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
            "}, {%48, %49, %50, %51}, %52, p, 1, 1; }"
            : S8(s, 0), S8(s, 8), S8(s, 16), S8(s, 24),
              S8(s, 32), S8(s, 40)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    }
};

template <>
struct Wgmma<128> {
    __device__ __forceinline__ static void run(float* s, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
            "}, {%64, %65, %66, %67}, %68, p, 1, 1; }"
            : S8(s, 0), S8(s, 8), S8(s, 16), S8(s, 24),
              S8(s, 32), S8(s, 40), S8(s, 48), S8(s, 56)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    }
};

template <>
struct Wgmma<256> {
    __device__ __forceinline__ static void run(float* s, const uint32_t (&a)[4], uint64_t b, int accumulate) {
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %133, 0; wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
            "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
            "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
            "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
            "}, {%128, %129, %130, %131}, %132, p, 1, 1; }"
            : S8(s, 0), S8(s, 8), S8(s, 16), S8(s, 24),
              S8(s, 32), S8(s, 40), S8(s, 48), S8(s, 56),
              S8(s, 64), S8(s, 72), S8(s, 80), S8(s, 88),
              S8(s, 96), S8(s, 104), S8(s, 112), S8(s, 120)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
    }
};
#undef S8
