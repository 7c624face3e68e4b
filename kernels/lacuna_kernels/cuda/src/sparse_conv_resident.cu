// Sparse convolution in fp16 or bf16 on Hopper's tensor cores, of few channels or few offsets: an implicit GEMM,
// output-stationary (sparse_conv.cuh). The weights of all offsets stay in a block's shared memory, and rows of x go
// from device memory straight to the registers of those who multiply them, so that no thread waits for another.
// A warpgroup makes 64 rows of y, those of a word of `present`, then others, of each region the longest first; what STAGES
// offsets lead to is under way at once. Of every 32 channels a lane reads a quarter, side by side, and makes two products
// of 16 of it, in whose order the weights are packed; of up to 16 channels it is one. Of y it makes neighbours, too.
// x has CHANNELS channels or up to 15 less, in whole pieces of 16 bytes, or 8 of up to 16 channels; where ci ends
// within one, zeros follow. weight, packed: [volume, panels of 32 channels, TILE_N, 32], rows of 32 swizzled by 64
// bytes. There is one part of at most 32 offsets, and no shortcut. y is of the same type as x, or fp32.
// A launch may begin before the kernel before it has ended, see sparse_conv_wgmma.cu.
#ifndef ELEMENT
#define ELEMENT __half
#endif
#ifndef CHANNELS
#define CHANNELS 32
#define TILE_N 32
#define STAGES 4
#define WARPGROUPS 4
#endif
#define TILE_M 64  // rows of a warpgroup

#include <type_traits>

#include "hopper.cuh"
#include "lane_rows.cuh"
#include "launch_order.cuh"
#include "read_if.cuh"

constexpr int THREADS = 128 * WARPGROUPS, STEPS = CHANNELS / 16, PANEL_BYTES = TILE_N * 64;
constexpr int OFFSET_BYTES = (CHANNELS + 31) / 32 * PANEL_BYTES, MOST_OFFSETS = 32, CHUNK = 8;
constexpr int LISTS = 256, WEIGHTS = 2048;  // where in shared memory they are, after the barriers
static_assert(CHANNELS == 16 || CHANNELS % 32 == 0, "a lane reads pieces of one size");
static_assert(CHUNK % STAGES == 0, "a register's place in a chunk is known");
static_assert(LISTS + WARPGROUPS * 4 * MOST_OFFSETS <= WEIGHTS, "room for the lists");

// What a lane reads of a row at a time, one of four: a piece of 16 channels, or of 32.
using Words = std::conditional_t<CHANNELS == 16, uint2, uint4>;
constexpr int READS = (CHANNELS + 31) / 32;

// What a lane has of two rows of an offset, as it was read. Words become operands only when they are multiplied: else
// the compiler puts them where products take them at once, and waits for them.
struct Gathered {
    Words upper[READS], lower[READS];
};

struct Rows {
    const char* x;
    int pitch;  // bytes
    bool ends;  // before what the lane would read last

    __device__ __forceinline__ Rows(const Element* x, int pitch, int ci)
        : x(hidden(reinterpret_cast<const char*>(x) + threadIdx.x % 4 * sizeof(Words))), pitch(pitch * 2),
          ends((READS - 1) * 64 + int(threadIdx.x % 4 * sizeof(Words)) >= ci * 2) {}

    // Zeros of what is negative.
    __device__ __forceinline__ void gather(Gathered& to, int upper, int lower) const {
        const char *above = x + (int64_t)upper * pitch, *below = x + (int64_t)lower * pitch;
#pragma unroll
        for (int i = 0; i < READS; ++i) {
            if (i == READS - 1 && ends) upper = lower = -1;
            read_row(to.upper[i], upper, above + i * 64);
            read_row(to.lower[i], lower, below + i * 64);
        }
    }
};

// The operands of 16 channels, or of 32: a lane has four of each.
__device__ __forceinline__ void to_operands(uint4* operands, const uint2& upper, const uint2& lower) {
    operands[0] = make_uint4(as_read(upper.x), as_read(lower.x), as_read(upper.y), as_read(lower.y));
}
__device__ __forceinline__ void to_operands(uint4* operands, const uint4& upper, const uint4& lower) {
    operands[0] = make_uint4(as_read(upper.x), as_read(lower.x), as_read(upper.y), as_read(lower.y));
    operands[1] = make_uint4(as_read(upper.z), as_read(lower.z), as_read(upper.w), as_read(lower.w));
}

// The 16 places of a warp: which offsets any of its warpgroup's has, and what the lane's place, lane % 16, leads to.
struct Places {
    const KernelMap& map;
    int rows;
    unsigned char* list;
    int first, total;
    unsigned word;

    // Which offsets a group has: all lanes read it, for `go_to`.
    __device__ __forceinline__ unsigned present_of(int group) const {
        return map.present ? map.present_of(0, group, 0) : 1;
    }
    __device__ __forceinline__ void go_to(int group, unsigned present) {
        const int lane = threadIdx.x % 32;
        first = group * GROUP + threadIdx.x / 32 % 4 * 16, word = __shfl_sync(EVERY_LANE, present, 0), total = __popc(word);
        __syncwarp();
        if (word >> lane & 1) list[__popc(word & ((1u << lane) - 1))] = lane;
        __syncwarp();
    }

    // Of CHUNK offsets, counted from `from`: lanes 16 and up have every other.
    __device__ __forceinline__ void look_up(int (&found)[CHUNK / 2], int from) const {
        const int lane = threadIdx.x % 32, place = first + lane % 16;
#pragma unroll
        for (int i = 0; i < CHUNK / 2; ++i) {
            const int at = from + 2 * i + lane / 16;
            found[i] = -1;
            if (at < total && place < rows)
                found[i] = map.map ? map.map[(size_t)list[at] * map.capacity + place] : place;
        }
    }
};

// Of the offsets looked up, where the `at`-th of a chunk leads from the lane's upper row, or from the one 8 below.
__device__ __forceinline__ int found_at(const int (&found)[CHUNK / 2], int at, int half) {
    return __shfl_sync(EVERY_LANE, found[at / 2], at % 2 * 16 + half * 8 + threadIdx.x % 32 / 4);
}

// A warpgroup's work: 64 rows at a time.
struct Work {
    const KernelMap& map;
    const Rows& source;
    const Output& output;
    int rows;
    bool wide;  // whether y is fp32
    uint32_t shared;

    __device__ __forceinline__ unsigned char* list() const {
        return static_cast<unsigned char*>(shared_pointer(shared + LISTS)) + warp_of_block() * MOST_OFFSETS;
    }

    // sums += what an offset leads to times its weight.
    __device__ __forceinline__ void multiply(float (&sums)[TILE_N / 2], const Gathered& read, int offset) const {
        const uint64_t weight = operand_of_32(shared + WEIGHTS) + offset * (OFFSET_BYTES / 16);
        uint4 operands[STEPS];
#pragma unroll
        for (int i = 0; i < READS; ++i) to_operands(operands + 2 * i, read.upper[i], read.lower[i]);
        products_begin();
#pragma unroll
        for (int k = 0; k < STEPS; ++k)
            multiply_add_registers<TILE_N, 0>(sums, operands[k], weight + (k / 2 * PANEL_BYTES + k % 2 * 32) / 16, 1,
                                              Element());
        products_commit();
        products_wait<0>();
#pragma unroll
        for (int i = 0; i < TILE_N / 2; ++i) is_changed(sums[i]);
    }

    // The same of all offsets: the first two chunks of them are looked up, and what the first STAGES lead to is gathered.
    __device__ __forceinline__ void multiply_all(float (&sums)[TILE_N / 2], const Places& places,
                                                 Gathered (&gathered)[STAGES], int (&here)[CHUNK / 2],
                                                 int (&next)[CHUNK / 2]) const {
        unsigned left = places.word;
#pragma unroll 1
        for (int base = 0; base < places.total; base += CHUNK) {
#pragma unroll
            for (int s = 0; s < CHUNK; ++s) {
                if (base + s >= places.total) break;
                multiply(sums, gathered[s % STAGES], __ffs(left) - 1);
                left &= left - 1;
                const int ahead = s + STAGES;
                const auto& found = ahead < CHUNK ? here : next;
                const int above = found_at(found, ahead % CHUNK, 0), below = found_at(found, ahead % CHUNK, 1);
                if (base + ahead < places.total) source.gather(gathered[s % STAGES], above, below);
            }
#pragma unroll
            for (int i = 0; i < CHUNK / 2; ++i) here[i] = next[i];
            places.look_up(next, base + 2 * CHUNK);
        }
    }

    // Groups from the last on, every `apart`-th: what the next one's first offsets lead to is looked up before this one is
    // written. Before the first, x, the residual and the weights have to be waited for; the bias no kernel writes.
    __device__ __forceinline__ void make(int group, int apart) const {
        Places places{map, rows, list()};
        places.go_to(group, places.present_of(group));
        int here[CHUNK / 2], next[CHUNK / 2];
        places.look_up(here, 0);
        places.look_up(next, CHUNK);
        LaneRows<TILE_N> own(map, 0, places.first, rows, 0);
#pragma unroll 1
        for (bool first = true;; first = false) {
            float sums[TILE_N / 2];
            own.begin_with_bias(output, sums);
            if (first) wait_for_kernels_before(), let_next_kernel_begin();
            Gathered gathered[STAGES];
#pragma unroll
            for (int s = 0; s < STAGES; ++s) source.gather(gathered[s], found_at(here, s, 0), found_at(here, s, 1));
            own.add_residual<true>(output, sums);
            if (first) barrier_wait(shared, 0);
            group -= apart;
            const unsigned present = group < 0 ? 0 : places.present_of(group);
            multiply_all(sums, places, gathered, here, next);
            LaneRows<TILE_N> later = own;
            if (group >= 0) {
                places.go_to(group, present);
                places.look_up(here, 0);
                places.look_up(next, CHUNK);
                later = LaneRows<TILE_N>(map, 0, places.first, rows, 0);
            }
            if (wide)
                own.write<float>(output, sums);
            else
                own.write<Element>(output, sums);
            if (group < 0) return;
            own = later;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
sparse_conv_resident(const Element* x, int x_pitch, int ci, const Element*, int, int, const char* __restrict__ weight,
                     int, const int* map_rows, const unsigned* present, const int* order, const int* keys, const int* ones,
                     const int*, int, int volume, int, int capacity, const int* count, float*, int, Progress*,
                     const float* __restrict__ bias, const Element* residual, int residual_pitch, Element* y,
                     int y_pitch, int co, int activation, float negative_slope, int settled, int wide) {
    const uint32_t shared = dynamic_shared();
    if (!settled) wait_for_kernels_before();
    if (threadIdx.x == 0) {
        barrier_init(shared, 1);
        barriers_are_ready();
        barrier_expect(shared, volume * OFFSET_BYTES);
        for (int from = 0; from < volume * OFFSET_BYTES; from += OFFSET_BYTES)
            copy_in(shared + WEIGHTS + from, weight + from, OFFSET_BYTES, shared);
    }
    __syncthreads();
    const KernelMap map = {map_rows, present, order, keys, ones, nullptr, 1, volume, 1, capacity};
    const Output output = {bias, residual, y, residual_pitch, y_pitch, co, activation, negative_slope};
    const Rows source(x, x_pitch, ci);
    const int rows = min(*count, capacity), groups = (rows + GROUP - 1) / GROUP;
    const Work work{map, source, output, rows, wide != 0, shared};
    const int own = warp_of_block() / 4 * gridDim.x + blockIdx.x;
    if (own < groups) return work.make(groups - 1 - own, gridDim.x * WARPGROUPS);
    wait_for_kernels_before();  // whoever waits for this kernel waits for all before it
    barrier_wait(shared, 0);    // and the copies end before the block
}
