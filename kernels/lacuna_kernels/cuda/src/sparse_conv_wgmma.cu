// Sparse convolution in fp16 or bf16 on Hopper's tensor cores: an implicit GEMM, output-stationary (see sparse_conv.cuh).
// A block makes TILE_M rows x TILE_N channels of y, in steps of 64 channels of what one offset leads to:
//   multiply  each of TILE_M / 64 warpgroups has 64 rows of the tile
//   bring     BRINGERS threads more gather those channels of the rows (zeros where there is none) in 16-byte copies, and
//             one of them has the patch of the offset's weight copied beside them, STAGES steps ahead
// ci, and x's pitch and address, are multiples of 8 elements. weight, packed: [volume, chunks of 64 channels, tiles of
// TILE_N channels, TILE_N, 64], rows of 64 swizzled by 128 bytes, zeros past ci and co.
#include "hopper.cuh"
#include "ring.cuh"
#include "sparse_conv.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define STAGES 3
#define BRINGERS 64
#define BLOCKS 2  // of a multiprocessor
#endif

constexpr int MULTIPLIERS = TILE_M * 2, THREADS = MULTIPLIERS + BRINGERS, TILE_K = 64, ROW = 128;  // bytes of 64 channels
constexpr int A_BYTES = TILE_M * ROW, B_BYTES = TILE_N * ROW, STAGE = A_BYTES + B_BYTES;
constexpr int PIECES = TILE_K / PIECE, ROWS_APART = BRINGERS / PIECES, GATHERS = TILE_M / ROWS_APART;  // of a thread
constexpr int BARRIERS = 1024;  // bytes before the stages
static_assert(ROWS_APART % 8 == 0 && 16 * STAGES <= BARRIERS, "rows of a thread are swizzled alike");

struct Stages {
    uint32_t shared;

    __device__ __forceinline__ uint32_t full(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return shared + 8 * (STAGES + stage); }
    __device__ __forceinline__ uint32_t a(int stage) const { return shared + BARRIERS + stage * STAGE; }
    __device__ __forceinline__ uint32_t b(int stage) const { return a(stage) + A_BYTES; }
};

struct Input {
    const Element* x;
    int pitch, ci, chunks;
};

// Copy 16 bytes to shared memory, or zeros.
__device__ __forceinline__ void copy_piece(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// Arrive once this thread's copies so far have come.
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// A thread that gathers: a piece of every ROWS_APART-th row.
struct Bringer {
    const Stages& stages;
    const Input& input;
    OffsetWalk walk;
    int thread;
    int upcoming[GATHERS];  // asked for one offset ahead, so that nobody waits for them

    __device__ __forceinline__ void look_up(int offset) {
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const int place = walk.place + thread / PIECES + i * ROWS_APART;
            upcoming[i] = place < walk.places ? input_row(walk.map, offset, place) : -1;
        }
    }

    __device__ __forceinline__ void gather(const int (&rows)[GATHERS], int chunk, int stage) const {
        const int piece = thread % PIECES, row = thread / PIECES, channel = chunk * TILE_K + piece * PIECE;
        const uint32_t to = stages.a(stage) + row * ROW + (piece ^ row % 8) * 16;
#pragma unroll
        for (int i = 0; i < GATHERS; ++i) {
            const bool there = rows[i] >= 0 && channel < input.ci;
            copy_piece(to + i * (ROWS_APART * ROW), there ? input.x + (size_t)rows[i] * input.pitch + channel : input.x,
                       there);
        }
        arrive_after_copies(stages.full(stage));
    }

    // `weight` is that of the tile's channels, of the first chunk of the first offset; the next chunk is `apart` on.
    __device__ __forceinline__ void bring(const char* weight, size_t apart) {
        int left = walk.total();
        if (!left) return;
        int offset = walk.next();
        look_up(offset);
        Ring ring;
#pragma unroll 1
        while (left) {
            int rows[GATHERS];
#pragma unroll
            for (int i = 0; i < GATHERS; ++i) rows[i] = upcoming[i];
            const char* from = weight + (size_t)offset * input.chunks * apart;
            if (--left) look_up(offset = walk.next());
#pragma unroll 1
            for (int chunk = 0; chunk < input.chunks; ++chunk, from += apart) {
                barrier_wait(stages.empty(ring.stage), ring.phase ^ 1);
                if (thread == 0) {
                    barrier_expect(stages.full(ring.stage), B_BYTES);
                    copy_in(stages.b(ring.stage), from, B_BYTES, stages.full(ring.stage));
                }
                gather(rows, chunk, ring.stage);
                ring.next(STAGES);
            }
        }
    }
};

__device__ __forceinline__ void multiply(float (&sums)[TILE_N / 2], uint32_t a, uint32_t b) {
    products_begin();
#pragma unroll
    for (int k = 0; k < TILE_K / 16; ++k)
        multiply_add<TILE_N, 0>(sums, operand(a + k * 32), operand(b + k * 32), 1, Element());
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
            barrier_init(stages.full(s), BRINGERS + 1), barrier_init(stages.empty(s), MULTIPLIERS);
        barriers_are_ready();
    }
    __syncthreads();
    const KernelMap map = {map_rows, present, volume, words, capacity};
    const int chunks = (ci + TILE_K - 1) / TILE_K;
    OffsetWalk walk{map, place, min(rows, place + TILE_M)};
    if (threadIdx.x >= MULTIPLIERS) {
        const Input input{x, x_pitch, ci, chunks};
        Bringer{stages, input, walk, int(threadIdx.x) - MULTIPLIERS}.bring(weight + (size_t)tile_n * B_BYTES,
                                                                           (size_t)across * B_BYTES);
        return;
    }
    const int warp = warp_of_block(), group = warp / 4;
    float sums[TILE_N / 2] = {};
    const int steps = walk.total() * chunks;
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
    float* own = static_cast<float*>(__cvta_shared_to_generic(stages.a(0))) + warp * 16 * pitch_of_sums<TILE_N>;
    write_rows<TILE_N>(epilogue, own, sums, first, min(16, rows - first), tile_n * TILE_N);
}
