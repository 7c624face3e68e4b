// The output sites of a strided or generative convolution, numbered in the order of the (input site, offset) that first
// makes them.
// Launched in this order: insert_outputs, count_outputs, [scan.cu], number_outputs; then item_offsets.
// While they are found, an output is known by a candidate = input row * volume + offset.
#include "geometry.cuh"

#define THREADS 256

struct CandidateSite {
    const Site* inputs;
    const Geometry* geometry;
    int volume;

    __device__ Site operator()(int candidate) const {
        return output_site(inputs[candidate / volume], candidate % volume, *geometry);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 4)
insert_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               int* __restrict__ table, int mask, int* __restrict__ overflow) {
    const int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= *count) return;
    const int volume = volume_of(*geometry);
    const CandidateSite site_of = {inputs, geometry, volume};
    for_each_output(inputs[row], *geometry, [&](int offset, Site output) {
        if (insert_site(table, mask, output, row * volume + offset, site_of) < 0) *overflow = 1;
    });
}

// firsts [inputs]: how many outputs each input is the first to make.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
count_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
              const int* __restrict__ table, int mask, int* __restrict__ firsts) {
    const int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= *count) return;
    const int volume = volume_of(*geometry);
    const CandidateSite site_of = {inputs, geometry, volume};
    int found = 0;
    for_each_output(inputs[row], *geometry, [&](int offset, Site output) {
        const int slot = find_slot(table, mask, output, site_of);
        found += slot >= 0 && table[slot] == row * volume + offset;
    });
    firsts[row] = found;
}

// before: the running sum of firsts. rows [mask + 1], all FREE, becomes the table of the outputs.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
number_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               const int* __restrict__ table, int mask, const int* __restrict__ before, int capacity,
               Site* __restrict__ outputs, int* __restrict__ rows) {
    const int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= *count) return;
    const int volume = volume_of(*geometry);
    const CandidateSite site_of = {inputs, geometry, volume};
    int next = before[row];
    for_each_output(inputs[row], *geometry, [&](int offset, Site output) {
        const int slot = find_slot(table, mask, output, site_of);
        if (slot < 0 || table[slot] != row * volume + offset) return;
        if (next < capacity) {
            outputs[next] = output;
            rows[slot] = next;
        }
        ++next;
    });
}

// offsets [items + 1]: where the sites of each item begin; sites lie item by item.
extern "C" __global__ void __launch_bounds__(THREADS)
item_offsets(const Site* __restrict__ sites, const int* __restrict__ count, int items, int* __restrict__ offsets) {
    const int row = blockIdx.x * THREADS + threadIdx.x, n = *count;
    if (row > n) return;
    const int last = row < n ? sites[row].item : items;
    for (int item = row ? sites[row - 1].item + 1 : 0; item <= last; ++item) offsets[item] = row;
}
