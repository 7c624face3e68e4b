// Runs a kernel, -D KERNEL=its name -D SOURCE="its file", on the CPU, if its threads never wait for one another: one
// after another, in an order drawn at random.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "arguments.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct Place {
    unsigned x, y, z;
};
static Place threadIdx, blockIdx;

static unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return shift % 32 ? high << shift % 32 | low >> (32 - shift % 32) : high;
}
static int __ffs(int word) { return __builtin_ffs(word); }
static int atomicCAS(int* at, int expected, int value) {
    const int before = *at;
    if (before == expected) *at = value;
    return before;
}
static int atomicMin(int* at, int value) {
    const int before = *at;
    *at = std::min(before, value);
    return before;
}
static unsigned atomicOr(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at |= value;
    return before;
}

#include SOURCE

// As that of launch.cpp; nothing can go wrong.
extern "C" const char* launch(int grid, int threads, int, int, int, int seed, void** given) {
    const auto kernel = arguments::bound(KERNEL, given);
    std::vector<unsigned> order(size_t(grid) * threads);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    for (const unsigned thread : order) {
        blockIdx = {thread / threads, 0, 0}, threadIdx = {thread % threads, 0, 0};
        kernel();
    }
    return nullptr;
}
