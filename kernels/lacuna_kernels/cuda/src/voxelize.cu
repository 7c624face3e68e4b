// Points to voxels: each point's voxel, and the voxels numbered in the order of their first point.
// Launched in this order: place_points, insert_points, first_points, number_voxels,
// add_sites (sites.cu); then voxels_of_points.
#include "geometry.cuh"
#include "numbering.cuh"
#include "search.cuh"

#define FURTHEST 1073741824.0f  // 2^30 voxels

// position = (point - origin) / size, divided as IEEE 754 has it, so that every device finds the same voxel.
// cells: voxels inside the range by axis, -1 for no range. A point outside, or too far away, gets item -1.
// tables int32 [4 * quarters]: what is to be cleared before anything is inserted.
extern "C" __global__ void __launch_bounds__(THREADS)
place_points(const float* __restrict__ points, int columns, const int* __restrict__ count,
             const int* __restrict__ offsets, int items, float origin_x, float origin_y, float origin_z, float size_x,
             float size_y, float size_z, int cells_x, int cells_y, int cells_z, float* __restrict__ position,
             Site* __restrict__ voxels, int4* __restrict__ tables, int quarters) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    for (int i = p; i < quarters; i += gridDim.x * THREADS) tables[i] = {FREE, FREE, FREE, FREE};
    if (p >= *count) return;
    const float origin[3] = {origin_x, origin_y, origin_z}, size[3] = {size_x, size_y, size_z};
    const int cells[3] = {cells_x, cells_y, cells_z};
    int voxel[3];
    bool kept = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const float at = __fdiv_rn(__fsub_rn(points[(size_t)p * columns + axis], origin[axis]), size[axis]);
        kept = kept && fabsf(at) < FURTHEST && (cells[axis] < 0 || (at >= 0.0f && at < (float)cells[axis]));
        position[3 * (size_t)p + axis] = at;
        voxel[axis] = (int)floorf(at);
    }
    const int item = item_of_row(offsets, items, p);
    voxels[p] = kept ? Site{item, voxel[0], voxel[1], voxel[2]} : Site{-1, 0, 0, 0};
}

// slots int32 [points]: where in the table of candidates, int32 [mask + 1], a point's voxel is, -1 for a point outside.
extern "C" __global__ void __launch_bounds__(THREADS)
insert_points(const Site* __restrict__ voxels, const int* __restrict__ count, int* __restrict__ table, int mask,
              int* __restrict__ slots, int* __restrict__ overflow) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p >= *count) return;
    const Site voxel = voxels[p];
    int slot = -1;
    if (voxel.item >= 0) {
        slot = insert_site(table, mask, voxel, p, [=](int row) { return voxels[row]; });
        if (slot < 0) *overflow = 1;
    }
    slots[p] = slot;
}

// bits, sums: `Firsts` of numbering.cuh.
extern "C" __global__ void __launch_bounds__(THREADS)
first_points(const int* __restrict__ count, const int* __restrict__ slots, const int* __restrict__ table,
             unsigned* __restrict__ bits, int* __restrict__ sums) {
    const int n = *count, start = blockIdx.x * TILE;
    if (start >= n) return;
    int found = 0, all;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int p = start + turn * THREADS + threadIdx.x, slot = p < n ? slots[p] : -1;
        const bool first = slot >= 0 && table[slot] == p;
        const unsigned word = __ballot_sync(FULL_WARP, first);
        if (threadIdx.x % 32 == 0) bits[p / 32] = word;
        found += first;
    }
    block_exclusive_sum<THREADS>(found, &all);
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

// The table of candidates becomes one of rows.
extern "C" __global__ void __launch_bounds__(THREADS)
number_voxels(const Site* __restrict__ voxels, const int* __restrict__ count, const int* __restrict__ slots,
              int* __restrict__ table, const unsigned* __restrict__ bits, const int* __restrict__ sums,
              int* __restrict__ made_count, int capacity, int* __restrict__ overflow, Site* __restrict__ sites,
              Cells* __restrict__ cells) {
    const Room room = {made_count, capacity, overflow, sites, cells};
    number_firsts(*count, {bits, sums}, room, [&](int p, int row) {
        if (row >= 0) room.put(row, voxels[p]);
        table[slots[p]] = row;
    });
}

extern "C" __global__ void __launch_bounds__(THREADS)
voxels_of_points(const int* __restrict__ slots, const int* __restrict__ count, const int* __restrict__ table,
                 int* __restrict__ voxel_of_point) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p < *count) voxel_of_point[p] = slots[p] < 0 ? -1 : table[slots[p]];
}

// The site of some level, of stride (x, y, z), that holds each point, -1 where none does.
extern "C" __global__ void __launch_bounds__(THREADS)
site_of_points(const Site* __restrict__ voxels, const int* __restrict__ count, int stride_x, int stride_y, int stride_z,
               const Bucket* __restrict__ buckets, int mask, const int* __restrict__ cells,
               const Site* __restrict__ sites, int* __restrict__ site_of_point) {
    const int p = blockIdx.x * THREADS + threadIdx.x;
    if (p >= *count) return;
    const Site at = voxels[p];
    const Site site = {at.item, floor_div(at.x, stride_x), floor_div(at.y, stride_y), floor_div(at.z, stride_z)};
    site_of_point[p] = at.item < 0 ? -1 : find_site(buckets, mask, cells, sites, site);
}
