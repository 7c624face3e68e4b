// Kernel maps: for offset k and output row m the input row, or -1; int32 [volume, capacity].
// A block makes GROUP rows of up to 32 offsets, and the word of `present` that says which of these have any input:
// present uint32 [capacity / GROUP, words], bit k % 32 of word k / 32. Rows and groups past *count are not written.
#include "geometry.cuh"

#define GROUP 64
#define WARPS 8

// find(site, kx, ky, kz) gives the input row of an output site.
template <class Find>
__device__ inline void make_map(const Site* __restrict__ outputs, int count, const Geometry& g, int* __restrict__ map,
                                int capacity, unsigned* __restrict__ present, Find find) {
    __shared__ unsigned word;
    const int start = blockIdx.x * GROUP;
    if (start >= count) return;
    if (threadIdx.x == 0) word = 0;
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int m = start + warp % (GROUP / 32) * 32 + lane;
    const Site site = m < count ? outputs[m] : Site{};
    const int first = blockIdx.y * 32, last = min(volume_of(g), first + 32);
    for (int k = first + warp / (GROUP / 32); k < last; k += WARPS / (GROUP / 32)) {
        const int kz = k % g.size[2], ky = k / g.size[2] % g.size[1], kx = k / (g.size[1] * g.size[2]);
        const int row = m < count ? find(site, kx, ky, kz) : -1;
        if (m < count) map[(size_t)k * capacity + m] = row;
        if (__any_sync(0xffffffffu, row >= 0) && lane == 0) atomicOr(&word, 1u << (k - first));
    }
    __syncthreads();
    if (threadIdx.x == 0) present[(size_t)blockIdx.x * gridDim.y + blockIdx.y] = word;
}

// input = output*stride - padding + k*dilation; submanifold maps too, where outputs are the inputs.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 4)
forward_map(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
            const Site* __restrict__ inputs, const int* __restrict__ table, int mask, int* __restrict__ map,
            int capacity, unsigned* __restrict__ present) {
    const Geometry g = *geometry;
    make_map(outputs, *count, g, map, capacity, present, [&](Site output, int kx, int ky, int kz) {
        return find_site(table, mask, inputs, reached_site(output, kx, ky, kz, g));
    });
}

// The map of the convolution that undoes a strided one, or of a generative one: its outputs are the fine sites, its inputs
// the coarse ones, and offset k leads from a fine site to the coarse site that it fed, or that made it, through k.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
inverse_map(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__ geometry,
            const Site* __restrict__ coarse, const int* __restrict__ table, int mask, int* __restrict__ map,
            int capacity, unsigned* __restrict__ present) {
    const Geometry g = *geometry;
    make_map(fine, *count, g, map, capacity, present, [&](Site site, int kx, int ky, int kz) {
        Site from = {site.item, 0, 0, 0};
        const bool fed = output_cell(site.x, kx, 0, g, &from.x) && output_cell(site.y, ky, 1, g, &from.y) &&
                         output_cell(site.z, kz, 2, g, &from.z);
        return fed ? find_site(table, mask, coarse, from) : -1;
    });
}
