// A Kronecker-sparse factor (see ks_matmul.cuh) of fp32 on Hopper's tensor cores: PARTS = 2 keeps fp32's accuracy
// (split_tf32.cuh), PARTS = 1 rounds x and values to tf32. For x and y batch-size-last, LAST = 1, [features, rows] with
// any d, or batch-size-first, LAST = 0, [rows, features] with d = 1.
//
// A block of WARPGROUPS consumers and one producer makes tiles of y of 64 * WARPGROUPS rows by TILE_B columns j, for
// one (i, l), one tile after the other. The producer's first thread has the copy engine bring x and values in steps of
// TILE_K, stages ahead. A warpgroup loads its 64 rows of x into registers, splits them there, and multiplies them by
// the values in shared memory, which come split and in the order that the tensor cores read; finished sums go out
// through shared memory, or one by one where rows end.
//
// Which row of x a lane holds, and which k and column its registers mean, is ours to choose if values are packed alike:
// slot s of 8 along k is k = 2 s, or 2 (s - 4) + 1 from s = 4 on, so that no two lanes load from the same bank.
#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "split_tf32.cuh"
#include "tile_counters.cuh"

#ifndef PARTS
#define PARTS 2
#define LAST 1
#define TILE_B 64
#define WARPGROUPS 3
#define X_STAGES 4
#define W_STAGES 5
#define Y_COLUMNS 64  // of a tile go out at once
#endif

constexpr int TILE_K = GATHER;
constexpr int TILE_N = 64 * WARPGROUPS;
constexpr int STEPS = TILE_K / 8;  // of one instruction each
constexpr int LINE = 128;          // bytes of a swizzled row of a box: 32 elements
constexpr int X_BYTES = TILE_N * TILE_K * 4;
constexpr int PART_BYTES = TILE_B * TILE_K * 4;  // big, or small values
constexpr int W_BYTES = PARTS * PART_BYTES;
constexpr int Y_BOXES = LAST ? 2 : (Y_COLUMNS + 31) / 32;  // of a warpgroup
constexpr int Y_BOX_BYTES = (LAST ? Y_COLUMNS : 64) * LINE;
constexpr int Y_BYTES = Y_BOXES * Y_BOX_BYTES;
constexpr int Y_AT = X_STAGES * X_BYTES;
constexpr int W_AT = Y_AT + WARPGROUPS * Y_BYTES;
constexpr int THREADS = 128 * (WARPGROUPS + 1);
constexpr int CONSUMER_REGISTERS = WARPGROUPS == 2 ? 232 : 152;
constexpr int SUMS = TILE_B / 2;  // of a lane
constexpr int W_K4_BYTES = PARTS * TILE_B * 16;  // values of 4 k: big, then small ones
static_assert(TILE_B % Y_COLUMNS == 0 && (LAST || Y_COLUMNS % 32 == 0 || Y_COLUMNS == TILE_B), "whole boxes");
static_assert(WARPGROUPS == 2 || WARPGROUPS == 3, "else other numbers of registers");

// The barriers of stages that are used in turn: `full` when a copy has arrived, `empty` when all `readers` have read it.
template <int STAGES>
struct Ring {
    uint32_t barriers;  // full ones, then empty ones
    int stage = 0;
    uint32_t parity = 0;

    __device__ void init(int readers) const {
        for (int s = 0; s < STAGES; ++s) {
            barrier_init(barriers + 8 * s, 1);
            barrier_init(barriers + 8 * (STAGES + s), readers);
        }
    }
    __device__ __forceinline__ uint32_t full() const { return barriers + 8 * stage; }
    __device__ __forceinline__ uint32_t empty() const { return barriers + 8 * (STAGES + stage); }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full(), parity); }
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), parity ^ 1); }
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// A tile of y: rows from strip * TILE_N on, columns j from across * TILE_B on. After the last one, across < 0.
struct alignas(16) Place {
    int across, strip, l, i;
};

// The tiles of y, neighbours in memory first: batch-size-last strips of the same (i, l), batch-size-first `together` i
// of the same strip, whose values stay in the second-level cache for the next one, and then the rest of the i.
struct Work {
    int tiles_b, strips, d, together, steps;
    unsigned tiles;

    __device__ Work(int rows, const Pattern& p, int together)
        : tiles_b((p.b + TILE_B - 1) / TILE_B), strips((rows + TILE_N - 1) / TILE_N), d(p.d), together(together),
          steps((p.c + TILE_K - 1) / TILE_K), tiles(tiles_b * strips * p.a * p.d) {}

    __device__ Place place(int tile) const {
        Place p;
        p.across = tile % tiles_b, tile /= tiles_b;
        if (LAST)
            p.strip = tile % strips, tile /= strips, p.l = tile % d, p.i = tile / d;
        else
            p.l = 0, p.i = tile % together, tile /= together, p.strip = tile % strips, p.i += tile / strips * together;
        return p;
    }
};

// A block starts with the tile of its number and takes the next ones from a counter, as fast as it is: so all are at
// about the same memory at any time, though some multiprocessors get more of its speed. The counter ends as it began.
__device__ __forceinline__ void produce(const TensorMap& x_map, const float* values, const Work& work,
                                        Ring<X_STAGES> x, Ring<W_STAGES> w, uint32_t shared, Place* places,
                                        unsigned* taken) {
    for (unsigned tile = blockIdx.x, next; tile < work.tiles; tile = next) {
        next = gridDim.x + atomicInc(taken, work.tiles - 1);
        const Place at = work.place(tile);
        const int row = at.strip * TILE_N;
        const Index matrix = Index(at.i) * work.d + at.l;
        const float* from = values + (matrix * work.tiles_b + at.across) * work.steps * (W_BYTES / 4);
        for (int step = 0; step < work.steps; ++step, x.next(), from += W_BYTES / 4) {
            x.wait_empty();
            if (step == 0) places[x.stage] = at;
            barrier_expect(x.full(), X_BYTES);
            const uint32_t to = shared + x.stage * X_BYTES;
            if (LAST) {
#pragma unroll
                for (int box = 0; box < TILE_N / 32; ++box)
                    copy_in(to + box * (TILE_K * LINE), x_map, {row + box * 32, at.l, step * TILE_K, at.i}, x.full());
            } else {
                copy_in(to, x_map, {step * TILE_K, at.i, row, 0}, x.full());
            }
            w.wait_empty();
            barrier_expect(w.full(), W_BYTES);
            copy_in(shared + W_AT + w.stage * W_BYTES, from, W_BYTES, w.full());
            w.next();
        }
    }
    x.wait_empty();
    places[x.stage] = {-1, 0, 0, 0};
    barrier_arrive(x.full());
}

// Where a lane's elements lie. Batch-size-last the two rows of a lane are neighbours, else they are 8 apart.
struct Lane {
    int row;    // of the block's tile, its first
    int loads;  // bytes from the start of a stage of x to its first element
    int q;      // it holds k 2 q and 2 q + 1 of every 8

    __device__ Lane() {
        const int warp = threadIdx.x / 32, r = threadIdx.x % 32 / 4;
        q = threadIdx.x % 4;
        if (LAST) {
            row = warp * 16 + 2 * r;
            loads = row / 32 * (TILE_K * LINE) + 2 * q * LINE + ((row % 32 / 4 ^ 2 * q) * 16) + row % 4 * 4;
        } else {
            row = warp * 16 + r % 2 * 4 + r / 2 % 2 * 2 + r / 4;
            loads = row * LINE + ((q / 2 ^ row % 8) * 16) + q % 2 * 8;
        }
    }
};

__device__ __forceinline__ void load_two(float& x, float& y, uint32_t at) {
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x), "=f"(y) : "r"(at) : "memory");
}

// Load a lane's share of a stage of x, in the order that Wgmma wants.
__device__ __forceinline__ void load_x(float (&x)[STEPS][4], uint32_t stage, const Lane& lane) {
#pragma unroll
    for (int s = 0; s < STEPS; ++s) {
        if (LAST) {
            const uint32_t at = stage + lane.loads + s * (8 * LINE);
            load_two(x[s][0], x[s][1], at);
            load_two(x[s][2], x[s][3], (at ^ 16) + LINE);
        } else {
            const uint32_t at = stage + (lane.loads ^ s * 32);
            load_two(x[s][0], x[s][2], at);
            load_two(x[s][1], x[s][3], at + 8 * LINE);
        }
    }
}

// Column j, from the lane's first on, that sums[s] of it means; batch-size-first four neighbours make 16 bytes.
__device__ constexpr int column(int s) {
    return LAST ? s / 4 * 8 + s % 2 : s / 8 * 16 + s / 4 % 2 * 2 + s % 2;
}
// Which of the lane's two rows.
__device__ constexpr int second(int s) { return s / 2 % 2; }

// Where a lane's sums belong in y. `first` is the place of its first, `left` the columns from there to the end of the
// block of the pattern, and `row` counts in y.
struct Target {
    Index first, row_pitch, column_pitch, feature;
    int row, rows, left, d;

    __device__ bool has(int s) const { return row + second(s) * (LAST ? 1 : 8) < rows && column(s) < left; }
    __device__ Index at(int s) const {
        return first + second(s) * (LAST ? 1 : 8) * row_pitch + column(s) * column_pitch;
    }
};

// All sums through the activation, four at a time: it is long, and indices of registers must be constants.
__device__ __forceinline__ void activate_all(float (&sums)[SUMS], const Epilogue& e) {
#pragma unroll 1
    for (int turn = 0; turn < SUMS / 4; ++turn) {
        float done[4];
#pragma unroll
        for (int v = 0; v < 4; ++v) done[v] = activate(sums[v], e.activation, e.negative_slope);
#pragma unroll
        for (int v = 0; v < SUMS - 4; ++v) sums[v] = sums[v + 4];
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[SUMS - 4 + v] = done[v];
    }
}

__device__ __forceinline__ void finish(float (&sums)[SUMS], const Epilogue& e, const Target& to) {
    if (e.bias) {
#pragma unroll
        for (int s = 0; s < SUMS; ++s)
            if (column(s) < to.left) sums[s] += e.bias[to.feature + Index(column(s)) * to.d];
    }
    if (e.residual) {
#pragma unroll
        for (int s = 0; s < SUMS; ++s)
            if (to.has(s)) sums[s] += e.residual[to.at(s)];
    }
    if (e.activation != ACTIVATION_NONE) activate_all(sums, e);
}

// Lay the sums of a lane for Y_COLUMNS columns, from sums[first] on, out as the boxes that go to y.
__device__ __forceinline__ void stage_y(const float (&sums)[SUMS], int first, uint32_t stage, const Lane& lane) {
    const int row = lane.row % 64;
#pragma unroll
    for (int s = 0; s < Y_COLUMNS / 2; s += LAST ? 4 : 8) {
        const float* from = sums + first + s;
        if (LAST) {
#pragma unroll
            for (int v = 0; v < 2; ++v) {
                const int j = column(s + v) + 2 * lane.q;
                const uint32_t chunk = row % 32 / 4 ^ j % 8;
                const uint32_t at = stage + row / 32 * Y_BOX_BYTES + j * LINE + chunk * 16 + row % 4 * 4;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(from[v]), "f"(from[v + 2]) : "memory");
            }
        } else {
#pragma unroll
            for (int h = 0; h < 4; h += 2) {
                const int j = column(s) % 32 + 4 * lane.q;
                const uint32_t line = column(s) / 32 * Y_BOX_BYTES + (row + 4 * h) * LINE;
                asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(stage + line + (j / 4 ^ row % 8) * 16),
                             "f"(from[h]), "f"(from[h + 1]), "f"(from[h + 4]), "f"(from[h + 5])
                             : "memory");
            }
        }
    }
}

// Multiply COUNT times 8 k, by the values that descriptor `w` begins with; in the background. The tensor cores' sums of
// small products come before those of big ones, see split_tf32.cuh; with one part they are those of all steps.
template <int COUNT>
__device__ __forceinline__ void multiply(float (&sums)[SUMS], const uint32_t (&big)[STEPS][4],
                                         const uint32_t (&small)[STEPS][4], uint64_t w) {
    constexpr int NEXT = 2 * W_K4_BYTES >> 4, SMALL = TILE_B * 16 >> 4;
    products_begin();
    if (PARTS == 2) {
#pragma unroll
        for (int s = 0; s < COUNT; ++s) {
            Wgmma<TILE_B>::run(sums, big[s], w + s * NEXT + SMALL, s);
            Wgmma<TILE_B>::run(sums, small[s], w + s * NEXT, 1);
        }
    }
#pragma unroll
    for (int s = 0; s < COUNT; ++s) Wgmma<TILE_B>::run(sums, big[s], w + s * NEXT, 1);
    products_commit();
}

__device__ __forceinline__ void consume(const TensorMap& y_map, const Epilogue& epilogue, const Pattern& p,
                                        const Work& work, Ring<X_STAGES> x_ring, Ring<W_STAGES> w_ring, uint32_t shared,
                                        const Place* places, int rows, Index pitch, bool staged) {
    const Lane lane;
    const int warpgroup = threadIdx.x / 128;
    const bool short_end = (p.c - 1) % TILE_K < TILE_K / 2;  // then half of the last step is enough
    const bool warp_leads = threadIdx.x % 32 == 0, leads = threadIdx.x % 128 == 0;
    const uint32_t y_stage = shared + Y_AT + warpgroup * Y_BYTES;
    float x[STEPS][4];
    const auto load = [&] {
        x_ring.wait_full();
        load_x(x, shared + x_ring.stage * X_BYTES, lane);
    };
    load();
    Place at = places[x_ring.stage];
    while (at.across >= 0) {
        float sums[SUMS] = {};
#pragma unroll 1
        for (int step = 0; step < work.steps; ++step) {
            uint32_t big[STEPS][4], small[STEPS][4];
#pragma unroll
            for (int s = 0; s < STEPS; ++s)
#pragma unroll
                for (int v = 0; v < 4; ++v) {
                    big[s][v] = to_tf32(x[s][v]);
                    pin(big[s][v]);
                    if (PARTS == 2) small[s][v] = left_over(x[s][v], big[s][v]), pin(small[s][v]);
                }
            // Only now is x known to be in registers: neither the arrival nor the copy engine would wait for the loads.
            barrier_arrive(x_ring.empty());
            x_ring.next();
            w_ring.wait_full();
            const uint64_t w = blocks_descriptor(shared + W_AT + w_ring.stage * W_BYTES, W_K4_BYTES, 128);
            float part[SUMS];
            float(&into)[SUMS] = PARTS == 2 ? part : sums;
            if (step + 1 == work.steps && short_end)
                multiply<STEPS / 2>(into, big, small, w);
            else
                multiply<STEPS>(into, big, small, w);
            load();
            products_wait<0>();
            if (warp_leads) barrier_arrive(w_ring.empty());
            w_ring.next();
            if (PARTS == 2) {
#pragma unroll
                for (int s = 0; s < SUMS; ++s) sums[s] += part[s];
            }
        }
        const Place next = places[x_ring.stage];
        const int row = at.strip * TILE_N + lane.row, j = at.across * TILE_B + lane.q * (LAST ? 2 : 4);
        const Index feature = (Index(at.i) * p.b + j) * p.d + at.l;
        const Target to{LAST ? feature * pitch + row : row * pitch + feature, LAST ? 1 : pitch, LAST ? p.d * pitch : 1,
                        feature, row, rows, p.b - j, p.d};
        finish(sums, epilogue, to);
        if (staged && (at.strip + 1) * TILE_N <= rows) {
            const int strip = at.strip * TILE_N + warpgroup * 64;
#pragma unroll
            for (int done = 0; done < TILE_B; done += Y_COLUMNS) {
                const int across = at.across * TILE_B + done;
                if (leads) copies_out_have_read<0>();
                barrier_of_warpgroup(1 + warpgroup);
                stage_y(sums, done / 2, y_stage, lane);
                publish_shared();
                barrier_of_warpgroup(1 + warpgroup);
                if (!leads) continue;
#pragma unroll
                for (int box = 0; box < Y_BOXES; ++box) {
                    const uint32_t from = y_stage + box * Y_BOX_BYTES;
                    if (LAST)
                        copy_out(y_map, {strip + box * 32, at.l, across, at.i}, from);
                    else
                        copy_out(y_map, {across + box * 32, at.i, strip, 0}, from);
                }
                copies_out_commit();
            }
        } else {
#pragma unroll
            for (int s = 0; s < SUMS; ++s)
                if (to.has(s)) epilogue.y[to.at(s)] = sums[s];
        }
        at = next;
    }
    if (leads) copies_out_have_read<0>();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
ks_matmul_tf32(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
               const float* __restrict__ values, const float* __restrict__ bias, const float* residual, float* y,
               const int* __restrict__ count, int rows, int a, int b, int c, int d, int activation,
               float negative_slope, int staged, int together, int counter) {
    extern __shared__ __align__(1024) uint8_t memory[];
    __shared__ Place places[X_STAGES];
    __shared__ __align__(8) uint64_t barriers[2 * (X_STAGES + W_STAGES)];
    const uint32_t shared = shared_address(memory);
    const Ring<X_STAGES> x_ring{shared_address(barriers)};
    const Ring<W_STAGES> w_ring{shared_address(barriers + 2 * X_STAGES)};
    const Pattern p{a, b, c, d};
    const int used = rows_in_use(count, rows);
    const Work work(used, p, together);
    if (threadIdx.x == 0) {
        x_ring.init(128 * WARPGROUPS), w_ring.init(4 * WARPGROUPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x / 128 == WARPGROUPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % 128 == 0) produce(x_map, values, work, x_ring, w_ring, shared, places, tiles_taken + counter);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        const Epilogue epilogue{bias, residual, y, activation, negative_slope};
        const Index pitch = LAST ? Index(rows) : p.width_out();
        consume(y_map, epilogue, p, work, x_ring, w_ring, shared, places, used, pitch, staged);
    }
}
