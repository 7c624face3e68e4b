// How output sites of a convolution reach input sites: input = output*stride - padding + k*dilation, by axis; or if it is
// generative, input sites output sites.
#pragma once
#include "hash.cuh"

// Laid out as pack_geometry in cuda/coordinates.py fills it.
struct Geometry {
    int size[3], stride[3], padding[3], dilation[3];
    int shape[3];     // cells of the output grid, -1 for no bound
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

__device__ inline bool inside(Site site, const Geometry& g) {
    return inside(site.x, 0, g) && inside(site.y, 1, g) && inside(site.z, 2, g);
}

// The output that an input makes through an offset, if it makes one.
__device__ inline Site output_site(Site input, int offset, const Geometry& g) {
    const int kx = offset / (g.size[1] * g.size[2]), ky = offset / g.size[2] % g.size[1], kz = offset % g.size[2];
    if (g.generative) return reached_site(input, kx, ky, kz, g);
    Site output = {input.item, 0, 0, 0};
    if (g.floor_sites) {
        output.x = floor_div(input.x, g.stride[0]);
        output.y = floor_div(input.y, g.stride[1]);
        output.z = floor_div(input.z, g.stride[2]);
        return output;
    }
    output_cell(input.x, kx, 0, g, &output.x);
    output_cell(input.y, ky, 1, g, &output.y);
    output_cell(input.z, kz, 2, g, &output.z);
    return output;
}

// Calls visit(offset, output) for every output site that an input makes, in the order of the offsets.
template <class Visit>
__device__ inline void for_each_output(Site input, const Geometry& g, Visit visit) {
    if (g.floor_sites) {
        visit(0, output_site(input, 0, g));
        return;
    }
    if (g.generative) {
        for (int offset = 0; offset < volume_of(g); ++offset) {
            const Site output = output_site(input, offset, g);
            if (inside(output, g)) visit(offset, output);
        }
        return;
    }
    Site output = {input.item, 0, 0, 0};
    for (int kx = 0; kx < g.size[0]; ++kx) {
        if (!output_cell(input.x, kx, 0, g, &output.x) || !inside(output.x, 0, g)) continue;
        for (int ky = 0; ky < g.size[1]; ++ky) {
            if (!output_cell(input.y, ky, 1, g, &output.y) || !inside(output.y, 1, g)) continue;
            for (int kz = 0; kz < g.size[2]; ++kz) {
                if (!output_cell(input.z, kz, 2, g, &output.z) || !inside(output.z, 2, g)) continue;
                visit((kx * g.size[1] + ky) * g.size[2] + kz, output);
            }
        }
    }
}
