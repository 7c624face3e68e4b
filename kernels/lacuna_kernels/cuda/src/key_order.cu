// Rows in the order of small keys, by counting: equal keys are side by side, in whatever order they come. Blocks take
// turns, as there is room for many more rows than there are.
// A key may be of several parts, 8 bits each, by each of which the rows are put in an order of its own. With a key of one
// part many rows may be cut into regions (ordering.cuh), which are put in order one by one.
// Launched in this order, after what makes the keys and clears the bins: count_keys, scan_bins, place_rows; of few bins
// place_rows makes the running sum itself. Several sets of rows are put in order together, a row of blocks for each.
#include "ordering.cuh"
#include "scan.cuh"

#define THREADS 256
#define WIDE 1024
#define TURNS 4
#define PLACES 1024  // for keys of a block's rows
#define FEW_BINS 768

// The bin of a row's key: the bins of part 0, or of the first region, come first, then those of the next.
__device__ inline int bin_of(const Ordering& o, const Regions& regions, int row, int part) {
    const int key = o.keys[row];
    if (o.parts > 1) return part << 8 | (key >> 8 * part & 255);
    return regions.number > 1 ? row / regions.rows << KEY_BITS | key : key;
}

// Many rows have one of few keys: a block counts those of its own first, as everybody would wait for a few counts.
struct OwnCounts {
    int bins[PLACES], counts[PLACES];

    // The place of a bin, -1 if others have both of those where it may be.
    __device__ int place_of(int bin) {
        const int hash = int(bin * 0x9e3779b1u >> 22);
#pragma unroll
        for (int turn = 0; turn < 2; ++turn) {
            const int found = atomicCAS(bins + (hash ^ turn), -1, bin);
            if (found == -1 || found == bin) return hash ^ turn;
        }
        return -1;
    }
};
static_assert(PLACES == 1 << 10, "a hash has 10 bits");

// counts int32 [bins], from all 0, becomes how many rows are in each; ranks [parts, length] how many came before a row.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
count_keys(const __grid_constant__ Orderings orderings) {
    __shared__ OwnCounts own;
    const Ordering o = orderings.of[blockIdx.y];
    const int n = *o.count, lane = threadIdx.x % 32, turns = (n + THREADS * TURNS - 1) / (THREADS * TURNS) * o.parts;
    const Regions regions(o, n);
    for (int turn = blockIdx.x; turn < turns; turn += gridDim.x) {
        const int part = turn % o.parts, start = turn / o.parts * (THREADS * TURNS) + threadIdx.x;
        for (int i = threadIdx.x; i < PLACES; i += THREADS) own.bins[i] = -1, own.counts[i] = 0;
        __syncthreads();
        int rank[TURNS], place[TURNS];
#pragma unroll
        for (int i = 0; i < TURNS; ++i) {
            const int row = start + i * THREADS, bin = row < n ? bin_of(o, regions, row, part) : -1;
            const unsigned equal = __match_any_sync(FULL_WARP, bin);
            const int first = __ffs(equal) - 1;
            place[i] = -1, rank[i] = 0;
            if (lane == first && bin >= 0) {
                place[i] = own.place_of(bin);
                rank[i] = atomicAdd(place[i] < 0 ? o.counts + bin : own.counts + place[i], __popc(equal));
            }
            place[i] = __shfl_sync(FULL_WARP, place[i], first);
            rank[i] = __shfl_sync(FULL_WARP, rank[i], first) + __popc(equal & ((1u << lane) - 1));
        }
        __syncthreads();
        for (int i = threadIdx.x; i < PLACES; i += THREADS)
            if (own.counts[i]) own.counts[i] = atomicAdd(o.counts + own.bins[i], own.counts[i]);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < TURNS; ++i) {
            const int row = start + i * THREADS, before = place[i] < 0 ? 0 : own.counts[place[i]];
            if (row < n) o.ranks[(size_t)part * o.length + row] = before + rank[i];
        }
        __syncthreads();
    }
}

// starts int32 [bins]: the running sum of counts, whose number is a multiple of 4. A block has 4 * WIDE of them, and adds
// up all of its region that come before its own.
extern "C" __global__ void __launch_bounds__(WIDE)
scan_bins(const __grid_constant__ Orderings orderings) {
    const Ordering o = orderings.of[blockIdx.y];
    const int4* counts = reinterpret_cast<const int4*>(o.counts);
    const int bins = o.bins, begin = 4 * WIDE * int(blockIdx.x);
    if (bins <= FEW_BINS || begin >= bins) return;
    const int region = begin >> KEY_BITS, own = blockIdx.x * WIDE, at = own + threadIdx.x;
    int rows_before = 0, earlier = 0, before, all;
    if (region) {
        const int n = *o.count;
        const Regions regions(o, n);
        if (region >= regions.number) return;
        rows_before = min(n, region * regions.rows);
    }
#pragma unroll 8
    for (int i = (region << KEY_BITS) / 4 + threadIdx.x; i < own; i += WIDE) {
        const int4 c = counts[i];
        earlier += c.x + c.y + c.z + c.w;
    }
    const int4 c = 4 * at < bins ? counts[at] : int4{0, 0, 0, 0};
    block_exclusive_sum<WIDE>(earlier, &before);
    before += rows_before + block_exclusive_sum<WIDE>(c.x + c.y + c.z + c.w, &all);
    const int4 starts = {before, before + c.x, before + c.x + c.y, before + c.x + c.y + c.z};
    if (4 * at < bins) reinterpret_cast<int4*>(o.starts)[at] = starts;
}

// order int32 [parts, length]: which row is at each place. ones [parts], if there are several: where the first row is whose
// part of the key is not 0.
extern "C" __global__ void __launch_bounds__(THREADS)
place_rows(const __grid_constant__ Orderings orderings) {
    __shared__ int few[FEW_BINS];
    const Ordering o = orderings.of[blockIdx.y];
    const int first = blockIdx.x * THREADS + threadIdx.x, n = *o.count;
    if (blockIdx.x && blockIdx.x * THREADS >= n) return;
    if (o.bins <= FEW_BINS) {
        int before = 0, all;
        for (int bin = threadIdx.x; bin < FEW_BINS; bin += THREADS) {
            few[bin] = before + block_exclusive_sum<THREADS>(bin < o.bins ? o.counts[bin] : 0, &all);
            before += all;
        }
        __syncthreads();
    }
    const Regions regions(o, n);
    const int* start_of = o.bins <= FEW_BINS ? few : o.starts;
    if (o.parts > 1 && first < o.parts) o.ones[first] = start_of[first << 8 | 1] - first * n;
    for (int row = first; row < n; row += gridDim.x * THREADS) {
        for (int part = 0; part < o.parts; ++part) {
            const size_t mine = (size_t)part * o.length;
            const int place = start_of[bin_of(o, regions, row, part)] - part * n + o.ranks[mine + row];
            o.order[mine + place] = row;
        }
    }
}
