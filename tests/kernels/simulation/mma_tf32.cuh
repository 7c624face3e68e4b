// Stands in for src/mma_tf32.cuh where kernels run on a CPU.
#pragma once

#include "hopper.cuh"

// Do something with what all threads of the warp have; `what` is given that of a lane.
template <class Do>
inline void together(std::vector<uint32_t> mine, Do what) {
    auto& registers = machine::cluster->blocks[machine::current->block].registers;
    const int first = machine::current->index / machine::WARP * machine::WARP;
    registers[machine::current->index] = std::move(mine);
    __syncwarp();
    what([&](int lane) -> const std::vector<uint32_t>& { return registers.at(first + lane); });
    __syncwarp();
}

inline void load_rows(uint32_t (&a)[4], uint32_t from) {
    const int lane = machine::current->index % machine::WARP;
    together({from}, [&](auto of) {
        for (int part = 0; part < 4; ++part)
            memcpy(&a[part], machine::at(of(part * 8 + lane / 4)[0], 16, 16) + lane % 4 * 4, 4);
    });
}

inline void add_product(float (&sums)[4], const uint32_t (&a)[4], uint32_t b, uint32_t b_further) {
    const int lane = machine::current->index % machine::WARP, row = lane / 4;
    const auto tf32 = [](uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); };
    together({a[0], a[1], a[2], a[3], b, b_further}, [&](auto of) {
        for (int n = 0; n < 4; ++n)
            for (int k = 0; k < 8; ++k)
                sums[n] += tf32(of(row * 4 + k % 4)[n / 2 + k / 4 * 2]) *
                           tf32(of((lane % 4 * 2 + n % 2) * 4 + k % 4)[4 + k / 4]);
    });
}
