// Sites to an image [items, channels * Z, Y, X] that is zero before: channel c of a site at height z is c*Z + z.
#include "element.cuh"
#include "hash.cuh"

using Element = ELEMENT;

extern "C" __global__ void __launch_bounds__(256)
sparse_to_bev(const Element* __restrict__ x, int x_pitch, const Site* __restrict__ sites, const int* __restrict__ count,
              int size_x, int size_y, int size_z, int channels, Element* __restrict__ image) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= *count) return;
    const Site at = sites[row];
    if (at.x < 0 || at.x >= size_x || at.y < 0 || at.y >= size_y || at.z < 0 || at.z >= size_z) return;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const size_t plane = ((size_t)at.item * channels + c) * size_z + at.z;
        image[(plane * size_y + at.y) * size_x + at.x] = x[(size_t)row * x_pitch + c];
    }
}
