// Features of sites at the points: nearest copies those of the point's voxel, trilinear takes a weighted mean of the
// (up to 8) sites around it. A point outside the grid, or without a site around it, gets zeros.
#include "element.cuh"
#include "hash.cuh"

#define POINTS 32   // of a block
#define THREADS 256

using Element = ELEMENT;

extern "C" __global__ void __launch_bounds__(THREADS)
devoxelize_nearest(const Element* __restrict__ x, int x_pitch, const int* __restrict__ voxel_of_point,
                   const int* __restrict__ count, Element* __restrict__ y, int y_pitch, int channels) {
    const int p = blockIdx.x * blockDim.y + threadIdx.y;
    if (p >= *count) return;
    const int row = voxel_of_point[p];
    for (int c = threadIdx.x; c < channels; c += blockDim.x)
        y[(size_t)p * y_pitch + c] = row < 0 ? from_float<Element>(0.0f) : x[(size_t)row * x_pitch + c];
}

__device__ inline bool is_cell(float x) { return fabsf(x) < 2147483648.0f; }

// position [points, 3] in voxels; voxels [points] give a point's item, -1 for a point outside; a site sits at its
// integer corner, in steps of the level's stride. First 8 threads look the corners of a point up, then all interpolate.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
devoxelize_trilinear(const Element* __restrict__ x, int x_pitch, const float* __restrict__ position,
                     const Site* __restrict__ voxels, const int* __restrict__ count, int stride_x, int stride_y,
                     int stride_z, const Bucket* __restrict__ buckets, int mask, const int* __restrict__ cells,
                     const Site* __restrict__ sites, Element* __restrict__ y, int y_pitch, int channels) {
    __shared__ int rows[POINTS][8];
    __shared__ float weights[POINTS][8];
    const int start = blockIdx.x * POINTS, n = *count;
    if (start >= n) return;
    const int local = threadIdx.x / 8, corner = threadIdx.x % 8, p = start + local;
    int row = -1;
    float weight = 0.0f;
    if (p < n && voxels[p].item >= 0) {
        const float* at = position + 3 * (size_t)p;
        const float px = __fdiv_rn(at[0], (float)stride_x), nx = floorf(px) + (float)(corner >> 2);
        const float py = __fdiv_rn(at[1], (float)stride_y), ny = floorf(py) + (float)(corner >> 1 & 1);
        const float pz = __fdiv_rn(at[2], (float)stride_z), nz = floorf(pz) + (float)(corner & 1);
        if (is_cell(nx) && is_cell(ny) && is_cell(nz))
            row = find_site(buckets, mask, cells, sites, Site{voxels[p].item, (int)nx, (int)ny, (int)nz});
        weight = (1.0f - fabsf(px - nx)) * (1.0f - fabsf(py - ny)) * (1.0f - fabsf(pz - nz));
    }
    rows[local][corner] = row;
    weights[local][corner] = row < 0 ? 0.0f : weight;
    __syncthreads();
    for (int i = threadIdx.x / 32; i < min(POINTS, n - start); i += THREADS / 32) {
        float sum_of_weights = 0.0f;
        for (int k = 0; k < 8; ++k) sum_of_weights += weights[i][k];
        const float whole = sum_of_weights > 0.0f ? sum_of_weights : 1.0f;
        for (int c = threadIdx.x % 32; c < channels; c += 32) {
            float total = 0.0f;
            for (int k = 0; k < 8; ++k)
                if (rows[i][k] >= 0) total += weights[i][k] * to_float(x[(size_t)rows[i][k] * x_pitch + c]);
            y[(size_t)(start + i) * y_pitch + c] = from_float<Element>(total / whole);
        }
    }
}
