// y[r, :] = (x[r, :] - mean) / sqrt(variance + eps) * weight + bias for the rows in use, mean and variance of the row.
// A warp a row: it is read from memory once and from the first-level cache twice, and its sums are in an order that
// depends on the number of features alone. VECTOR elements are moved at once, by which pointers and rows must divide.
#include "element.cuh"

#ifndef VECTOR
#define VECTOR 1
#endif

using Element = ELEMENT;
constexpr int WARP = 32, ROWS_PER_BLOCK = 8;

struct alignas(VECTOR * sizeof(Element)) Elements { Element at[VECTOR]; };

__device__ __forceinline__ float warp_sum(float value) {
    for (int lanes = WARP / 2; lanes; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
    return value;
}

extern "C" __global__ void __launch_bounds__(WARP * ROWS_PER_BLOCK)
layer_norm(const Element* x, const float* __restrict__ weight, const float* __restrict__ bias,
           Element* y, const int* __restrict__ count, int rows_per_count, int features, float eps) {
    const long long row = (long long)blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (row >= (long long)*count * rows_per_count) return;
    const int lane = threadIdx.x % WARP, vectors = features / VECTOR;
    const Elements* from = reinterpret_cast<const Elements*>(x + row * features);
    Elements* to = reinterpret_cast<Elements*>(y + row * features);

    float sum = 0;
    for (int v = lane; v < vectors; v += WARP) {
        const Elements some = from[v];
        for (int e = 0; e < VECTOR; ++e) sum += to_float(some.at[e]);
    }
    const float mean = warp_sum(sum) / features;

    float squares = 0;
    for (int v = lane; v < vectors; v += WARP) {
        const Elements some = from[v];
        for (int e = 0; e < VECTOR; ++e) {
            const float distance = to_float(some.at[e]) - mean;
            squares = fmaf(distance, distance, squares);
        }
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / features + eps);

    for (int v = lane; v < vectors; v += WARP) {
        Elements some = from[v];
        for (int e = 0; e < VECTOR; ++e) {
            const int f = v * VECTOR + e;
            some.at[e] = from_float<Element>(fmaf((to_float(some.at[e]) - mean) * scale, weight[f], bias[f]));
        }
        to[v] = some;
    }
}
