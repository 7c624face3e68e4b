// What an H200 allows a sparse convolution: the clocks that a step of 128 rows, 64 channels and N columns takes a
// multiprocessor for gathering rows into shared memory, by 16 bytes a thread or by the copy engine; for having weights
// copied beside them; and for products of what lies there: alone and at once, while nobody waits for anybody else.
//
//     nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -o /tmp/gather_limits kernels/bench/gather_limits.cu && /tmp/gather_limits
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../lacuna_kernels/cuda/src/hopper.cuh"
#include "../lacuna_kernels/cuda/src/lane_copies.cuh"

#define CHECK(call)                                                                        \
    if (cudaError_t error = (call)) printf("%s\n", cudaGetErrorString(error)), exit(1)

constexpr int BLOCKS = 132, ROWS = 128, CHANNELS = 64, STAGES = 4, STEPS = 400, SITES = 16384, LISTS = 64;
constexpr int PITCH = 256, A_PANEL = ROWS * 64, A_STEP = 2 * A_PANEL;  // bytes: 128 channels a site; panels of 32
constexpr int MULTIPLIERS = 256, WEIGHTS = 27 * 4;                     // threads; panels, which all blocks go through

enum Way { NONE, PIECES, LINES, BULK };  // 16 bytes a thread of half a line, of a whole line; or a copy of a row each

struct Given {
    const char *x, *weights;
    const int* rows;  // [BLOCKS, LISTS, ROWS]
    long long* clocks;
};

// GATHERERS threads, of which each has pieces of some rows.
template <Way WAY, int GATHERERS>
__device__ void gather(const Given& given, uint32_t to, uint32_t barriers, int thread) {
    const int* lists = given.rows + size_t(blockIdx.x) * LISTS * ROWS;
    if constexpr (WAY == BULK) {
        for (int step = 0; step < STEPS; ++step) {
            const uint32_t barrier = barriers + 8 * (step % STAGES);
            if (step >= STAGES) barrier_wait(barrier, (step / STAGES - 1) & 1);
            barrier_of<GATHERERS>(1);
            if (thread == 0) barrier_expect(barrier, A_STEP);
            for (int i = thread; i < ROWS; i += GATHERERS)
                copy_in(to + step % STAGES * A_STEP + i * 128, given.x + size_t(lists[step / 2 % LISTS * ROWS + i]) * PITCH,
                        128, barrier);
        }
    } else {
        constexpr int APART = GATHERERS / 8, GATHERS = ROWS / APART;
        const int half = WAY == LINES ? thread / 4 % 2 : thread / (GATHERERS / 2);
        const int row = WAY == LINES ? thread / 8 : thread % (GATHERERS / 2) / 4, piece = thread % 4;
        const uint32_t own = to + half * A_PANEL + row * 64 + (piece ^ row / 2 % 4) * 16;
        int rows[GATHERS];
        for (int step = 0; step < STEPS; ++step) {
            if (step % 2 == 0)
#pragma unroll
                for (int i = 0; i < GATHERS; ++i) rows[i] = lists[step / 2 % LISTS * ROWS + row + i * APART];
            const char* from = given.x + step % 2 * 128 + half * 64 + piece * 16;
#pragma unroll
            for (int i = 0; i < GATHERS; ++i)
                copy_16_bytes(own + step % STAGES * A_STEP + i * APART * 64, from + uint64_t(uint32_t(rows[i])) * PITCH, true);
            commit_copies();
            wait_for_copies<STAGES - 1>();
        }
        wait_for_copies<0>();
    }
}

template <int N, Way WAY, int GATHERERS, bool COPIED, bool MULTIPLIED>
__global__ void __launch_bounds__(MULTIPLIERS + GATHERERS + 32, 1) steps(Given given) {
    constexpr int B_PANEL = N * 64, B_STEP = 2 * B_PANEL;
    const uint32_t a = dynamic_shared(), b = a + STAGES * A_STEP, barriers = b + STAGES * B_STEP;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2 * STAGES; ++s) barrier_init(barriers + 8 * s, 1);
        barriers_are_ready();
    }
    __syncthreads();
    const long long start = clock64();
    if (threadIdx.x < MULTIPLIERS) {
        float sums[N / 2] = {};
        for (int step = 0; MULTIPLIED && step < STEPS; ++step) {
            const uint32_t rows = a + step % STAGES * A_STEP + threadIdx.x / 128 * 4096, columns = b + step % STAGES * B_STEP;
            products_begin();
#pragma unroll
            for (int k = 0; k < CHANNELS / 16; ++k)
                multiply_add<N, 0>(sums, operand_of_32(rows + k / 2 * A_PANEL + k % 2 * 32),
                                   operand_of_32(columns + k / 2 * B_PANEL + k % 2 * 32), 1, __half());
            products_commit();
            products_wait<1>();
        }
        products_wait<0>();
        float any = 0.0f;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) is_changed(sums[i]), any += sums[i];
        if (any == 0.12345f) given.clocks[0] = 0;  // never, but the compiler does not know
    } else if (threadIdx.x < MULTIPLIERS + GATHERERS) {
        if constexpr (WAY != NONE) gather<WAY, GATHERERS>(given, a, barriers, threadIdx.x - MULTIPLIERS);
    } else if (COPIED && threadIdx.x == MULTIPLIERS + GATHERERS) {
        for (int step = 0; step < STEPS; ++step) {
            const uint32_t barrier = barriers + 8 * (STAGES + step % STAGES);
            if (step >= STAGES) barrier_wait(barrier, (step / STAGES - 1) & 1);
            barrier_expect(barrier, B_STEP);
            copy_in(b + step % STAGES * B_STEP, given.weights + step % (WEIGHTS / 2) * B_STEP, B_STEP, barrier);
        }
        for (int step = STEPS; step < STEPS + STAGES; ++step)
            barrier_wait(barriers + 8 * (STAGES + step % STAGES), (step / STAGES - 1) & 1);
    }
    if (WAY == BULK && threadIdx.x == MULTIPLIERS)
        for (int step = STEPS; step < STEPS + STAGES; ++step)
            barrier_wait(barriers + 8 * (step % STAGES), (step / STAGES - 1) & 1);
    __syncthreads();
    if (threadIdx.x == 0) given.clocks[blockIdx.x] = clock64() - start;
}

template <int N, Way WAY, int GATHERERS, bool COPIED, bool MULTIPLIED>
void run(const Given& given) {
    const auto kernel = steps<N, WAY, GATHERERS, COPIED, MULTIPLIED>;
    const int room = STAGES * (A_STEP + N * 128) + 1024;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room));
    std::vector<long long> clocks(BLOCKS);
    for (int repeat = 0; repeat < 3; ++repeat) kernel<<<BLOCKS, MULTIPLIERS + GATHERERS + 32, room>>>(given);
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(clocks.data(), given.clocks, BLOCKS * sizeof(long long), cudaMemcpyDeviceToHost));
    double sum = 0;
    for (long long clock : clocks) sum += double(clock) / BLOCKS / STEPS;
    const char* ways[] = {"", "gather by half lines", "gather by whole lines", "gather by copies of rows"};
    printf("%3d columns, %3d threads:%s %s%s   %.0f clocks a step\n", N, GATHERERS, MULTIPLIED ? " products" : "", ways[WAY],
           COPIED ? " weights" : "", sum);
}

int main() {
    Given given{};
    char *x, *weights;
    int* rows;
    std::vector<int> random(BLOCKS * LISTS * ROWS);
    uint32_t seed = 1;
    for (int& row : random) seed = seed * 1664525 + 1013904223, row = seed >> 8 & (SITES - 1);
    CHECK(cudaMalloc(&x, size_t(SITES) * PITCH));
    CHECK(cudaMemset(x, 0, size_t(SITES) * PITCH));
    CHECK(cudaMalloc(&weights, WEIGHTS * 256 * 64));
    CHECK(cudaMemset(weights, 0, WEIGHTS * 256 * 64));
    CHECK(cudaMalloc(&rows, random.size() * sizeof(int)));
    CHECK(cudaMemcpy(rows, random.data(), random.size() * sizeof(int), cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&given.clocks, BLOCKS * sizeof(long long)));
    given.x = x, given.weights = weights, given.rows = rows;
    run<128, PIECES, 64, false, false>(given), run<128, PIECES, 128, false, false>(given);
    run<128, PIECES, 256, false, false>(given), run<128, LINES, 128, false, false>(given);
    run<128, BULK, 64, false, false>(given), run<128, BULK, 128, false, false>(given);
    run<128, NONE, 64, true, false>(given), run<128, NONE, 64, false, true>(given);
    run<128, NONE, 64, true, true>(given), run<128, PIECES, 64, true, false>(given);
    run<128, PIECES, 64, false, true>(given), run<128, PIECES, 64, true, true>(given);
    run<128, PIECES, 128, true, true>(given), run<128, PIECES, 256, true, true>(given);
    run<96, NONE, 64, false, true>(given), run<96, PIECES, 64, true, true>(given);
    run<96, PIECES, 128, true, true>(given);
    run<256, NONE, 64, false, true>(given), run<256, PIECES, 64, true, true>(given);
}
