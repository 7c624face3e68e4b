// How the blocks of a launch share tiles out among themselves, if those of its last part wait for those before: whoever
// takes a tile knows that all before it were taken by blocks that are running, so that nobody waits in vain.
#pragma once
#include "acquire_release.cuh"

// All are 0 before a launch, and after it. Launches that follow one another must not have the same, as one may begin, and
// take tiles, before the one before has ended; every other one may (launch_order.cuh).
struct Progress {
    unsigned taken, made, left;  // tiles that were taken; those before the last part that are there; blocks that have left

    // By one thread.
    __device__ __forceinline__ int take() { return int(add_relaxed(&taken, 1)); }

    // By one thread, once all others of the block have met it after they wrote.
    __device__ __forceinline__ void tell_made() { add_released(&made, 1); }

    __device__ __forceinline__ void wait_for(int tiles) const {
        while (int(read_acquired(&made)) < tiles) {
        }
    }

    // By one thread of each block, when it takes no more.
    __device__ __forceinline__ void leave(int blocks) {
        if (int(add_released(&left, 1)) == blocks - 1) {
            acquire();
            taken = made = left = 0;
        }
    }
};
