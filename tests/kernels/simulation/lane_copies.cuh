// Stands in for src/lane_copies.cuh where kernels run on a CPU. Copies that are waited for by a barrier come late,
// those of a group as products do.
#pragma once

#include "hopper.cuh"

inline void copy_bytes(uint32_t to, const void* from, bool there, int bytes) {
    if (there && reinterpret_cast<uintptr_t>(from) % bytes) machine::fail("a copy of no whole " + std::to_string(bytes));
    unsigned char* start = machine::at(to, bytes, bytes);
    machine::current->copies_in.push_back([=] { there ? memcpy(start, from, bytes) : memset(start, 0, bytes); });
}
inline void copy_16_bytes(uint32_t to, const void* from, bool there) { copy_bytes(to, from, there, 16); }
inline void copy_4_bytes(uint32_t to, const float* from, bool there) { copy_bytes(to, from, there, 4); }
inline void arrive_after_copies(uint32_t address) {
    machine::Barrier& barrier = machine::barrier_at(address);
    machine::cluster->under_way.push_back([&barrier, copies = std::move(machine::current->copies_in)] {
        for (const auto& copy : copies) copy();
        machine::arrive_late(barrier);
    });
    machine::current->copies_in.clear();
}

inline void commit_copies() {
    auto& mine = *machine::current;
    mine.committed_in.push_back(std::move(mine.copies_in));
    mine.copies_in.clear();
    if (machine::late_products) return;
    for (const auto& copy : mine.committed_in.back()) copy();
    mine.committed_in.back().clear();
}
template <int LAST>
inline void wait_for_copies() {
    auto& committed = machine::current->committed_in;
    for (; committed.size() > LAST; committed.pop_front())
        for (const auto& copy : committed.front()) copy();
}
