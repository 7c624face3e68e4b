// Sites numbered in the order of their first candidates. These are outputs of a strided or generative convolution,
// candidate i the (i % most)th that input site i / most makes, or the voxels of points (voxelize.cu).
// Launched in this order: insert_outputs, count_firsts, number_outputs, add_sites.
#include "geometry.cuh"
#include "numbering.cuh"

struct OutputSite {
    const Site* inputs;
    const Geometry* geometry;
    int most;

    __device__ bool make(int candidate, Site* output) const {
        const int row = floor_div(candidate, most);
        return nth_output(inputs[row], candidate - row * most, *geometry, output);
    }
    __device__ Site operator()(int candidate) const {
        Site output;
        make(candidate, &output);
        return output;
    }
};

// slots [inputs * most] where in the table of candidates, int32 [mask + 1], all FREE, one is, -1 for none.
// cells [capacity, 8] becomes -1 for as many sites as there may be.
extern "C" __global__ void __launch_bounds__(THREADS)
insert_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               int most, int* __restrict__ table, int mask, int* __restrict__ slots, Cells* __restrict__ cells,
               int capacity, int* __restrict__ overflow) {
    const int candidate = blockIdx.x * THREADS + threadIdx.x;
    if (candidate >= *count * most) return;
    if (candidate < capacity) cells[candidate] = no_cells();
    const OutputSite site_of = {inputs, geometry, most};
    Site output;
    int slot = -1;
    if (site_of.make(candidate, &output)) {
        slot = insert_site(table, mask, output, candidate, site_of);
        if (slot < 0) *overflow = 1;
    }
    slots[candidate] = slot;
}

// Marks candidates that are the first of their equals: bit i % 32 of firsts [i / 32], and how many of each tile are.
extern "C" __global__ void __launch_bounds__(THREADS)
count_firsts(const int* __restrict__ count, int most, const int* __restrict__ table, const int* __restrict__ slots,
             unsigned* __restrict__ firsts, int* __restrict__ sums) {
    const int n = *count * most, start = blockIdx.x * TILE;
    if (start >= n) return;
    int found = 0, all;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int candidate = start + turn * THREADS + threadIdx.x, slot = candidate < n ? slots[candidate] : -1;
        const bool first = slot >= 0 && table[slot] == candidate;
        const unsigned word = __ballot_sync(FULL_WARP, first);
        if (threadIdx.x % 32 == 0) firsts[candidate / 32] = word;
        found += first;
    }
    block_exclusive_sum<THREADS>(found, &all);
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

extern "C" __global__ void __launch_bounds__(THREADS)
number_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               int most, const unsigned* __restrict__ firsts, const int* __restrict__ sums,
               int* __restrict__ made_count, int capacity, int* __restrict__ overflow, Site* __restrict__ sites) {
    const OutputSite site_of = {inputs, geometry, most};
    number_firsts(*count * most, firsts, sums, {made_count, capacity, overflow}, [&](int candidate, int row) {
        if (row >= 0) sites[row] = site_of(candidate);
    });
}

// Puts sites into their blocks, and writes down in offsets [items + 1] where those of each item begin: they lie item by
// item.
extern "C" __global__ void __launch_bounds__(THREADS)
add_sites(const Site* __restrict__ sites, const int* __restrict__ count, Bucket* __restrict__ buckets, int mask,
          int* __restrict__ cells, int items, int* __restrict__ offsets, int* __restrict__ overflow) {
    const int row = blockIdx.x * THREADS + threadIdx.x, n = *count;
    if (row > n) return;
    const int last = row < n ? sites[row].item : items;
    for (int item = row ? sites[row - 1].item + 1 : 0; item <= last; ++item) offsets[item] = row;
    if (row < n && !add_site(buckets, mask, cells, sites, row)) *overflow = 1;
}
