// Kernel maps: `order` int32 [capacity] are the output rows, those that read through like offsets side by side, so that
// a tile of a convolution finds few offsets that only some of its rows have; map int32 [volume, capacity] is the input
// row that an offset leads to from each place of `order`, or -1. Places past *count are not written.
// Launched in this order: forward_rows or inverse_rows, [sort.cu], order_map.
#include "geometry.cuh"
#include "gray.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define GROUP 64  // places of a word of `present`
#define AT_ONCE 4  // rows of a thread
#define BLOCKS 4   // of a multiprocessor, at least
#define FULL_WARP 0xffffffffu

// rows int32 [capacity, pitch] what each output row reads, -1 for nothing and past the volume; pitch is 8, 16 or a
// multiple of 32. keys [capacity] are what rows are sorted by: where the word comes in the Gray code of those bits
// that an offset which leads somewhere has: bits [volume], -1 for none.
// reach(site, kx, ky, kz, &input) gives the input site of an output site, and whether there is one to look for in `table`
// of `inputs`. A thread looks AT_ONCE of them up together.
template <class Reach>
__device__ inline void find_rows(const Site* __restrict__ outputs, int count, const Geometry& g,
                                 const int* __restrict__ bits, const Site* __restrict__ inputs,
                                 const int* __restrict__ table, int mask, int* __restrict__ rows, int pitch,
                                 int* __restrict__ keys, Reach reach) {
    const int across = min(pitch, 32), volume = volume_of(g), lane = threadIdx.x % across, apart = THREADS / across;
    for (int first = blockIdx.x * apart * AT_ONCE; first < count; first += gridDim.x * apart * AT_ONCE) {
        const int start = first + threadIdx.x / across;
        unsigned words[AT_ONCE] = {};
        for (int k = lane; k < pitch; k += across) {
            const int kz = k % g.size[2], ky = k / g.size[2] % g.size[1], kx = k / (g.size[1] * g.size[2]);
            Site wanted[AT_ONCE];
            bool is_wanted[AT_ONCE];
            int found[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int m = start + i * apart;
                is_wanted[i] = m < count && k < volume && reach(outputs[m], kx, ky, kz, &wanted[i]);
                if (!is_wanted[i]) wanted[i] = Site{};
            }
            find_sites(table, mask, inputs, wanted, is_wanted, found);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int m = start + i * apart;
                if (m < count) rows[(size_t)m * pitch + k] = found[i];
                if (found[i] >= 0 && bits[k] >= 0) words[i] |= 1u << bits[k];
            }
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            for (int step = across / 2; step; step /= 2) words[i] |= __shfl_xor_sync(FULL_WARP, words[i], step);
            const int m = start + i * apart;
            if (m < count && lane == 0) keys[m] = gray_rank(words[i]);
        }
    }
}

// input = output*stride - padding + k*dilation; submanifold maps too, where outputs are the inputs.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
forward_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const int* __restrict__ bits, const Site* __restrict__ inputs, const int* __restrict__ table, int mask,
             int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;  // not a copy, which would take too many registers
    const auto reach = [&](Site output, int kx, int ky, int kz, Site* input) {
        *input = reached_site(output, kx, ky, kz, g);
        return true;
    };
    find_rows(outputs, *count, g, bits, inputs, table, mask, rows, pitch, keys, reach);
}

// For the convolution that undoes a strided one, or a generative one: its outputs are the fine sites, its inputs the
// coarse ones, and offset k leads from a fine site to the coarse site that it fed, or that made it, through k.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
inverse_rows(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const int* __restrict__ bits, const Site* __restrict__ coarse, const int* __restrict__ table, int mask,
             int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;
    const auto reach = [&](Site site, int kx, int ky, int kz, Site* from) {
        *from = {site.item, 0, 0, 0};
        return output_cell(site.x, kx, 0, g, &from->x) && output_cell(site.y, ky, 1, g, &from->y) &&
               output_cell(site.z, kz, 2, g, &from->z);
    };
    find_rows(fine, *count, g, bits, coarse, table, mask, rows, pitch, keys, reach);
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
