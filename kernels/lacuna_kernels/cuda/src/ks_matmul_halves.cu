// A Kronecker-sparse factor batch-size-first in fp32, on Hopper's tensor cores (see ks_matmul.cuh for the meaning).
//
// Each operand is the sum of two halves of 11 bits, x = big + small in fp16, and three products of halves give what an
// fp32 product gives: small*big + big*small + big*big. fp16 has few exponents, so the values are scaled by a power of
// two first: x by its largest value among the 16 k of a step, for each row and l; the values of the factor once, by
// their largest among all k, for each (i, j, l). A value keeps all its 22 bits unless it is under 2^-17 of that
// largest one, and its error is never over 2^-39 of it. The sums of a step are taken back to x's scale and added in
// fp32: what the tensor cores truncate is but one step's. With HALVES = 1 only big*big is left, tf32's accuracy.
//
// A block makes R rows by J columns j by L neighbouring l of y, for one i. Its last four warps fill a ring of stages of
// 16 k: x as it lies, [row][k][l], by copies of 16 bytes that leave gaps against bank conflicts, and the factor, packed
// by the host as wgmma wants it. The other warps, in groups of four, read x and split it in registers: the vector of
// neighbouring l that a lane reads is one element of the A operand of each l, so that nothing is ever transposed. The
// order of k within a step and of j within 8 is such that lanes read different banks; the host packs alike. How y is
// written: halves_out.cuh.
//
// Sums of one (row, j) run over k upwards, 16 at a time: the bits depend neither on the tile nor on the other rows.
#ifndef PASSES
#define GROUPS_N 1  // groups of four warps along rows, along j, along l
#define GROUPS_B 1
#define GROUPS_D 2
#define PASSES 1  // times 64 rows of a group
#define COLUMNS 64  // j of a group
#define RUN 4       // neighbouring l of a group
#endif
#ifndef HALVES
#define HALVES 2  // of a value of the factor
#endif
#ifndef STAGES
#define STAGES 3
#define BUFFERS 2  // of y on its way
#endif

#include "fp16_halves.cuh"
#include "halves.cuh"
#include "halves_out.cuh"

// What one lane holds of a stage of x, and the powers of two by which it is scaled, and scaled back.
struct Rows {
    float raw[PASSES][2][4][RUN];  // [64 rows][row, row + 8][k, k + 4, k + 8, k + 12][l]
    float scale[PASSES][2][RUN], back[PASSES][2][RUN];

    __device__ __forceinline__ explicit Rows(const float* lane) {
#pragma unroll
        for (int pass = 0; pass < PASSES; ++pass)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int k = 0; k < 4; ++k)
                    read(raw[pass][half][k], lane + (pass * 64 + half * 8) * PITCH_X + k * 4 * L);
                measure(raw[pass][half], scale[pass][half], back[pass][half]);
            }
    }

    __device__ __forceinline__ static void read(float (&values)[RUN], const float* from) {
        if constexpr (RUN == 4) {
            const float4 v = *reinterpret_cast<const float4*>(from);
            values[0] = v.x, values[1] = v.y, values[2] = v.z, values[3] = v.w;
        } else if constexpr (RUN == 2) {
            const float2 v = *reinterpret_cast<const float2*>(from);
            values[0] = v.x, values[1] = v.y;
        } else {
#pragma unroll
            for (int l = 0; l < RUN; ++l) values[l] = from[l];
        }
    }

    // The largest of 16 k, which four lanes hold, tells the scale.
    __device__ __forceinline__ static void measure(const float (&raw)[4][RUN], float (&scale)[RUN],
                                                   float (&back)[RUN]) {
        float largest[RUN];
#pragma unroll
        for (int l = 0; l < RUN; ++l)
            largest[l] = fmaxf(fmaxf(fmaxf(fabsf(raw[0][l]), fabsf(raw[1][l])),
                                     fmaxf(fabsf(raw[2][l]), fabsf(raw[3][l]))), SMALLEST_SCALED);
        scales_of(largest, scale, back, [](uint32_t both) {
            both = __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 1));
            return __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 2));
        });
    }
};

// The A operand of one unit: x rounded to fp16, and what that leaves of it, rounded again.
struct Halves {
    uint32_t big[4], small[4];

    __device__ __forceinline__ void split(const Rows& x, int unit) {
        const int pass = unit / RUN, l = unit % RUN;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
                const float first = x.raw[pass][half][2 * pair][l] * x.scale[pass][half][l];
                const float second = x.raw[pass][half][2 * pair + 1][l] * x.scale[pass][half][l];
                ::split(first, second, big[2 * pair + half], small[2 * pair + half]);
            }
    }
};

__device__ __forceinline__ void multiply_half(float (&t)[N / 2], const uint32_t (&x)[4], uint64_t weights, bool add) {
    multiply_add_registers<N, 0>(t, make_uint4(x[0], x[1], x[2], x[3]), weights, add, __half());
}

// Start the products of one unit; small ones first, while the sum is small.
__device__ __forceinline__ void multiply(float (&t)[N / 2], const Halves& x, uint64_t weights) {
    products_begin();
    if constexpr (HALVES == 2) {
        multiply_half(t, x.small, weights, false);
        multiply_half(t, x.big, weights + (HALF_BYTES >> 4), true);
    }
    multiply_half(t, x.big, weights, HALVES == 2);
    products_commit();
}

__device__ __forceinline__ void wait_for_products(float (&t)[N / 2]) {
    products_wait<0>();
#pragma unroll
    for (int v = 0; v < N / 2; ++v) is_changed(t[v]);
}

// Add the products of one stage; while those of one unit are under way, the next one's x is split.
__device__ __forceinline__ void accumulate(Sums& sums, const float* x_lane, uint32_t group_weights) {
    const Rows x(x_lane);
    const uint64_t weights = operand(group_weights, 128, EIGHT_BYTES);
    Halves halves[2];
    float t[N / 2];
    halves[0].split(x, 0);
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
        multiply(t, halves[unit % 2], weights + unit % RUN * (RUN_BYTES >> 4));
        if (unit + 1 < UNITS) halves[(unit + 1) % 2].split(x, unit + 1);
        wait_for_products(t);
#pragma unroll
        for (int v = 0; v < N / 2; ++v)
            sums.of[unit][v] = fmaf(t[v], x.back[unit / RUN][v / 2 % 2][unit % RUN], sums.of[unit][v]);
    }
}

// Take the factor's scale back and add the bias; both lie as [j][l] in shared memory. Returns 0, once they have been
// read.
__device__ __forceinline__ uint32_t finish_columns(Sums& sums, const float* scale, bool has_bias) {
#pragma unroll
    for (int v = 0; v < N / 2; ++v)
#pragma unroll
        for (int l = 0; l < RUN; ++l) {
            if (v % 4 >= 2) continue;
            const float* at = scale + column_of(0, v / 4, v % 2) * L + l;
            const float by = at[0], plus = has_bias ? at[(BIAS_AT - SCALE_AT) / 4] : 0.0f;
#pragma unroll
            for (int pass = 0; pass < PASSES; ++pass) {
                float(&of)[N / 2] = sums.of[pass * RUN + l];
                of[v] = fmaf(of[v], by, plus), of[v + 2] = fmaf(of[v + 2], by, plus);
            }
        }
    uint32_t made = 0;
#pragma unroll
    for (int v = 0; v < N / 2; ++v)
#pragma unroll
        for (int l = 0; l < RUN; ++l)
            if (v % 4 < 2) made ^= __float_as_uint(sums.of[l][v]);
    return nothing_after(made);
}

__device__ __forceinline__ void consume(const Work& work, const Output& out, bool has_bias, unsigned char* shared,
                                        Ring ring) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / 128;
    const int l = group % GROUPS_D * RUN, group_j = group / GROUPS_D % GROUPS_B;
    const int row = group / (GROUPS_D * GROUPS_B) * 64 * PASSES + warp * 16 + lane / 4;
    const int steps = work.steps(), tiles = work.tiles();
    const int x_lane = STAGES_AT + 4 * (row * PITCH_X + lane % 4 * L + l);
    const int weights = STAGES_AT + W_AT + l * RUN_BYTES + group_j * (N / 8) * EIGHT_BYTES;
    const int columns = STAGES_AT + SCALE_AT + 4 * ((group_j * N + column_of(lane, 0, 0)) * L + l);
    const Team team{group / GROUPS_D * 4 + warp, group % GROUPS_D * 32 + lane};
    float* team_tile = reinterpret_cast<float*>(shared + Y_AT) + team.number * BUFFERS * Y_BUFFER;
    int turn = 0;  // of the buffers
#pragma unroll 1
    for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
        Sums sums = {};
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            barrier_wait_unseen(ring.filled(), ring.parity);
            const unsigned char* stage = shared + ring.slot * STAGE_BYTES;
            accumulate(sums, reinterpret_cast<const float*>(stage + x_lane), shared_address(stage) + weights);
            uint32_t done = 0;
            if (step == steps - 1)
                done = finish_columns(sums, reinterpret_cast<const float*>(stage + columns), has_bias);
            barrier_arrive(ring.emptied() + done);
            ring.next();
        }
        Share mine{work.tile(index), work, out, lane, l};
        mine.row += row - lane / 4, mine.j += group_j * N;
        if (mine.goes_directly()) {
            mine.write_directly(sums);
            continue;
        }
#pragma unroll 1
        for (int part = 0; part < N / (8 * EIGHTS); ++part, mine.j += 8 * EIGHTS) {
            float* buffer = team_tile + turn * Y_BUFFER;
            turn = (turn + 1) % BUFFERS;
            if (team.thread == 0) copies_out_have_read<BUFFERS - 1>();
            team.wait();
            spread(sums, part, buffer, lane, l);
            if (out.residual || out.activation != ACTIVATION_NONE) mine.amend(buffer);
            if (out.vectors && work.p.d == L) publish_shared();  // for the copy engine
            team.wait();
#pragma unroll
            for (int pass = 0; pass < PASSES; ++pass) mine.write(buffer + pass * Y_PASS, pass, team);
            if (team.thread == 0) copies_out_commit();
        }
    }
    if (team.thread == 0) copies_out_have_read<0>();  // before the memory goes
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
ks_matmul_halves(const __grid_constant__ TensorMap y_map, const float* __restrict__ x,
                 const char* __restrict__ packed, const float* __restrict__ scale,
                 const float* __restrict__ bias, const float* residual, float* y, const int* __restrict__ count,
                 int rows, int a, int b, int c, int d, int activation, float negative_slope, int vectors_out) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Work work{{a, b, c, d}, rows_in_use(count, rows)};
    const uint32_t full = shared_address(shared), empty = full + 8 * STAGES;
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < STAGES; ++slot) {
            barrier_init(full + 8 * slot, PRODUCERS + 1);  // and one for the bytes of the factor
            barrier_init(empty + 8 * slot, CONSUMERS);
        }
        barriers_are_ready();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        take_registers<56, START_REGISTERS>();
        const bool vectors = whole_vectors(x, work.p.width_in(), Index(c) * d, d);
        produce(work, {x, packed, scale, bias, vectors}, full + STAGES_AT, {full, empty, 1});
    } else {
        take_registers<(CONSUMERS > 256 ? 152 : 224), START_REGISTERS>();
        consume(work, {y_map, residual, y, activation, negative_slope, vectors_out != 0}, bias != nullptr, shared,
                {full, empty, 0});
    }
}
