// Features of the nodes that edges come from, added up or averaged over the edges of each pair (edges.cu), in fp32.
// Threads side by side have VECTOR channels each, in one load: more than one if x and y are aligned so.
#include "element.cuh"

#ifndef VECTOR
#define VECTOR 4
#endif

#define THREADS 256
#define LONG 128  // edges: a pair of more is a whole block's

using Element = ELEMENT;

struct alignas(VECTOR * sizeof(Element)) Vector {
    Element values[VECTOR];
};

// Edges start, start + step, ... of a pair; x begins at this thread's channels.
__device__ inline void add_edges(float (&sums)[VECTOR], const Element* __restrict__ x, int pitch,
                                 const int* __restrict__ sources, int start, int stop, int step) {
#pragma unroll 4
    for (int i = start; i < stop; i += step) {
        const Vector vector = *reinterpret_cast<const Vector*>(x + (size_t)sources[i] * pitch);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) sums[v] += to_float(vector.values[v]);
    }
}

__device__ inline void write_sums(const float (&sums)[VECTOR], float scale, Element* to) {
    Vector vector;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) vector.values[v] = from_float<Element>(sums[v] * scale);
    *reinterpret_cast<Vector*>(to) = vector;
}

// y[pair] = sum, or mean, of x[source] over its edges. A team of `across` threads has a pair and adds its edges in their
// order. Of a pair of more than LONG edges every team of the block adds some, and then the teams' sums are added in
// order: what is added in which order depends on the edges of the pair alone.
// A mean is the sum times 1 / edges: one division a pair, while no sums wait in registers.
// sources: by pair; starts [pairs + 1]. x, y: `pitch` elements from row to row. `channels` is a multiple of VECTOR.
extern "C" __global__ void __launch_bounds__(THREADS, 4)
edge_sums(const Element* __restrict__ x, int x_pitch, const int* __restrict__ sources, const int* __restrict__ starts,
          const int* __restrict__ pairs, int mean, Element* __restrict__ y, int y_pitch, int channels, int across) {
    extern __shared__ __align__(16) unsigned char shared[];
    const int teams = THREADS / across, team = threadIdx.x / across, lane = threadIdx.x % across;
    const int first = blockIdx.x * teams, n = *pairs, mine = first + team;
    if (first >= n) return;

    const int start = mine < n ? starts[mine] : 0, edges = mine < n ? starts[mine + 1] - start : 0;
    const float scale = mean ? 1.0f / (float)edges : 1.0f;
    for (int c = lane * VECTOR; c < channels && edges <= LONG && mine < n; c += across * VECTOR) {
        float sums[VECTOR] = {};
        add_edges(sums, x + c, x_pitch, sources, start, start + edges, 1);
        write_sums(sums, scale, y + (size_t)mine * y_pitch + c);
    }
    if (!__syncthreads_or(edges > LONG)) return;

    float(*parts)[VECTOR] = reinterpret_cast<float(*)[VECTOR]>(shared);  // [THREADS]
    for (int pair = first; pair < n && pair < first + teams; ++pair) {
        const int begin = starts[pair], stop = starts[pair + 1];
        if (stop - begin <= LONG) continue;
        const float part = mean ? 1.0f / (float)(stop - begin) : 1.0f;
        for (int at = 0; at < channels; at += across * VECTOR) {
            const int c = at + lane * VECTOR;
            float sums[VECTOR] = {};
            if (c < channels) add_edges(sums, x + c, x_pitch, sources, begin + team, stop, teams);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) parts[threadIdx.x][v] = sums[v];
            __syncthreads();
            if (!team && c < channels) {
                for (int other = 1; other < teams; ++other)
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) sums[v] += parts[other * across + lane][v];
                write_sums(sums, part, y + (size_t)pair * y_pitch + c);
            }
            __syncthreads();
        }
    }
}
