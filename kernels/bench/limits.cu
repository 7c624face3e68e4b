// What an H200 allows, beside which kernels are judged: rates of device memory by the share of writes, of copies from
// the second-level cache into shared memory, and of stores between blocks of a cluster.
//
//     nvcc -std=c++17 -O3 -arch=sm_90a -o /tmp/limits kernels/bench/limits.cu && /tmp/limits
#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../lacuna_kernels/cuda/src/hopper.cuh"
#include "../lacuna_kernels/cuda/src/team.cuh"

#define CHECK(call)                                                                        \
    if (cudaError_t error = (call)) printf("%s\n", cudaGetErrorString(error)), exit(1)

constexpr size_t BYTES = size_t(8) << 30, CACHED = 4 << 20;
constexpr int SENT = 65536, PIECE = 8192, PIECES = 8, ROUNDS = 200, BLOCKS = 132, SENDERS = 128;

template <int READ, int WRITE>
__global__ void mix(const uint4* __restrict__ x, uint4* __restrict__ y, size_t n) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        uint4 v = make_uint4(i, i, i, i);
        for (int r = 0; r < READ; ++r) {
            const uint4 u = x[r * n + i];
            v.x ^= u.x, v.y += u.y, v.z ^= u.z, v.w += u.w;
        }
        if (WRITE == 0 && v.x == 0x12345 && v.y == 7) y[i] = v;  // never, but the compiler does not know
        for (int w = 0; w < WRITE; ++w) y[w * n + i] = v;
    }
}

// Every block reads the same CACHED bytes, from different places on.
__global__ void __launch_bounds__(128, 1) from_cache(const char* x) {
    const uint32_t memory = dynamic_shared(), barriers = memory + PIECES * PIECE;
    if (threadIdx.x) return;
    for (int s = 0; s < PIECES; ++s) barrier_init(barriers + 8 * s, 1);
    barriers_are_ready();
    size_t at = blockIdx.x * 37 % 64 * PIECE;
    constexpr int count = ROUNDS * 16;
    for (int i = 0; i < count + PIECES; ++i) {
        const int s = i % PIECES;
        if (i >= PIECES) barrier_wait(barriers + 8 * s, (i / PIECES - 1) % 2);
        if (i >= count) continue;
        barrier_expect(barriers + 8 * s, PIECE);
        copy_in(memory + s * PIECE, x + at, PIECE, barriers + 8 * s);
        at = (at + PIECE) % CACHED;
    }
}

// Every block sends as much as it gets, 16 bytes a thread, to all others of its cluster in turn.
__global__ void __launch_bounds__(SENDERS, 1) between_blocks() {
    const auto cluster = cooperative_groups::this_cluster();
    const int blocks = cluster.num_blocks(), rank = cluster.block_rank();
    const uint32_t memory = dynamic_shared(), barrier = memory + SENT;
    if (threadIdx.x == 0) barrier_init(barrier, 1), barriers_are_ready();
    __syncthreads();
    meet_team();
    for (int round = 0; round < ROUNDS; ++round) {
        if (threadIdx.x == 0) barrier_expect(barrier, SENT);
#pragma unroll 4
        for (int part = 0; part < SENT / (16 * SENDERS); ++part) {
            const int to = (rank + 1 + part % (blocks - 1)) % blocks;
            store_there(in_block(memory + (part * SENDERS + threadIdx.x) * 16, to), make_uint4(round, part, rank, to),
                        in_block(barrier, to));
        }
        barrier_wait(barrier, round % 2);
        __syncthreads();
    }
    meet_team();
}

template <class Launch>
float best_ms(Launch launch) {
    cudaEvent_t start, end;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    float best = 1e9;
    for (int repeat = 0; repeat < 5; ++repeat) {
        float ms;
        CHECK(cudaEventRecord(start));
        launch();
        CHECK(cudaGetLastError());
        CHECK(cudaEventRecord(end));
        CHECK(cudaEventSynchronize(end));
        CHECK(cudaEventElapsedTime(&ms, start, end));
        best = min(best, ms);
    }
    return best;
}

template <int READ, int WRITE>
void mixed(const uint4* x, uint4* y) {
    const size_t n = BYTES / 16 / (READ + WRITE);
    float best = 1e9;
    for (int blocks : {8, 16, 64})
        best = min(best, best_ms([&] { mix<READ, WRITE><<<BLOCKS * blocks, 256>>>(x, y, n); }));
    printf("memory, read %d : write %d   %.2f TB/s\n", READ, WRITE, n * 16e-9 * (READ + WRITE) / best);
}

int main() {
    uint4 *x, *y;
    CHECK(cudaMalloc(&x, BYTES));
    CHECK(cudaMalloc(&y, BYTES));
    CHECK(cudaMemset(x, 7, BYTES));
    mixed<1, 0>(x, y), mixed<4, 1>(x, y), mixed<1, 1>(x, y), mixed<1, 2>(x, y), mixed<1, 4>(x, y), mixed<0, 1>(x, y);

    const int ring = PIECES * PIECE + 64, room = 200 * 1024;  // one block a multiprocessor
    CHECK(cudaFuncSetAttribute(from_cache, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    const float cache = best_ms([&] { from_cache<<<BLOCKS, 128, max(ring, room)>>>(reinterpret_cast<char*>(x)); });
    printf("second-level cache          %.2f TB/s\n", double(BLOCKS) * ROUNDS * 16 * PIECE * 1e-9 / cache);

    CHECK(cudaFuncSetAttribute(between_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    for (unsigned size : {2u, 4u, 8u}) {
        const unsigned blocks = size == 2 ? 132 : 120;  // as many as run at once
        cudaLaunchAttribute cluster{};
        cluster.id = cudaLaunchAttributeClusterDimension, cluster.val.clusterDim = {size, 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = blocks, config.blockDim = SENDERS, config.dynamicSmemBytes = room;
        config.attrs = &cluster, config.numAttrs = 1;
        const float ms = best_ms([&] { CHECK(cudaLaunchKernelEx(&config, between_blocks)); });
        printf("between blocks, clusters of %u  %.2f TB/s\n", size, double(blocks) * ROUNDS * SENT * 1e-9 / ms);
    }
    CHECK(cudaDeviceSynchronize());
}
