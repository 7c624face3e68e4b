// In which order the tiles of a convolution are made: those that go through most offsets first, so that whoever is done
// takes a shorter one, and all end at about the same time (longest processing time first). Those of the last part, which
// wait for the others, come after these.
#include "map_places.cuh"
#include "scan.cuh"

#define THREADS 1024
#define COUNTS (THREADS / 2)  // of offsets that are told apart; tiles of more come first, in any order
#define MOST_MAPS 12

// present, count and ones as kernel_map.cu makes them, of so many groups that there is room for. tiles int32 [2, parts *
// groups]: tiles of GROUP places, then of twice as many, each its part << TILE_PART | the group that it begins with.
struct TileOrder {
    const unsigned* present;
    const int *count, *ones;
    int* tiles;
    int parts, groups, words;
};

// As cuda/tile_order.py packs them.
struct TileOrders {
    TileOrder of[MOST_MAPS];
};
static_assert(sizeof(TileOrder) == 48, "as it is packed");

// A block has a map, and tiles of one size.
extern "C" __global__ void __launch_bounds__(THREADS)
order_tiles(const __grid_constant__ TileOrders orders) {
    __shared__ int bins[2 * COUNTS];  // one a thread
    const TileOrder& o = orders.of[blockIdx.y];
    const int n = *o.count, groups = o.groups, together = 1 + blockIdx.x, size = together * GROUP;
    const int each = (n + size - 1) / size, all = each * o.parts;
    int* tiles = o.tiles + (size_t)blockIdx.x * o.parts * groups;
    const auto bin_of = [&](int at) {
        const int part = at / each, tile = at % each, is_last = part == o.parts - 1;
        if (!is_last && tile < o.ones[part] / size) return -1;
        const unsigned* present = o.present + ((size_t)part * groups + tile * together) * o.words;
        const bool two = together > 1 && tile * size + GROUP < n;
        int offsets = 0;
        for (int word = 0; word < o.words; ++word) offsets += __popc(present[word] | (two ? present[o.words + word] : 0));
        return (is_last + 1) * COUNTS - 1 - min(offsets, COUNTS - 1);
    };
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int at = threadIdx.x; at < all; at += THREADS) {
        const int bin = bin_of(at);
        if (bin >= 0) atomicAdd(bins + bin, 1);
    }
    __syncthreads();
    int sum;
    const int before = block_exclusive_sum<THREADS>(bins[threadIdx.x], &sum);
    bins[threadIdx.x] = before;
    __syncthreads();
    for (int at = threadIdx.x; at < all; at += THREADS) {
        const int bin = bin_of(at);
        if (bin >= 0) tiles[atomicAdd(bins + bin, 1)] = at / each << TILE_PART | at % each * together;
    }
}
