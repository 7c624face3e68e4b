// The Gray code, whose words differ from the next in one bit.
#pragma once

// Where a word comes in it.
__device__ inline int gray_rank(unsigned word) {
    for (int shift = 1; shift < 32; shift *= 2) word ^= word >> shift;
    return (int)word;
}
