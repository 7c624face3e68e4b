// Whose turn it is in a ring of stages of shared memory.
#pragma once

#include <cstdint>

// The next stage, and the phase that its barriers are in.
struct Ring {
    int stage = 0;
    uint32_t phase = 0;

    __device__ __forceinline__ void next(int stages, bool flip = true) {
        if (++stage == stages) stage = 0, phase ^= flip;
    }
};
