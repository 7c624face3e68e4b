// Stands in for src/copy_to_team.cuh where kernels run on a CPU.
#pragma once

#include "hopper.cuh"
#include "team.cuh"

inline void copy_in_all(uint32_t to, const void* from, int bytes, uint32_t barrier, uint16_t blocks) {
    for (int block = 0; block < 16; ++block)
        if (blocks >> block & 1) copy_in(in_block(to, block), from, bytes, in_block(barrier, block));
}
