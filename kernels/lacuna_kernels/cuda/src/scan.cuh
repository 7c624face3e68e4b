// Sums and running sums over a block of THREADS threads.
#pragma once

#define FULL_WARP 0xffffffffu

__device__ inline int warp_running_sum(int value) {
    const int lane = threadIdx.x & 31;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(FULL_WARP, value, step);
        if (lane >= step) value += other;
    }
    return value;
}

// Returns the sum over the threads before this one, and the sum over all in *total. All threads must call it.
template <int THREADS>
__device__ inline int block_exclusive_sum(int value, int* total) {
    __shared__ int warp_sums[THREADS / 32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int running = warp_running_sum(value);
    if (lane == 31) warp_sums[warp] = running;
    __syncthreads();
    if (warp == 0) {
        const int sum = warp_running_sum(lane < THREADS / 32 ? warp_sums[lane] : 0);
        if (lane < THREADS / 32) warp_sums[lane] = sum;
    }
    __syncthreads();
    const int before = warp ? warp_sums[warp - 1] : 0;
    *total = warp_sums[THREADS / 32 - 1];
    __syncthreads();  // so that the next call may write warp_sums
    return before + running - value;
}
