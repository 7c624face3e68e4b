// Kernel maps: `order` int32 [capacity] are the output rows, those that read through like offsets side by side, so that
// a tile of a convolution finds few offsets that only some of its rows have; map int32 [volume, capacity] is the input
// row that an offset leads to from each place of `order`, or -1. Places past *count are not written. Many rows may be put in
// order region by region.
// The offsets may be in parts, as many each, with an order of their own: order int32 [parts, capacity]. Rows without any
// offset of a part come first in its order, and but for the last part, which is for all rows, nothing is written of
// tiles of them. Nor is what no row of MOST_ROWS places has.
// Launched in this order: forward_rows, inverse_rows, or what does the same for some kernels faster; [key_order.cu];
// order_map.
#include "geometry.cuh"
#include "gray.cuh"
#include "map_places.cuh"
#include "ordering.cuh"

#define THREADS 256
#define WARPS (THREADS / 32)
#define FULL_WARP 0xffffffffu

// What rows are sorted by: where their bits come in the Gray code, if there are parts the 8 of each.
__device__ inline int key_of(unsigned word, int parts) {
    if (parts == 1) return gray_rank(word);
    int key = 0;
    for (int part = 0; part < parts; ++part) key |= gray_rank(word >> 8 * part & 0xff) << 8 * part;
    return key;
}

// What is made of output rows before they are in order. masks uint32 [capacity, ceil(pitch / 32)] tells the slots by which
// each reads anything, rows int32 [capacity, pitch] what: at the slot's place, or `close`, one after the other. pitch is 8,
// 16 or a multiple of 32, and 32 if there are parts. keys [capacity]; bins int32 [number of bins] becomes 0.
struct Found {
    const Slot* slots;
    int volume, parts, *rows, pitch;
    unsigned* masks;
    int* keys;

    __device__ Slot slot(int at) const { return at < volume ? slots[at] : Slot{0, -1}; }
    __device__ int* of(int row) const { return rows + (size_t)row * pitch; }
    __device__ unsigned* mask_of(int row) const { return masks + (size_t)row * ((pitch + 31) / 32); }
};

__device__ inline void clear(int* __restrict__ bins, int number) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < number; i += gridDim.x * THREADS) bins[i] = 0;
}

__device__ inline unsigned bit_of(Slot slot, int row) { return row >= 0 && slot.bit >= 0 ? 1u << slot.bit : 0; }

// way_of(kx, ky, kz) tells how to find, site by site, the input row that an offset leads to. A lane has an offset.
template <class WayOf>
__device__ inline void find_rows(const Site* __restrict__ outputs, int count, const Geometry& g, const Found& found,
                                 WayOf way_of) {
    const int pitch = found.pitch, across = min(pitch, 32), lane = threadIdx.x % across, at_once = THREADS / across;
    const auto way_at = [&](int at) {
        const int offset = found.slot(at).offset, plane = g.size[1] * g.size[2];
        return way_of(offset / plane, offset % plane / g.size[2], offset % g.size[2]);
    };
    const auto way = way_at(lane);  // the same for all sites, if a lane has one offset
    const Slot slot = found.slot(lane);
    const int group = threadIdx.x % 32 / across * across;  // of lanes
    const auto put = [&](int m, int at, int row) {
        const unsigned mask = __ballot_sync(FULL_WARP, row >= 0) >> group & ~0u >> (32 - across);
        if (row >= 0) found.of(m)[at] = row;
        if (lane == 0 && m < count) found.mask_of(m)[at / 32] = mask;
    };
    for (int first = blockIdx.x * at_once; first < count; first += gridDim.x * at_once) {
        const int m = first + threadIdx.x / across;
        const Site site = m < count ? outputs[m] : Site{};
        const int row = m < count && lane < found.volume ? way(site) : -1;
        unsigned word = bit_of(slot, row);
        put(m, lane, row);
        for (int at = lane + across; at < pitch; at += across) {
            const int more = m < count && at < found.volume ? way_at(at)(site) : -1;
            put(m, at, more);
            word |= bit_of(found.slot(at), more);
        }
        for (int step = across / 2; step; step /= 2) word |= __shfl_xor_sync(FULL_WARP, word, step);
        if (lane == 0 && m < count) found.keys[m] = key_of(word, found.parts);
    }
}

// Where an offset leads to from the first input that an output reads, by which of its coordinates are odd: among the
// 2 x 2 x 2 blocks from that one on, and the block's cells. A byte for each of the 8 cells that it may lie in.
struct Steps {
    unsigned even, odd;  // by x

    __device__ Steps(int x, int y, int z) : even(0), odd(0) {
        for (int at = 0; at < 4; ++at) {
            even |= step(x, y + (at >> 1), z + (at & 1)) << 8 * at;
            odd |= step(x + 1, y + (at >> 1), z + (at & 1)) << 8 * at;
        }
    }
    __device__ static unsigned step(int x, int y, int z) {
        return ((x >> 1) << 2 | (y >> 1) << 1 | z >> 1) << 3 | (x & 1) << 2 | (y & 1) << 1 | (z & 1);
    }
    __device__ unsigned from(int cell) const { return __byte_perm(even, odd, cell) & 0xff; }
};

// Which of the blocks from an output's first input on it reads, that one or the next along each axis, as in a cell's number.
struct Reach {
    int next, odd;  // the next one always, or from an odd coordinate on

    __device__ explicit Reach(const Geometry& g) : next(0), odd(0) {
        for (int axis = 0; axis < 3; ++axis)
            next |= (g.size[axis] > 2) << (2 - axis), odd |= (g.size[axis] > 1) << (2 - axis);
    }
    __device__ bool has(int block, int cell) const { return (block & ~(next | (odd & cell))) == 0; }
};

// forward_rows of kernels of up to 3 offsets an axis, side by side, up to 32 in all: an output reads from at most
// 2 x 2 x 2 blocks of inputs. A lane looks for one of these blocks for each of SEARCHES outputs, so that a warp has SITES
// of them at a time; then, one output after the other, a lane has an offset.
#define SEARCHES 2
#define SITES (4 * SEARCHES)
extern "C" __global__ void __launch_bounds__(THREADS, 4)
near_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
          const Slot* __restrict__ slots, int parts, int* __restrict__ rows, int pitch, unsigned* __restrict__ masks,
          int* __restrict__ keys, int* __restrict__ bins, int bin_count, const Bucket* __restrict__ buckets, int mask,
          const int* __restrict__ cells, const Site* __restrict__ inputs) {
    const Geometry& g = *geometry;
    const Found found = {slots, volume_of(g), parts, rows, pitch, masks, keys};
    const int n = *count, lane = threadIdx.x % 32, corner = lane % 8;
    const int stride_x = g.stride[0], stride_y = g.stride[1], stride_z = g.stride[2];
    const int padding_x = g.padding[0], padding_y = g.padding[1], padding_z = g.padding[2];
    const int corner_x = corner >> 2, corner_y = corner >> 1 & 1, corner_z = corner & 1;
    const Slot slot = found.slot(lane);
    const Steps steps(slot.offset / (g.size[1] * g.size[2]), slot.offset / g.size[2] % g.size[1], slot.offset % g.size[2]);
    const Reach reach(g);
    const bool mine = lane < found.volume;
    const unsigned bit = bit_of(slot, 0), before = (1u << lane) - 1;
    clear(bins, bin_count);
    for (int first = (blockIdx.x * WARPS + threadIdx.x / 32) * SITES; first < n; first += gridDim.x * WARPS * SITES) {
        BlockSearch search[SEARCHES];
        int head[SEARCHES], cell[SEARCHES];
#pragma unroll
        for (int i = 0; i < SEARCHES; ++i) {
            const Site site = outputs[min(first + 4 * i + lane / 8, n - 1)];
            const Site from = {site.item, site.x * stride_x - padding_x, site.y * stride_y - padding_y,
                               site.z * stride_z - padding_z};
            cell[i] = cell_of(from);
            search[i].start(buckets, mask, {from.item, (from.x >> 1) + corner_x, (from.y >> 1) + corner_y,
                                            (from.z >> 1) + corner_z});
        }
#pragma unroll
        for (int i = 0; i < SEARCHES; ++i) search[i].look(inputs);
#pragma unroll
        for (int i = 0; i < SEARCHES; ++i)
            head[i] = reach.has(corner, cell[i]) ? search[i].end(buckets, mask, inputs) : -1;
        int row[SITES];
#pragma unroll
        for (int i = 0; i < SITES; ++i) {
            const unsigned step = steps.from(__shfl_sync(FULL_WARP, cell[i / 4], 8 * (i % 4)));
            const int there = __shfl_sync(FULL_WARP, head[i / 4], 8 * (i % 4) + (step >> 3));
            row[i] = mine && there >= 0 ? cells[8 * (size_t)there + (step & 7)] : -1;
        }
        const int sites = min(SITES, n - first);
        int* to = found.of(first);
        unsigned own = 0, own_mask = 0;
#pragma unroll
        for (int i = 0; i < SITES; ++i, to += pitch) {
            const unsigned word = __reduce_or_sync(FULL_WARP, row[i] >= 0 ? bit : 0);
            const unsigned mask = __ballot_sync(FULL_WARP, row[i] >= 0);
            if (lane == i) own = word, own_mask = mask;
            if (i < sites && row[i] >= 0) to[__popc(mask & before)] = row[i];
        }
        if (lane < sites) keys[first + lane] = key_of(own, parts), *found.mask_of(first + lane) = own_mask;
    }
}

// A thread puts down what an output reads through a kernel of 8 offsets; row_at(offset) tells.
template <class RowAt>
__device__ inline void put_down(const Found& found, int m, RowAt row_at) {
    int row[8];
    unsigned word = 0, mask = 0;
#pragma unroll
    for (int at = 0; at < 8; ++at) {
        row[at] = row_at(found.slots[at].offset);
        word |= bit_of(found.slots[at], row[at]), mask |= (row[at] >= 0) << at;
    }
    int4* to = reinterpret_cast<int4*>(found.of(m));
    to[0] = {row[0], row[1], row[2], row[3]}, to[1] = {row[4], row[5], row[6], row[7]};
    found.keys[m] = key_of(word, 1), *found.mask_of(m) = mask;
}

// forward_rows of a kernel of 2^3 by strides of 2: what an output reads is a block.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
block_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__,
           const Slot* __restrict__ slots, int, int* __restrict__ rows, int pitch, unsigned* __restrict__ masks,
           int* __restrict__ keys, int* __restrict__ bins, int bin_count, const Bucket* __restrict__ buckets, int mask,
           const int* __restrict__ cells, const Site* __restrict__ inputs) {
    clear(bins, bin_count);
    for (int m = blockIdx.x * THREADS + threadIdx.x; m < *count; m += gridDim.x * THREADS) {
        const int head = find_block(buckets, mask, inputs, outputs[m]);
        put_down({slots, 8, 1, rows, pitch, masks, keys}, m,
                 [=](int offset) { return head < 0 ? -1 : cells[8 * (size_t)head + offset]; });
    }
}

// inverse_rows of such a kernel: a fine site reads from the one coarse site whose block it lies in.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
cell_rows(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__,
          const Slot* __restrict__ slots, int, int* __restrict__ rows, int pitch, unsigned* __restrict__ masks,
          int* __restrict__ keys, int* __restrict__ bins, int bin_count, const Bucket* __restrict__ buckets, int mask,
          const int* __restrict__ cells, const Site* __restrict__ coarse) {
    clear(bins, bin_count);
    for (int m = blockIdx.x * THREADS + threadIdx.x; m < *count; m += gridDim.x * THREADS) {
        const Site site = fine[m];
        const int row = find_site(buckets, mask, cells, coarse, block_of(site)), cell = cell_of(site);
        put_down({slots, 8, 1, rows, pitch, masks, keys}, m, [=](int offset) { return offset == cell ? row : -1; });
    }
}

// input = output*stride - padding + k*dilation.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
forward_rows(const Site* __restrict__ outputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const Slot* __restrict__ slots, int parts, int* __restrict__ rows, int pitch, unsigned* __restrict__ masks,
             int* __restrict__ keys, int* __restrict__ bins, int bin_count, const Bucket* __restrict__ buckets, int mask,
             const int* __restrict__ cells, const Site* __restrict__ inputs) {
    const Geometry& g = *geometry;  // not a copy, which would take too many registers
    const int stride_x = g.stride[0], stride_y = g.stride[1], stride_z = g.stride[2];
    clear(bins, bin_count);
    find_rows(outputs, *count, g, {slots, volume_of(g), parts, rows, pitch, masks, keys}, [&](int kx, int ky, int kz) {
        const Site from = reached_site({0, 0, 0, 0}, kx, ky, kz, g);
        return [=](Site output) {
            return find_site(buckets, mask, cells, inputs,
                             {output.item, output.x * stride_x + from.x, output.y * stride_y + from.y,
                              output.z * stride_z + from.z});
        };
    });
}

// For the convolution that undoes a strided one, or a generative one: its outputs are the fine sites, its inputs the
// coarse ones, and offset k leads from a fine site to the coarse site that it fed, or that made it, through k.
extern "C" __global__ void __launch_bounds__(THREADS, 5)
inverse_rows(const Site* __restrict__ fine, const int* __restrict__ count, const Geometry* __restrict__ geometry,
             const Slot* __restrict__ slots, int parts, int* __restrict__ rows, int pitch, unsigned* __restrict__ masks,
             int* __restrict__ keys, int* __restrict__ bins, int bin_count, const Bucket* __restrict__ buckets, int mask,
             const int* __restrict__ cells, const Site* __restrict__ coarse) {
    const Geometry& g = *geometry;
    clear(bins, bin_count);
    find_rows(fine, *count, g, {slots, volume_of(g), parts, rows, pitch, masks, keys}, [&](int kx, int ky, int kz) {
        return [=, &g](Site site) {
            Site from = {site.item, 0, 0, 0};
            const bool fed = output_cell(site.x, kx, 0, g, &from.x) && output_cell(site.y, ky, 1, g, &from.y) &&
                             output_cell(site.z, kz, 2, g, &from.z);
            return fed ? find_site(buckets, mask, cells, coarse, from) : -1;
        };
    });
}

// A warp puts 32 rows in their places at a time, for the offsets of a part, or for up to 32 of all, and with its neighbour
// makes the word of `present` that says which of these any of GROUP rows has: uint32 [parts, capacity / GROUP, words], bit
// k % 32 of word k / 32. ones [parts], if there are several: the place of the first row that has any of a part's offsets.
// A block has MOST_ROWS places. Blocks of parts, or of words, take turns; a row of blocks has a map.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
order_map(const __grid_constant__ Orderings orderings) {
    constexpr int AT_ONCE = 8;
    static_assert(WARPS * 32 == MOST_ROWS, "what a block leaves out nobody reads");
    __shared__ int found_of[WARPS][32][33];  // by slot, for 32 places
    __shared__ unsigned masks[WARPS];
    const Ordering o = orderings.of[blockIdx.y];
    const int volume = o.volume, parts = o.parts, turns = parts > 1 ? parts : (volume + 31) / 32;
    const int turn = blockIdx.x % turns, block = blockIdx.x / turns, blocks = gridDim.x / turns;
    if (block >= blocks) return;
    const int n = *o.count, part = parts > 1 ? turn : 0, slot = parts > 1 ? part * volume / parts : turn * 32;
    const int size = parts > 1 ? volume / parts : min(32, volume - slot);
    const int one = part < parts - 1 ? o.ones[part] : 0;  // before it no row has any
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, across = size > 16 ? 32 : size > 8 ? 16 : 8;
    const int own_slot = slot % 32 + lane % across, words = parts > 1 ? 1 : turns;
    const unsigned before = own_slot < 32 ? (1u << own_slot) - 1 : 0, bit = lane % across < size ? 1u << own_slot : 0;
    const int offset = bit ? o.slots[slot + lane % across].offset : 0;
    const int groups = (o.length + GROUP - 1) / GROUP, own_place = warp * 32 + lane, ahead = blocks * MOST_ROWS;
    const int *order = o.order + (size_t)part * o.length, *rows = o.rows + slot / 32 * 32;
    auto& found = found_of[warp];
    const auto row_at = [&](int place) { return place < n ? order[place] : -1; };
    const auto mask_at = [&](int place, int row) {
        return row >= 0 && place >= one ? o.masks[(size_t)row * words + (parts > 1 ? 0 : turn)] : 0;
    };
    int first = (one / MOST_ROWS + block) * MOST_ROWS, own = row_at(first + own_place);
    unsigned mask = mask_at(first + own_place, own);
    for (; first < n; first += ahead) {
        const int place = first + own_place, start = place - lane, group = start / GROUP, later = row_at(place + ahead);
        const unsigned any = __reduce_or_sync(FULL_WARP, mask);
        if (lane == 0) masks[warp] = any;
        __syncthreads();
        for (int done = 0; done < across; done += AT_ONCE) {
            int row[AT_ONCE];  // all are read before any is put down
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                const int of = (done + i) * (32 / across) + lane / across, m = __shfl_sync(FULL_WARP, own, of);
                const unsigned here = __shfl_sync(FULL_WARP, mask, of);
                const int at = o.close ? __popc(here & before) : own_slot;
                row[i] = here & bit ? rows[(size_t)m * o.pitch + at] : -1;
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) found[lane % across][(done + i) * (32 / across) + lane / across] = row[i];
        }
        own = later, mask = mask_at(place + ahead, later);
        __syncwarp();
        unsigned left = 0;
        for (int w = 0; w < WARPS; ++w) left |= masks[w];
        left = left >> slot % 32 & ~0u >> (32 - size);
        for (; left; left &= left - 1) {
            const int s = __ffs(left) - 1;
            const size_t to = (size_t)__shfl_sync(FULL_WARP, offset, s) * o.length + place;
            if (place < n) o.map[to] = found[s][lane];
        }
        const unsigned both = masks[warp] | masks[warp ^ 1];
        const unsigned told = both & bit ? 1u << offset % 32 : 0;
        const unsigned word = __reduce_or_sync(FULL_WARP, told);
        const size_t at = parts > 1 ? (size_t)part * groups + group : (size_t)group * turns + turn;
        if (lane == 0 && warp % 2 == 0 && start < n) o.present[at] = word;
        __syncthreads();
    }
}
