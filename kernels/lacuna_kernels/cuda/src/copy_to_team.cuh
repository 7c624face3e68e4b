// A copy into the shared memory of several blocks of a cluster (Hopper, sm_90a).
#pragma once

#include <cstdint>

// Neighbouring bytes, to the same place of all blocks of the cluster that are in `blocks`, bit by bit, and on their
// barriers.
__device__ __forceinline__ void copy_in_all(uint32_t to, const void* from, int bytes, uint32_t barrier,
                                            uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
        : "memory");
}
