// Sparse convolution in fp32 by multiply-adds (FFMA, no tensor cores): an implicit GEMM, output-stationary.
// A block makes TILE_M rows x TILE_N channels of y, a thread ROWS x 4 of them. Step by step it gathers TILE_K channels
// of the rows that one offset leads to, and that patch of its weight; the next step is fetched while one is summed.
// weight [padded ci of all offsets and then of the shortcut, padded co], zeros up to multiples of TILE_K and TILE_N;
// its width is weight_pitch.
#include "sparse_conv.cuh"

#ifndef TILE_M
#define TILE_M 64
#define TILE_N 64
#define TILE_K 16
#define ROWS 4
#endif

#define COLUMNS 4
#define THREADS_N (TILE_N / COLUMNS)
#define THREADS (TILE_M / ROWS * THREADS_N)
#define GATHERS (TILE_M * TILE_K / THREADS)
#define PITCH_A (TILE_M + 4)  // x is kept channel by channel; the pad spreads the banks of its writes
#define PATCHES (TILE_K * TILE_N / COLUMNS / THREADS)
#if TILE_M * TILE_K % THREADS || TILE_K * TILE_N % (COLUMNS * THREADS) || THREADS % TILE_K
#error "the threads must share a tile evenly"
#endif

// Fetches the steps of a tile into registers, one call a step.
struct Fetcher {
    const Source &input, &shortcut;
    const float* weight;  // at the tile's first channel
    int weight_pitch;
    OffsetWalk walk;
    int steps;
    int offset = 0, chunk = 0;
    Source source{};
    int rows[GATHERS];
    float gathered[GATHERS];
    float4 patch[PATCHES];

    static __device__ int chunks_of(const Source& source) { return (source.ci + TILE_K - 1) / TILE_K; }

    __device__ Fetcher(const Source& input, const Source& shortcut, const float* weight, int weight_pitch,
                       const OffsetWalk& walk)
        : input(input), shortcut(shortcut), weight(weight), weight_pitch(weight_pitch), walk(walk),
          steps(walk.steps(walk.total(), chunks_of(input), chunks_of(shortcut))) {}

    // Thread t takes channel t % TILE_K of rows t / TILE_K, + THREADS / TILE_K, ...: neighbours read side by side.
    __device__ void fetch() {
        const int channel = threadIdx.x % TILE_K;
        if (chunk * TILE_K >= source.ci) {
            chunk = 0;
            offset = walk.next();
            source = offset == walk.map.volume ? shortcut : input;
#pragma unroll
            for (int i = 0; i < GATHERS; ++i) {
                const int place = walk.place + (threadIdx.x + i * THREADS) / TILE_K;
                rows[i] = place < walk.places ? walk.row(offset, place) : -1;
            }
        }
        const int c = chunk * TILE_K + channel;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i)
            gathered[i] = rows[i] >= 0 && c < source.ci ? source.rows[(size_t)rows[i] * source.pitch + c] : 0.0f;
        const float* from = weight + ((size_t)offset * chunks_of(input) + chunk) * TILE_K * weight_pitch;
#pragma unroll
        for (int i = 0; i < PATCHES; ++i) {
            const int at = threadIdx.x + i * THREADS;
            patch[i] = *reinterpret_cast<const float4*>(from + (size_t)(at / THREADS_N) * weight_pitch +
                                                        at % THREADS_N * COLUMNS);
        }
        ++chunk;
    }

    __device__ void store(float (*a)[PITCH_A], float (*b)[TILE_N]) const {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i)
            a[threadIdx.x % TILE_K][(threadIdx.x + i * THREADS) / TILE_K] = gathered[i];
#pragma unroll
        for (int i = 0; i < PATCHES; ++i) {
            const int at = threadIdx.x + i * THREADS;
            *reinterpret_cast<float4*>(&b[at / THREADS_N][at % THREADS_N * COLUMNS]) = patch[i];
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
sparse_conv_fp32(const float* __restrict__ x, int x_pitch, int ci, const float* __restrict__ shortcut,
                 int shortcut_pitch, int shortcut_ci, const float* __restrict__ weight, int weight_pitch,
                 const int* __restrict__ map_rows, const unsigned* __restrict__ present, const int* __restrict__ order,
                 const int* __restrict__ keys, const int* __restrict__ ones, int parts, int volume, int words,
                 int capacity, const int* __restrict__ count, float* part_sums, int part_pitch, Progress* progress,
                 const float* __restrict__ bias, const float* residual, int residual_pitch, float* y, int y_pitch, int co, int activation,
                 float negative_slope) {
    __shared__ float a[2][TILE_K][PITCH_A];
    __shared__ __align__(16) float b[2][TILE_K][TILE_N];
    const KernelMap map = {map_rows, present, order, keys, ones, parts, volume, words, capacity};
    const Tiles<TILE_M, TILE_N> tiles = {map, min(*count, capacity), weight_pitch / TILE_N};
    const Tile tile = take_tile(tiles, progress, reinterpret_cast<int*>(b));
    if (tile.part < 0) return leave_tile(map, tile, progress);
    const bool last = map.is_last(tile.part);
    const Source input = {x, x_pitch, ci}, beside = {shortcut, shortcut_pitch, shortcut_ci};
    const OffsetWalk walk{map, tile.part, tile.place, min(tiles.rows, tile.place + TILE_M), shortcut != nullptr};
    Fetcher fetcher(input, beside, weight + tile.column, weight_pitch, walk);

    const PartSums before = {part_sums, part_pitch, capacity};
    const Output output = {bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    float sums[ROWS][COLUMNS];
    const int first_row = threadIdx.x / THREADS_N * ROWS, column = tile.column + threadIdx.x % THREADS_N * COLUMNS;
    const auto row_of = [&](int i) {  // negative past the last
        const int at = tile.place + first_row + i;
        return at < walk.places ? map.row_of(tile.part, at) : -1;
    };
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int m = row_of(i);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) sums[i][j] = m < 0 || !last ? 0.0f : output.begin(m, column + j);
    }
    if (fetcher.steps) {
        fetcher.fetch();
        fetcher.store(a[0], b[0]);
    }
    __syncthreads();
    for (int step = 0; step < fetcher.steps; ++step) {
        const bool more = step + 1 < fetcher.steps;
        if (more) fetcher.fetch();
#pragma unroll
        for (int k = 0; k < TILE_K; ++k) {
            const float4 w = *reinterpret_cast<const float4*>(&b[step % 2][k][column - tile.column]);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const float value = a[step % 2][k][first_row + i];
                sums[i][0] = fmaf(value, w.x, sums[i][0]);
                sums[i][1] = fmaf(value, w.y, sums[i][1]);
                sums[i][2] = fmaf(value, w.z, sums[i][2]);
                sums[i][3] = fmaf(value, w.w, sums[i][3]);
            }
        }
        if (more) fetcher.store(a[(step + 1) % 2], b[(step + 1) % 2]);
        __syncthreads();
    }

    if (last && parts > 1) progress->wait_for(tiles.before_last());
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int m = row_of(i);
        if (m < 0) break;
        for (int part = 0; last && part < parts - 1; ++part)
            if (map.parts_before(m) >> 8 * part & 0xff)
                for (int j = 0; j < COLUMNS; ++j) sums[i][j] += *before.at(part, m, column + j);
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
            if (last)
                output.write(sums[i][j], m, column + j);
            else
                *before.at(tile.part, m, column + j) = sums[i][j];
    }
    leave_tile(map, tile, progress);
}
