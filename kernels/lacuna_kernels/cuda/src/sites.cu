// Sites numbered in the order of their first candidates. These are outputs of a strided or generative convolution,
// candidate i the (i % most)th that input site i / most makes, or the voxels of points (voxelize.cu).
// Launched in this order: insert_outputs, or insert_near_outputs, which is faster for some kernels; mark_firsts;
// count_firsts; number_outputs; add_sites. The table of candidates, int32 [mask + 1], is all FREE before. `bits` and `sums`
// are `Firsts` of numbering.cuh.
#include "geometry.cuh"
#include "numbering.cuh"

#define WARPS (THREADS / 32)
#define ROWS 8  // of a warp: more would leave multiprocessors idle

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

__device__ inline void clear(unsigned* __restrict__ bits, int words) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < words; i += gridDim.x * THREADS) bits[i] = 0;
}

extern "C" __global__ void __launch_bounds__(THREADS)
insert_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               int most, const int*, int* __restrict__ table, int mask, unsigned* __restrict__ bits, int words,
               int* __restrict__ overflow) {
    const int candidate = blockIdx.x * THREADS + threadIdx.x;
    clear(bits, words);
    if (candidate >= *count * most) return;
    const OutputSite site_of = {inputs, geometry, most};
    Site output;
    if (site_of.make(candidate, &output) && insert_site(table, mask, output, candidate, site_of) < 0) *overflow = 1;
}

// The outputs of kernels of 3^3 by strides of 2: along an axis, inputs of a block of 2^3 make one or both of the same two.
struct NearOutput {
    const Site* inputs;
    int padding[3];

    __device__ static int nth(int candidate, int axis) { return candidate >> (2 - axis) & 1; }
    __device__ int cell(int input, int nth, int axis) const { return ((input + padding[axis]) >> 1) - nth; }
    __device__ Site operator()(int candidate) const {
        const Site input = inputs[candidate >> 3];
        return {input.item, cell(input.x, nth(candidate, 0), 0), cell(input.y, nth(candidate, 1), 1),
                cell(input.z, nth(candidate, 2), 2)};
    }
    // The first output of a block along an axis, counted from the block.
    __device__ int first(int axis) const { return -((2 - padding[axis]) >> 1); }
};

// insert_outputs for these, a candidate for all inputs of a block that make the same output: the first of them. Of a warp's
// blocks four are taken at a time, and eight lanes have the outputs of each, as they have its cells.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
insert_near_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
                    int, const int* __restrict__ cells, int* __restrict__ table, int mask, unsigned* __restrict__ bits,
                    int words, int* __restrict__ overflow) {
    __shared__ int heads_of[WARPS][ROWS];
    const Geometry& g = *geometry;
    const NearOutput site_of = {inputs, {g.padding[0], g.padding[1], g.padding[2]}};
    const int n = *count, lane = threadIdx.x % 32, own = lane % 8, group = lane - own;
    int* heads = heads_of[threadIdx.x / 32];
    clear(bits, words);

    int step[3];         // from a block to the lane's output of it
    unsigned feeds = 0;  // a bit for each cell that makes this output
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) step[axis] = site_of.first(axis) + NearOutput::nth(own, axis);
#pragma unroll
    for (int cell = 0; cell < 8; ++cell) {
        bool fed = true;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            const int offset = NearOutput::nth(cell, axis) + g.padding[axis] - 2 * step[axis];
            fed = fed && offset >= 0 && offset < 3;
        }
        feeds |= (unsigned)fed << cell;
    }

    const int start = (blockIdx.x * WARPS + threadIdx.x / 32) * ROWS, row = start + lane;
    const bool head = lane < ROWS && row < n && cells[8 * (size_t)row + cell_of(inputs[row])] == row;
    const unsigned word = __ballot_sync(FULL_WARP, head);
    if (head) heads[__popc(word & ((1u << lane) - 1))] = row;
    __syncwarp();
    for (int at = lane / 8, turn = 0; turn < __popc(word); turn += 4, at += 4) {
        const int of = at < __popc(word) ? heads[at] : -1;
        const int mine = of < 0 ? -1 : cells[8 * (size_t)of + own];
        unsigned first = ~0u;  // the smallest row of those that make the output, and which cell it is
#pragma unroll
        for (int cell = 0; cell < 8; ++cell) {
            const int there = __shfl_sync(FULL_WARP, mine, group + cell);
            if (there >= 0 && feeds >> cell & 1) first = min(first, (unsigned)there << 3 | cell);
        }
        if (first == ~0u) continue;
        const Site block = block_of(inputs[of]);
        const Site output = {block.item, block.x + step[0], block.y + step[1], block.z + step[2]};
        if (!inside(output.x, 0, g) || !inside(output.y, 1, g) || !inside(output.z, 2, g)) continue;
        int candidate = first >> 3;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis)
            candidate = candidate << 1 | (((NearOutput::nth(first, axis) + g.padding[axis]) >> 1) - step[axis]);
        if (insert_site(table, mask, output, candidate, site_of) < 0) *overflow = 1;
    }
}

// Marks the candidates that a table has kept.
extern "C" __global__ void __launch_bounds__(THREADS)
mark_firsts(const int4* __restrict__ table, int quarters, unsigned* __restrict__ bits) {
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= quarters) return;
    const int4 four = table[at];
    for (const int candidate : {four.x, four.y, four.z, four.w})
        if (candidate != FREE) atomicOr(bits + candidate / 32, 1u << candidate % 32);
}

// A warp counts those of a tile.
extern "C" __global__ void __launch_bounds__(THREADS)
count_firsts(const int* __restrict__ count, int most, const unsigned* __restrict__ bits, int* __restrict__ sums) {
    static_assert(TILE == 32 * 32, "a lane has a word");
    const int tile = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (tile * TILE >= *count * most) return;
    const int sum = warp_running_sum(__popc(bits[tile * (TILE / 32) + lane]));
    if (lane == 31) sums[tile] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
number_outputs(const Site* __restrict__ inputs, const int* __restrict__ count, const Geometry* __restrict__ geometry,
               int most, const unsigned* __restrict__ bits, const int* __restrict__ sums, int* __restrict__ made_count,
               int capacity, int* __restrict__ overflow, Site* __restrict__ sites, Cells* __restrict__ cells) {
    const OutputSite site_of = {inputs, geometry, most};
    const Room room = {made_count, capacity, overflow, sites, cells};
    number_firsts(*count * most, {bits, sums}, room, [&](int candidate, int row) {
        if (row >= 0) room.put(row, site_of(candidate));
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
