// A Kronecker-sparse factor (see ks_matmul.cuh) of fp32 on Hopper's tensor cores: PARTS = 2 keeps fp32's accuracy
// (split_tf32.cuh), PARTS = 1 rounds x and values to tf32. With HALVES the parts are scaled fp16 instead, and sums of
// 16 k are scaled back and gathered, as in ks_matmul_halves.cu; `values` are fp16 then, and `scales` [a*b*d] take theirs
// back. For x and y batch-size-last, LAST = 1, [features, rows] with any d, or batch-size-first, LAST = 0,
// [rows, features] with d = 1.
//
// A block of WARPGROUPS consumers and one producer makes tiles of y of 64 * WARPGROUPS rows by TILE_B columns j, for
// one (i, l), one tile after the other. The producer's first thread has the copy engine bring x and values in steps of
// TILE_K, stages ahead. A warpgroup loads its 64 rows of x into registers, splits them there, and multiplies them by
// the values in shared memory, which come split and in the order that the tensor cores read; finished sums go out
// through shared memory, or one by one where rows end.
//
// Which row of x a lane holds, and which k and column its registers mean, is ours to choose if values are packed alike:
// slot s of 8 along k is k = 2 s, or 2 (s - 4) + 1 from s = 4 on, so that no two lanes load from the same bank; in fp16
// every slot is its own k.
#ifndef PARTS
#define PARTS 2
#define HALVES 0  // whether parts are fp16
#define LAST 1
#define TILE_B 64
#define WARPGROUPS 3
#define X_STAGES 4
#define W_STAGES 5
#define Y_COLUMNS 64  // of a tile go out at once
#define Y_BUFFERS 1   // of those, for each warpgroup
#endif

#include "tf32_operands.cuh"

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
    const uint2 both = read_8_bytes(at);
    x = __uint_as_float(both.x), y = __uint_as_float(both.y);
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

__device__ __forceinline__ void finish(float (&sums)[SUMS], const float* scales, const Epilogue& e, const Target& to) {
    if (HALVES) {
#pragma unroll
        for (int s = 0; s < SUMS; ++s)
            if (column(s) < to.left) sums[s] *= scales[to.feature + Index(column(s)) * to.d];
    }
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
                write_8_bytes(at, make_uint2(__float_as_uint(from[v]), __float_as_uint(from[v + 2])));
            }
        } else {
#pragma unroll
            for (int h = 0; h < 4; h += 2) {
                const int j = column(s) % 32 + 4 * lane.q;
                const uint32_t line = column(s) / 32 * Y_BOX_BYTES + (row + 4 * h) * LINE;
                write_16_bytes(stage + line + (j / 4 ^ row % 8) * 16,
                               make_uint4(__float_as_uint(from[h]), __float_as_uint(from[h + 1]),
                                          __float_as_uint(from[h + 4]), __float_as_uint(from[h + 5])));
            }
        }
    }
}

__device__ __forceinline__ void consume(const TensorMap& y_map, const float* scales, const Epilogue& epilogue,
                                        const Pattern& p, const Work& work, Ring<X_STAGES> x_ring,
                                        Ring<W_STAGES> w_ring, uint32_t shared, int rows, Index pitch, bool staged) {
    const Lane lane;
    const int warpgroup = threadIdx.x / 128;
    const bool short_end = (p.c - 1) % TILE_K < TILE_K / 2;  // then half of the last step is enough
    const bool warp_leads = threadIdx.x % 32 == 0, leads = threadIdx.x % 128 == 0;
    const uint32_t y_stages = shared + Y_AT + warpgroup * Y_BUFFERS * Y_BYTES;
    int turn = 0;  // which of them is filled next
    float x[STEPS][4];
    const auto load = [&] {
        x_ring.wait_full();
        load_x(x, shared + x_ring.stage * X_BYTES, lane);
    };
    load();
    Place at = kept_place(shared, x_ring.stage);
    while (at.across >= 0) {
        float sums[SUMS] = {};
#pragma unroll 1
        for (int step = 0; step < work.steps; ++step) {
            const Operand x_operand(x);
            static_assert(STEPS == 4, "a word of each load");
            const auto word = [&](int s, int v) { return __float_as_uint(x[s][v]); };
            barrier_arrive(x_ring.empty() + nothing_after(word(0, 0), word(0, 3), word(1, 0), word(1, 3), word(2, 0),
                                                          word(2, 3), word(3, 0), word(3, 3)));
            x_ring.next();
            w_ring.wait_full();
            add_products(sums, x_operand, operand(shared + W_AT + w_ring.stage * W_BYTES, W_PLANE, 128),
                         step + 1 == work.steps && short_end, load);
            if (warp_leads) barrier_arrive(w_ring.empty());
            w_ring.next();
        }
        const Place next = kept_place(shared, x_ring.stage);
        const int row = at.strip * TILE_N + lane.row, j = at.across * TILE_B + lane.q * (LAST ? 2 : 4);
        const Index feature = (Index(at.i) * p.b + j) * p.d + at.l;
        const Target to{LAST ? feature * pitch + row : row * pitch + feature, LAST ? 1 : pitch, LAST ? p.d * pitch : 1,
                        feature, row, rows, p.b - j, p.d};
        finish(sums, scales, epilogue, to);
        if (staged && (at.strip + 1) * TILE_N <= rows) {
            const int strip = at.strip * TILE_N + warpgroup * 64;
#pragma unroll
            for (int done = 0; done < TILE_B; done += Y_COLUMNS) {
                const int across = at.across * TILE_B + done;
                const uint32_t y_stage = y_stages + turn * Y_BYTES;
                turn = (turn + 1) % Y_BUFFERS;
                if (leads) copies_out_have_read<Y_BUFFERS - 1>();
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
               const float* __restrict__ values, const float* __restrict__ scales, const float* __restrict__ bias,
               const float* residual, float* y, const int* __restrict__ count, int rows, int a, int b, int c, int d,
               int activation, float negative_slope, int staged, int together, int counter) {
    const uint32_t shared = dynamic_shared();
    const Ring<X_STAGES> x_ring{shared + BARRIERS_AT};
    const Ring<W_STAGES> w_ring{shared + BARRIERS_AT + 16 * X_STAGES};
    const Pattern p{a, b, c, d};
    const int used = rows_in_use(count, rows);
    const Work work(used, p, together);
    if (threadIdx.x == 0) {
        x_ring.init(128 * WARPGROUPS), w_ring.init(4 * WARPGROUPS);
        barriers_are_ready();
    }
    __syncthreads();
    if (warp_of_block() / 4 == WARPGROUPS) {
        take_registers<PRODUCER_REGISTERS, START_REGISTERS>();
        if (threadIdx.x % 128 == 0) produce(x_map, values, work, x_ring, w_ring, shared, tiles_taken + counter);
    } else {
        take_registers<CONSUMER_REGISTERS, START_REGISTERS>();
        const Epilogue epilogue{bias, residual, y, activation, negative_slope};
        const Index pitch = LAST ? Index(rows) : p.width_out();
        consume(y_map, scales, epilogue, p, work, x_ring, w_ring, shared, used, pitch, staged);
    }
}
