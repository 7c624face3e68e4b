// Kernel maps: `order` int32 [capacity] are the output rows, those that read through like offsets side by side, so that
// a tile of a convolution finds few offsets that only some of its rows have; map int32 [volume, capacity] is the input
// row that an offset leads to from each place of `order`, or -1. Places past *count are not written.
// The offsets may be in parts, as many each, with an order of their own: order int32 [parts, capacity]. Rows without any
// offset of a part come first in its order, and but for the last part, which is for all rows, nothing is written of
// tiles of them.
// Launched in this order: forward_rows or inverse_rows, [sort.cu], order_map.
#include "geometry.cuh"
#include "gray.cuh"
#include "map_places.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define FULL_WARP 0xffffffffu

// An offset, those of a part side by side, and the bit of a row's key that it sets, -1 for none.
struct Slot {
    int offset, bit;
};

// The part of a slot.
__device__ inline int part_of(int slot, int volume, int parts) { return parts == 1 ? 0 : slot * parts / volume; }

__device__ inline bool has_part(int key, int part) { return key >> 8 * part & 0xff; }

// What rows are sorted by: where their bits come in the Gray code, if there are parts the 8 of each.
__device__ inline int key_of(unsigned word, int parts) {
    if (parts == 1) return gray_rank(word);
    int key = 0;
    for (int part = 0; part < parts; ++part) key |= gray_rank(word >> 8 * part & 0xff) << 8 * part;
    return key;
}

// rows int32 [capacity, pitch] what each output row reads by slot, -1 for nothing and past the volume, but not of parts
// that it has nothing of; pitch is 8, 16 or a multiple of 32, and 32 if there are parts. keys [capacity].
// way_of(kx, ky, kz) tells how to find, site by site, the input row that an offset leads to.
template <class WayOf>
__device__ inline void find_rows(const Site* __restrict__ outputs, int count, const Geometry& g,
                                 const Slot* __restrict__ slots, int parts, int* __restrict__ rows, int pitch,
                                 int* __restrict__ keys, WayOf way_of) {
    const int across = min(pitch, 32), volume = volume_of(g), lane = threadIdx.x % across, at_once = THREADS / across;
    const auto way_at = [&](int at) {
        const int offset = at < volume ? slots[at].offset : 0, plane = g.size[1] * g.size[2];
        return way_of(offset / plane, offset % plane / g.size[2], offset % g.size[2]);
    };
    const auto way = way_at(lane);  // the same for all sites, if a lane has one offset
    const int bit = lane < volume ? slots[lane].bit : -1, part = part_of(lane, volume, parts);
    for (int first = blockIdx.x * at_once; first < count; first += gridDim.x * at_once) {
        const int m = first + threadIdx.x / across;
        const Site site = m < count ? outputs[m] : Site{};
        int row = m < count && lane < volume ? way(site) : -1;
        unsigned word = row >= 0 && bit >= 0 ? 1u << bit : 0;
        if (m < count && parts == 1) rows[(size_t)m * pitch + lane] = row;
        for (int at = lane + across; at < pitch; at += across) {
            row = m < count && at < volume ? way_at(at)(site) : -1;
            if (m < count) rows[(size_t)m * pitch + at] = row;
            if (row >= 0 && slots[at].bit >= 0) word |= 1u << slots[at].bit;
        }
        for (int step = across / 2; step; step /= 2) word |= __shfl_xor_sync(FULL_WARP, word, step);
        if (m >= count) continue;
        const int key = key_of(word, parts);
        const bool read = part == parts - 1 || has_part(key, part);
        if (parts > 1 && lane < volume && read) rows[(size_t)m * pitch + lane] = row;
        if (lane == 0) keys[m] = key;
    }
}

// input = output*stride - padding + k*dilation; submanifold maps too, where outputs are the inputs.
extern "C" __global__ void __launch_bounds__(THREADS, 5)
forward_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const Slot* __restrict__ slots, int parts, const Site* __restrict__ inputs,
             const int* __restrict__ table, int mask, int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;  // not a copy, which would take too many registers
    const int stride_x = g.stride[0], stride_y = g.stride[1], stride_z = g.stride[2];
    find_rows(outputs, *count, g, slots, parts, rows, pitch, keys, [&](int kx, int ky, int kz) {
        const Site from = reached_site({0, 0, 0, 0}, kx, ky, kz, g);
        return [=](Site output) {
            return find_site(table, mask, inputs, {output.item, output.x * stride_x + from.x,
                                                   output.y * stride_y + from.y, output.z * stride_z + from.z});
        };
    });
}

// For the convolution that undoes a strided one, or a generative one: its outputs are the fine sites, its inputs the
// coarse ones, and offset k leads from a fine site to the coarse site that it fed, or that made it, through k.
extern "C" __global__ void __launch_bounds__(THREADS, 5)
inverse_rows(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const Slot* __restrict__ slots, int parts, const Site* __restrict__ coarse,
             const int* __restrict__ table, int mask, int* __restrict__ rows, int pitch, int* __restrict__ keys) {
    const Geometry& g = *geometry;
    find_rows(fine, *count, g, slots, parts, rows, pitch, keys, [&](int kx, int ky, int kz) {
        return [=, &g](Site site) {
            Site from = {site.item, 0, 0, 0};
            const bool fed = output_cell(site.x, kx, 0, g, &from.x) && output_cell(site.y, ky, 1, g, &from.y) &&
                             output_cell(site.z, kz, 2, g, &from.z);
            return fed ? find_site(table, mask, coarse, from) : -1;
        };
    });
}

// A block puts GROUP rows in their places, for the offsets of a part, or for up to 32 of all, and makes the word of
// `present` that says which of these any of them has: uint32 [parts, capacity / GROUP, words], bit k % 32 of word k / 32.
// sorted [parts, capacity]: the rows by their keys. They become `order` if that is another; ones [parts], if there are
// several, is the place of the first row that has any of a part's offsets.
extern "C" __global__ void __launch_bounds__(THREADS, 6)
order_map(const int* __restrict__ rows, int pitch, const Slot* __restrict__ slots, int volume, int parts,
          const int* __restrict__ count, const int* __restrict__ sorted, const int* __restrict__ ones,
          int* __restrict__ order, int* __restrict__ map, int capacity, unsigned* __restrict__ present) {
    __shared__ int found[32][GROUP + 1];  // by slot
    __shared__ unsigned word;
    const int n = *count, start = blockIdx.x * GROUP, part = parts > 1 ? blockIdx.y : 0;
    const int slot = parts > 1 ? part * volume / parts : blockIdx.y * 32;
    const int size = parts > 1 ? volume / parts : min(32, volume - slot);
    const int one = part < parts - 1 ? ones[part] : 0;  // before it no row has any
    if (start >= n || start + GROUP <= one / MOST_ROWS * MOST_ROWS) return;
    if (threadIdx.x == 0) word = 0;
    __syncthreads();
    const int across = size > 16 ? 32 : 16, lane = threadIdx.x % across;
    sorted += (size_t)part * capacity;
#pragma unroll 4
    for (int i = threadIdx.x / across; i < GROUP; i += THREADS / across) {
        const int m = start + i < n ? sorted[start + i] : -1;
        const bool some = m >= 0 && start + i >= one && lane < size;
        found[lane][i] = some ? rows[(size_t)m * pitch + slot + lane] : -1;
        if (order && slot == 0 && lane == 0 && m >= 0) order[start + i] = m;
    }
    __syncthreads();
    unsigned any = 0;
    for (int at = threadIdx.x; at < size * GROUP; at += THREADS) {
        const int s = at / GROUP, i = at % GROUP, offset = slots[slot + s].offset, row = found[s][i];
        if (start + i < n) map[(size_t)offset * capacity + start + i] = row;
        if (row >= 0) any |= 1u << offset % 32;
    }
    any = __reduce_or_sync(FULL_WARP, any);
    if (threadIdx.x % 32 == 0 && any) atomicOr(&word, any);
    __syncthreads();
    const size_t at = parts > 1 ? (size_t)part * gridDim.x + blockIdx.x : (size_t)blockIdx.x * gridDim.y + blockIdx.y;
    if (threadIdx.x == 0) present[at] = word;
}
