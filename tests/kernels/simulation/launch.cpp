// Runs a kernel, -D KERNEL=its name -D SOURCE="its file", on the CPU: cluster after cluster.
#include "hopper.cuh"

#undef __shared__
#define __shared__
#undef __align__
#define __align__(bytes)
#include SOURCE

// Of sources that call theirs so, if their blocks are alone.
alignas(128) Element tile[232448 / sizeof(Element)];
alignas(1024) unsigned char shared[232448];

#include <tuple>
#include <utility>

namespace {

template <class T>
T parameter(const void* from) {
    T value;
    memcpy(&value, from, sizeof(T));
    return value;
}

template <class... Parameters, size_t... PLACES>
machine::Action bound(void (*kernel)(Parameters...), void** arguments, std::index_sequence<PLACES...>) {
    const auto values = std::make_shared<std::tuple<std::decay_t<Parameters>...>>(
        parameter<std::decay_t<Parameters>>(arguments[PLACES])...);
    return [=] { std::apply(kernel, *values); };
}

template <class... Parameters>
machine::Action bound(void (*kernel)(Parameters...), void** arguments) {
    return bound(kernel, arguments, std::index_sequence_for<Parameters...>());
}

}  // namespace

// Return nullptr, or what went wrong.
extern "C" const char* launch(int grid, int threads, int cluster, int shared_bytes, int late_products, int seed,
                              void** arguments) {
    machine::kernel = bound(KERNEL, arguments);
    machine::grid = grid, machine::block_threads = threads, machine::late_products = late_products;
    machine::failure.clear();
    std::mt19937 random(seed);
    for (int block = 0; block < grid && machine::failure.empty(); block += cluster) {
        machine::first_block = block;
        machine::run_cluster(cluster, shared_bytes, shared, random);
    }
    return machine::failure.empty() ? nullptr : machine::failure.c_str();
}
