// One row per cloud: y[item] = mean or maximum over its rows of x; zeros for an empty cloud.
// A block pools 32 channels of one item. Warp w takes rows w, w + WARPS, ... of the item and the warps are joined in
// order, so that the order of a sum depends on the cloud alone. Grid: (items, ceil(channels / 32)).
#include "element.cuh"

#define WARPS 32

using Element = ELEMENT;

#ifndef POOL_MAX
#define POOL_MAX 0
#endif

__device__ inline float joined(float a, float b) { return POOL_MAX ? (a < b || b != b ? b : a) : a + b; }

extern "C" __global__ void __launch_bounds__(WARPS * 32)
global_pool(const Element* __restrict__ x, int x_pitch, const int* __restrict__ offsets, Element* __restrict__ y,
            int y_pitch, int channels) {
    __shared__ float part[WARPS][32];
    const int item = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = blockIdx.y * 32 + lane;
    const int start = offsets[item], stop = offsets[item + 1];
    const float nothing = POOL_MAX ? -INFINITY : 0.0f;
    float mine = nothing;
#pragma unroll 4
    for (int row = start + warp; row < stop; row += WARPS)
        if (c < channels) mine = joined(mine, to_float(x[(size_t)row * x_pitch + c]));
    part[warp][lane] = mine;
    __syncthreads();
    if (warp || c >= channels) return;
    float all = nothing;
    for (int w = 0; w < WARPS; ++w) all = joined(all, part[w][lane]);
    if (!POOL_MAX && stop > start) all /= (float)(stop - start);
    y[(size_t)item * y_pitch + c] = from_float<Element>(stop > start ? all : 0.0f);
}
