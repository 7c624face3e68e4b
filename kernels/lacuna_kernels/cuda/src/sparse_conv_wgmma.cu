// Sparse convolution in fp16 or bf16 on Hopper's tensor cores: an implicit GEMM, output-stationary; see sparse_conv.cuh.
// A block makes TILE_M rows x TILE_N channels of y from panels, 32 channels of what one offset leads to: those of the
// tile's first offset, then those of its next, two at a time, whichever they are of. Of the threads
//   multiply  each of TILE_M / 64 warpgroups has 64 rows of the tile
//   bring     BRINGERS threads more gather panels (zeros where there is no row) in 16-byte copies, and two of them have
//             the patches of the offsets' weights copied beside them, STAGES pairs of panels ahead
// ci, and x's pitch and address, are multiples of 8 elements. weight, packed: [volume, panels, tiles of TILE_N channels,
// TILE_N, 32], rows of 32 swizzled by 64 bytes, zeros past ci and co.
#include "hopper.cuh"
#include "lane_copies.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 128
#define BLOCKS 1  // of a multiprocessor
#endif

constexpr int MULTIPLIERS = TILE_M * 2, THREADS = MULTIPLIERS + BRINGERS;
constexpr int PANEL_K = 32, PANEL_PIECES = PANEL_K / PIECE, ROW = 2 * PANEL_K;  // bytes
constexpr int A_PANEL = TILE_M * ROW, B_PANEL = TILE_N * ROW, STAGE = 2 * (A_PANEL + B_PANEL);
constexpr int ROWS_APART = BRINGERS / (2 * PANEL_PIECES), GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024;  // bytes before the stages
static_assert(ROWS_APART % 8 == 0, "the rows of a thread are swizzled alike");
static_assert(16 * STAGES <= BARRIERS, "room for the barriers");
static_assert(TILE_M * pitch_of_sums<TILE_N> * 4 <= STAGES * STAGE, "the sums lie where the stages were");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + 2 * A_PANEL; }
};

struct Input {
    const Element* x;
    int pitch, ci, panels;  // of an offset
};

// A thread that gathers: a piece of every ROWS_APART-th row, of every other panel. Neighbours have neighbouring pieces
// of two panels, which mostly lie side by side.
struct Bringer {
    const Stages& stages;
    const Input& input;
    OffsetWalk walk;
    int thread, left;       // offsets to come
    int upcoming[GATHERS];  // rows of the next offset, asked for early, so that nobody waits for them
    int offset = 0, next_offset = 0;

    __device__ __forceinline__ int piece() const { return thread % PANEL_PIECES; }
    __device__ __forceinline__ int half() const { return thread / PANEL_PIECES % 2; }
    __device__ __forceinline__ int row() const { return thread / (2 * PANEL_PIECES); }

    __device__ __forceinline__ void look_up() {
        const bool more = left > 0;
        if (more) --left, next_offset = walk.next();
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int place = walk.place + row() + i * ROWS_APART;
            upcoming[i] = more && place < walk.places ? input_row(walk.map, next_offset, place) : -1;
        }
    }

    __device__ __forceinline__ void enter(int (&rows)[GATHERS]) {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) rows[i] = upcoming[i];
        offset = next_offset;
        look_up();
    }

    __device__ __forceinline__ void gather(const int (&rows)[GATHERS], int panel, int stage) const {
        const int channel = panel * PANEL_K + piece() * PIECE;
        const uint32_t to = stages.a(stage) + half() * A_PANEL + row() * ROW + (piece() ^ row() / 2 % 4) * 16;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const bool there = rows[i] >= 0 && channel < input.ci;
            copy_16_bytes(to + i * (ROWS_APART * ROW),
                          there ? input.x + (size_t)rows[i] * input.pitch + channel : input.x, there);
        }
        arrive_after_copies(stages.full(stage));
    }

    // `weight` is that of the tile's channels, of the first panel of the first offset; the next panel is `apart` on.
    // Past the last panel there are none but zeros, times the last weights again.
    __device__ __forceinline__ void bring(const char* weight, size_t apart, int steps) {
        int rows[GATHERS];
        int panel = half();
        look_up();
        enter(rows);
        Ring ring;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            while (panel >= input.panels) panel -= input.panels, enter(rows);
            barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
            if (row() == 0 && piece() == 0) {
                barrier_expect(stages.full(ring.stage), B_PANEL);
                copy_in(stages.b(ring.stage) + half() * B_PANEL, weight + ((size_t)offset * input.panels + panel) * apart,
                        B_PANEL, stages.full(ring.stage));
            }
            gather(rows, panel, ring.stage);
            panel += 2;
            ring.next(STAGES);
        }
    }
};

// `a` and `b` are the first of two panels.
__device__ __forceinline__ void multiply(float (&sums)[TILE_N / 2], uint32_t a, uint32_t b) {
    products_begin();
#pragma unroll
    for (int k = 0; k < 2 * PANEL_K / 16; ++k)
        multiply_add<TILE_N, 0>(sums, operand_of_32(a + k / 2 * A_PANEL + k % 2 * 32),
                                operand_of_32(b + k / 2 * B_PANEL + k % 2 * 32), 1, Element());
    products_commit();
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
sparse_conv_wgmma(const Element* __restrict__ x, int x_pitch, int ci, const char* __restrict__ weight,
                  int weight_pitch, const int* __restrict__ map_rows, const unsigned* __restrict__ present, int volume,
                  int words, int capacity, const int* __restrict__ order, const int* __restrict__ count,
                  const float* __restrict__ bias, const Element* residual, int residual_pitch, Element* y, int y_pitch,
                  int co, int activation, float negative_slope) {
    const int across = weight_pitch / TILE_N, rows = min(*count, capacity), tile_n = blockIdx.x % across;
    const int place = place_of_tile(blockIdx.x / across, TILE_M, rows);
    if (place < 0) return;
    const Stages stages{dynamic_shared()};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s)
            barrier_init(stages.full(s), BRINGERS + 2), barrier_init(stages.empty(s), MULTIPLIERS);
        barriers_are_ready();
    }
    __syncthreads();
    const KernelMap map = {map_rows, present, volume, words, capacity};
    const int panels = (ci + PANEL_K - 1) / PANEL_K;
    const OffsetWalk walk{map, place, min(rows, place + TILE_M)};
    const int offsets = walk.total(), steps = (offsets * panels + 1) / 2;
    if (threadIdx.x >= MULTIPLIERS) {
        const Input input{x, x_pitch, ci, panels};
        Bringer{stages, input, walk, int(threadIdx.x) - MULTIPLIERS, offsets}.bring(
            weight + (size_t)tile_n * B_PANEL, (size_t)across * B_PANEL, steps);
        return;
    }
    const int warp = warp_of_block(), group = warp / 4;
    float sums[TILE_N / 2] = {};
    Ring ring;
    int before = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        barrier_wait(stages.full(ring.stage), ring.phase);
        publish_shared();  // what copies of 16 bytes brought
        multiply(sums, stages.a(ring.stage) + group * (64 * ROW), stages.b(ring.stage));
        products_wait<1>();
        if (step) barrier_arrive(stages.empty(before));
        before = ring.stage;
        ring.next(STAGES);
    }
    products_wait<0>();
#pragma unroll
    for (int n = 0; n < TILE_N / 2; ++n) is_changed(sums[n]);
    barrier_of<MULTIPLIERS>(1);  // all are done with the stages: each warp takes a part of them
    const Epilogue epilogue = {order, bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    const int first = place + warp * 16;
    float* own = static_cast<float*>(shared_pointer(stages.a(0))) + warp * 16 * pitch_of_sums<TILE_N>;
    write_rows<TILE_N>(epilogue, own, sums, first, min(16, rows - first), tile_n * TILE_N);
}
