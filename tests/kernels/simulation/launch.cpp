// Runs a kernel, -D KERNEL=its name -D SOURCE="its file", on the CPU: cluster after cluster.
#include "arguments.h"
#include "hopper.cuh"

#undef __shared__
#define __shared__
#undef __align__
#define __align__(bytes)
#include SOURCE

// Of sources that call theirs so, if their blocks are alone.
alignas(128) Element tile[232448 / sizeof(Element)];
alignas(1024) unsigned char shared[232448];

// Return nullptr, or what went wrong.
extern "C" const char* launch(int grid, int, int threads, int, int cluster, int shared_bytes, int late_products, int seed,
                              void** given) {
    machine::kernel = arguments::bound(KERNEL, given);
    machine::grid = grid, machine::block_threads = threads, machine::late_products = late_products;
    machine::failure.clear();
    std::mt19937 random(seed);
    for (int block = 0; block < grid && machine::failure.empty(); block += cluster) {
        machine::first_block = block;
        machine::run_cluster(cluster, shared_bytes, shared, random);
    }
    return machine::failure.empty() ? nullptr : machine::failure.c_str();
}
