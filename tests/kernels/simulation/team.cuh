// Stands in for src/team.cuh where kernels run on a CPU.
#pragma once

#include "hopper.cuh"

inline uint32_t in_block(uint32_t address, int rank) {
    return uint32_t(rank + 1) << 24 | (address & machine::OFFSET);
}
inline void arrive_there(uint32_t barrier) { machine::arrive(machine::barrier_at(barrier)); }

template <class T>
inline void send_there(uint32_t to, const T& value, uint32_t barrier) {
    if (machine::block_of(to) != machine::block_of(barrier)) machine::fail("bytes in one block, their barrier in another");
    unsigned char* there = machine::at(to, sizeof(T), sizeof(T));
    machine::send(sizeof(T), machine::barrier_at(barrier), [=] { memcpy(there, &value, sizeof(T)); });
}
inline void store_there(uint32_t to, const uint4& value, uint32_t barrier) { send_there(to, value, barrier); }
inline void meet_team() { machine::meet("team", int(machine::cluster->threads.size())); }

template <class T>
inline T read(uint32_t from) {
    T value;
    memcpy(&value, machine::at(from, sizeof(T), sizeof(T)), sizeof(T));
    return value;
}
inline uint4 read_16_bytes(uint32_t from) { return read<uint4>(from); }
inline float read_float(uint32_t from) { return read<float>(from); }
inline uint2 read_8_bytes(uint32_t from) { return read<uint2>(from); }
inline void write_16_bytes(uint32_t to, const uint4& value) { memcpy(machine::at(to, 16, 16), &value, 16); }
inline void write_8_bytes(uint32_t to, const uint2& value) { memcpy(machine::at(to, 8, 8), &value, 8); }
template <class T>
inline void store_in_team(uint32_t to, uint32_t away, const T& value, uint32_t barrier) {
    if (away)
        send_there(to + away, value, barrier + away);
    else
        memcpy(machine::at(to, sizeof(T), sizeof(T)), &value, sizeof(T));
}
inline void write_out(void* to, const uint4& value) { memcpy(to, &value, 16); }
