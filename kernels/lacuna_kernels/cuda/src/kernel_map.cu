// Kernel maps: `order` int32 [capacity] are the output rows, those that read through like offsets side by side, so that
// a tile of a convolution finds few offsets that only some of its rows have; map int32 [volume, capacity] is the input
// row that an offset leads to from each place of `order`, or -1. Places past *count are not written.
// Launched in this order: forward_rows or inverse_rows, [sort.cu], order_map.
#include "geometry.cuh"
#include "gray.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define GROUP 64  // places of a word of `present`
#define FULL_WARP 0xffffffffu

// rows int32 [capacity, pitch] what each output row reads, -1 for nothing and past the volume; pitch is 8, 16 or a
// multiple of 32. keys [capacity] are what rows are sorted by: where the word comes in the Gray code of those bits
// that an offset which leads somewhere has: bits [volume], -1 for none.
// find(site, kx, ky, kz) gives the input row of an output site.
template <class Find>
__device__ inline void find_rows(const Site* __restrict__ outputs, int count, const Geometry& g,
                                 const int* __restrict__ bits, int* __restrict__ rows, int pitch,
                                 int* __restrict__ keys, Find find) {
    const int across = min(pitch, 32), volume = volume_of(g), lane = threadIdx.x % across, at_once = THREADS / across;
    for (int first = blockIdx.x * at_once; first < count; first += gridDim.x * at_once) {
        const int m = first + threadIdx.x / across;
        const Site site = m < count ? outputs[m] : Site{};
        unsigned word = 0;
        for (int k = lane; k < pitch; k += across) {
            const int kz = k % g.size[2], ky = k / g.size[2] % g.size[1], kx = k / (g.size[1] * g.size[2]);
            const int row = m < count && k < volume ? find(site, kx, ky, kz) : -1;
            if (m < count) rows[(size_t)m * pitch + k] = row;
            if (row >= 0 && bits[k] >= 0) word |= 1u << bits[k];
        }
        for (int step = across / 2; step; step /= 2) word |= __shfl_xor_sync(FULL_WARP, word, step);
        if (m < count && lane == 0) keys[m] = gray_rank(word);
    }
}

// input = output*stride - padding + k*dilation; submanifold maps too, where outputs are the inputs.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
forward_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const int* __restrict__ bits, const Site* __restrict__ inputs, const int* __restrict__ table, int mask,
             int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;  // not a copy, which would take too many registers
    find_rows(outputs, *count, g, bits, rows, pitch, keys, [&](Site output, int kx, int ky, int kz) {
        return find_site(table, mask, inputs, reached_site(output, kx, ky, kz, g));
    });
}

// For the convolution that undoes a strided one, or a generative one: its outputs are the fine sites, its inputs the
// coarse ones, and offset k leads from a fine site to the coarse site that it fed, or that made it, through k.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
inverse_rows(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const int* __restrict__ bits, const Site* __restrict__ coarse, const int* __restrict__ table, int mask,
             int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;  // not a copy, which would take too many registers
    find_rows(fine, *count, g, bits, rows, pitch, keys, [&](Site site, int kx, int ky, int kz) {
        Site from = {site.item, 0, 0, 0};
        const bool fed = output_cell(site.x, kx, 0, g, &from.x) && output_cell(site.y, ky, 1, g, &from.y) &&
                         output_cell(site.z, kz, 2, g, &from.z);
        return fed ? find_site(table, mask, coarse, from) : -1;
    });
}

// A block puts GROUP rows in their places, for up to 32 offsets, and makes the word of `present` that says which of
// these any of them has: uint32 [capacity / GROUP, words], bit k % 32 of word k / 32.
// sorted [capacity]: the rows by their keys, which become `order`.
extern "C" __global__ void __launch_bounds__(THREADS)
order_map(const int* __restrict__ rows, int pitch, int volume, const int* __restrict__ count,
          const int* __restrict__ sorted, int* __restrict__ order, int* __restrict__ map, int capacity,
          unsigned* __restrict__ present) {
    __shared__ int found[32][GROUP + 1];  // by offset
    __shared__ unsigned word;
    const int n = *count, start = blockIdx.x * GROUP, first = blockIdx.y * 32;
    if (start >= n) return;
    if (threadIdx.x == 0) word = 0;
    __syncthreads();
    const int lane = threadIdx.x % 32, k = first + lane;
    unsigned any = 0;
#pragma unroll
    for (int i = threadIdx.x / 32; i < GROUP; i += WARPS) {
        const int m = start + i < n ? sorted[start + i] : -1;
        const int row = m >= 0 && k < pitch ? rows[(size_t)m * pitch + k] : -1;
        found[lane][i] = row;
        any |= __ballot_sync(FULL_WARP, row >= 0);
        if (first == 0 && lane == 0 && m >= 0) order[start + i] = m;
    }
    if (lane == 0) atomicOr(&word, any);
    __syncthreads();
    for (int at = threadIdx.x; at < min(32, volume - first) * GROUP; at += THREADS) {
        const int offset = at / GROUP, i = at % GROUP;
        if (start + i < n) map[(size_t)(first + offset) * capacity + start + i] = found[offset][i];
    }
    if (threadIdx.x == 0) present[(size_t)blockIdx.x * gridDim.y + blockIdx.y] = word;
}
