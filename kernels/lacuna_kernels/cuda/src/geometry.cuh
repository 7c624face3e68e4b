// How output sites of a convolution reach input sites: input = output*stride - padding + k*dilation, by axis; or if it is
// generative, input sites output sites.
#pragma once
#include "hash.cuh"

// Laid out as pack_geometry in cuda/coordinates.py fills it.
struct Geometry {
    int size[3], stride[3], padding[3], dilation[3];
    int shape[3];     // cells of the output grid, -1 for no bound
    int most[3];      // outputs that an input makes along an axis, at most
    int floor_sites;  // 1: the outputs are floor(input / stride)
    int generative;   // 1: the outputs are input*stride - padding + k*dilation
};

// By shifts where that will do, as it mostly does: divisions were half of what looking rows up took.
__device__ inline int floor_div(int a, int b) {
    if (!(b & (b - 1))) return a >> (__ffs(b) - 1);
    const int quotient = a / b;
    return quotient - (quotient * b > a);
}

__device__ inline int volume_of(const Geometry& g) { return g.size[0] * g.size[1] * g.size[2]; }

// The site that a coarse one reaches through offset (kx, ky, kz): the input of an output, or a generated output.
__device__ inline Site reached_site(Site coarse, int kx, int ky, int kz, const Geometry& g) {
    return {coarse.item, coarse.x * g.stride[0] - g.padding[0] + kx * g.dilation[0],
            coarse.y * g.stride[1] - g.padding[1] + ky * g.dilation[1],
            coarse.z * g.stride[2] - g.padding[2] + kz * g.dilation[2]};
}

// One axis of the output that an input feeds through offset k; false if there is none.
__device__ inline bool output_cell(int input, int k, int axis, const Geometry& g, int* cell) {
    const int moved = input + g.padding[axis] - k * g.dilation[axis];
    *cell = floor_div(moved, g.stride[axis]);
    return *cell * g.stride[axis] == moved;
}

__device__ inline bool inside(int cell, int axis, const Geometry& g) {
    return g.shape[axis] < 0 || (cell >= 0 && cell < g.shape[axis]);
}

// Along an axis, the cell of the output that an input makes through the nth of the offsets that lead to one; false if there
// is none.
__device__ inline bool nth_output_cell(int input, int nth, int axis, const Geometry& g, int* cell) {
    const int stride = g.stride[axis];
    if (g.generative) {
        *cell = input * stride - g.padding[axis] + nth * g.dilation[axis];
        return inside(*cell, axis, g);
    }
    if (g.floor_sites) {
        *cell = floor_div(input, stride);
        return true;
    }
    if (g.dilation[axis] == 1) {
        const int moved = input + g.padding[axis], last = floor_div(moved, stride);
        *cell = last - nth;
        return moved - *cell * stride < g.size[axis] && inside(*cell, axis, g);
    }
    for (int k = 0; k < g.size[axis]; ++k)
        if (output_cell(input, k, axis, g, cell) && nth-- == 0) return inside(*cell, axis, g);
    return false;
}

// The output that an input makes through the nth of the offsets that lead to one, of at most g.most[0] x g.most[1] x
// g.most[2]; false if there is none.
__device__ inline bool nth_output(Site input, int nth, const Geometry& g, Site* output) {
    const int line = floor_div(nth, g.most[2]), x = floor_div(line, g.most[1]);
    output->item = input.item;
    return nth_output_cell(input.x, x, 0, g, &output->x) &&
           nth_output_cell(input.y, line - x * g.most[1], 1, g, &output->y) &&
           nth_output_cell(input.z, nth - line * g.most[2], 2, g, &output->z);
}
