// Runs the kernels of a source, -D KERNELS="X(name) ..." -D SOURCE="its file", on the CPU, if they take nothing of Hopper:
// block after block.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "machine.cuh"

#undef __device__
#undef __global__
#undef __shared__
#undef __align__
#undef __launch_bounds__
#undef __grid_constant__
#define __device__
#define __global__
#define __shared__ static  // as only one block runs at a time
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

using std::fabs;
using std::max;
using std::min;

struct Place {
    int x, y;
};
static int grid_columns, block_columns;
#define threadIdx (Place{machine::current->index % block_columns, machine::current->index / block_columns})
#define blockIdx (Place{machine::first_block % grid_columns, machine::first_block / grid_columns})
#define blockDim (Place{block_columns, machine::block_threads / block_columns})
#define gridDim (Place{grid_columns, machine::grid / grid_columns})

static void __syncthreads() { machine::meet("block", machine::block_threads); }
static int __syncthreads_or(int predicate) {
    static std::vector<int> given;  // by thread
    given.resize(machine::block_threads);
    given[machine::current->index] = predicate;
    __syncthreads();
    const bool any = std::any_of(given.begin(), given.end(), [](int each) { return each != 0; });
    __syncthreads();
    return any;
}

// What the lanes of a mask have, this one's too: all of them meet.
template <class T>
static std::vector<T> of_lanes(unsigned mask, T value) {
    static std::map<int, T> given;  // by thread
    const int lane = machine::current->index % 32, warp = machine::current->index / 32;
    if (!(mask >> lane & 1)) machine::fail("a lane that is not in its mask");
    const auto meet = [=] {
        machine::meet("warp " + std::to_string(warp) + " " + std::to_string(mask), __builtin_popcount(mask));
    };
    given[machine::current->index] = value;
    meet();
    std::vector<T> all(32);
    for (int other = 0; other < 32; ++other)
        if (mask >> other & 1) all[other] = given[32 * warp + other];
    meet();
    return all;
}
static int __shfl_sync(unsigned mask, int value, int lane) { return of_lanes(mask, value)[lane % 32]; }
static int __shfl_up_sync(unsigned mask, int value, int by) {
    const int lane = machine::current->index % 32;
    return of_lanes(mask, value)[lane < by ? lane : lane - by];
}
static int __shfl_xor_sync(unsigned mask, int value, int by) {
    return of_lanes(mask, value)[(machine::current->index % 32) ^ by];
}
static unsigned __match_any_sync(unsigned mask, int value) {
    const auto all = of_lanes(mask, value);
    unsigned equal = 0;
    for (int lane = 0; lane < 32; ++lane) equal |= unsigned((mask >> lane & 1) && all[lane] == value) << lane;
    return equal;
}
static unsigned __ballot_sync(unsigned mask, bool value) {
    const auto all = of_lanes(mask, int(value));
    unsigned word = 0;
    for (int lane = 0; lane < 32; ++lane) word |= unsigned(all[lane]) << lane;
    return word;
}
static bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
static void __syncwarp() { of_lanes(~0u, 0); }
static unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    unsigned word = 0;
    for (const unsigned other : of_lanes(mask, value)) word |= other;
    return word;
}

static unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned word = 0;
    for (int at = 0; at < 4; ++at) word |= unsigned(bytes >> 8 * (which >> 4 * at & 7) & 0xff) << 8 * at;
    return word;
}

static int __ffs(int word) { return __builtin_ffs(word); }
static int __popc(unsigned word) { return __builtin_popcount(word); }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdiv_rn(float a, float b) { return a / b; }

template <class T>
static T replaced(T* at, T value) {
    const T before = *at;
    *at = value;
    return before;
}
template <class T>
static T atomicCAS(T* at, T expected, T value) { return *at == expected ? replaced(at, value) : *at; }
static int atomicMin(int* at, int value) { return replaced(at, std::min(*at, value)); }
static int atomicAdd(int* at, int more) { return replaced(at, *at + more); }
static unsigned atomicOr(unsigned* at, unsigned value) { return replaced(at, *at | value); }

#include SOURCE

static const char* run(machine::Action kernel, int grid, int grid_y, int columns, int rows, int seed) {
    machine::kernel = kernel;
    machine::grid = grid * grid_y, grid_columns = grid;
    machine::block_threads = columns * rows, block_columns = columns;
    machine::failure.clear();
    std::mt19937 random(seed);
    std::vector<int> order(machine::grid);
    for (int block = 0; block < machine::grid; ++block) order[block] = block;
    std::shuffle(order.begin(), order.end(), random);
    for (const int block : order) {
        if (!machine::failure.empty()) break;
        machine::first_block = block;
        machine::run_cluster(1, 0, nullptr, random);
    }
    return machine::failure.empty() ? nullptr : machine::failure.c_str();
}

// launch_name as launch of launch.cpp, for each.
#define X(name)                                                                                                  \
    extern "C" const char* launch_##name(int grid, int grid_y, int columns, int rows, int, int, int, int seed,   \
                                         void** given) {                                                         \
        return run(arguments::bound(name, given), grid, grid_y, columns, rows, seed);                            \
    }
KERNELS
