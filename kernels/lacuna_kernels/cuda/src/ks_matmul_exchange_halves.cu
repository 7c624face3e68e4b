// A Kronecker-sparse factor with d > 1, batch-size-first, in fp32 on Hopper (see ks_matmul.cuh): teams of blocks take x
// apart for one another as in ks_matmul_exchange.cu, and split it as ks_matmul_halves.cu does, once for all columns if
// its planes are kept.
//
// Each operand is the sum of two halves of 11 bits, x = big + small in fp16, and three products of halves give what an
// fp32 product gives: small*big + big*small + big*big. The values are scaled by a power of two first: x by its largest
// value among the 16 k of a step, for each row and l; the values of the factor once, by their largest among all k, for
// each (i, j, l). The sums of a step are taken back to x's scale and added in fp32, while the tensor cores work on the
// next. With SPLIT = 1 only big*big is left, which is tf32's accuracy. Bits are those of ks_matmul_halves.cu.
#ifndef TEAM
#define SPLIT 2       // halves of a value
#define TEAM 4       // blocks of a cluster
#define OWN_L 2      // l of a block
#define ROWS 64      // of a tile
#define COLUMNS 64   // j of a product
#define GROUPS 2     // warpgroups that multiply
#define WHOLE 0      // whether the team's l are all of d, so that (k, l) of one row are contiguous
#define APART_REGISTERS 88
#define BRING_REGISTERS 80
#define MULTIPLY_REGISTERS 168
#endif

constexpr int HALVES = SPLIT;

#include "exchange.cuh"

static_assert(MINE == 1 && !BY_COLUMNS, "a warpgroup has one l and all columns");

constexpr int SCALES_AT = OWN_L * 2 * HALVES * PLANE;  // in a step: fp32 [l][row], what its sums are multiplied by

// ---- take apart ----
__device__ __forceinline__ uint32_t bits(__half2 pair) { return *reinterpret_cast<const uint32_t*>(&pair); }

// The largest of 16 k, which two lanes hold, becomes 2^14 to 2^15. Its upper 16 bits tell the exponent, so two l are
// compared at once. Under 2^-98 there is no such power of two; the factor's own scale makes up for 2^14 too.
__device__ __forceinline__ void measure(const float (&x)[8][RUN], float (&scale)[RUN], float (&back)[RUN]) {
    constexpr float SMALLEST = 3.2e-30f;
    constexpr uint32_t EXPONENT = 0x7f800000, UP = (127u + 127 + 14) << 23, DOWN = (14u + 14) << 23;
    uint32_t top[RUN];
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
        float largest = SMALLEST;
#pragma unroll
        for (int k = 0; k < 8; ++k) largest = fmaxf(largest, fabsf(x[k][r]));
        top[r] = __float_as_uint(largest);
    }
#pragma unroll
    for (int r = 0; r < RUN; r += 2) {
        const bool second = r + 1 < RUN;
        uint32_t both = __byte_perm(top[r], top[second ? r + 1 : r], 0x7632);
        both = __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 8));
        const uint32_t low = both << 16 & EXPONENT, high = both & EXPONENT;
        scale[r] = __uint_as_float(UP - low), back[r] = __uint_as_float(low - DOWN);
        if (second) scale[r + 1] = __uint_as_float(UP - high), back[r + 1] = __uint_as_float(high - DOWN);
    }
}

// 8 k of one l as halves, in the order 0 4 1 5 2 6 3 7 that ks_matmul_halves.cu has within 8, too.
__device__ __forceinline__ void split(const float (&x)[8][RUN], int r, float scale, uint4& big, uint4& small) {
    uint32_t bigs[4], smalls[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
        const float first = x[t][r] * scale, second = x[t + 4][r] * scale;
        const __half2 rounded = __floats2half2_rn(first, second);
        const float2 taken = __half22float2(rounded);
        bigs[t] = bits(rounded);
        smalls[t] = bits(__floats2half2_rn(first - taken.x, second - taken.y));
    }
    big = make_uint4(bigs[0], bigs[1], bigs[2], bigs[3]);
    small = make_uint4(smalls[0], smalls[1], smalls[2], smalls[3]);
}

__device__ __forceinline__ void take_unit(const Work& w, int unit, int in, int out) {
    const Unit at(unit);
    float x[8][RUN];
#pragma unroll
    for (int m = 0; m < 2 * RUN; ++m) {
        const uint4 vector = read_16_bytes(at.vector(w.raw_at + in * RAW_STAGE, m));
        const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
        for (int v = 0; v < 4; ++v) x[(4 * m + v) / RUN][(4 * m + v) % RUN] = __uint_as_float(words[v]);
    }
    float scale[RUN], back[RUN];
    measure(x, scale, back);
    const int row = w.rank * OWN_ROWS + at.row;
    const uint32_t step = w.x_at + out * X_STAGE + at.eight / 2 * STEP, to = step + at.eight % 2 * PLANE + row * 16;
#pragma unroll
    for (int r = 0; r < RUN; ++r) {
        const int l = at.run * RUN + r, own = l % OWN_L, owner = l / OWN_L;
        const uint32_t full = in_block(w.full_x(out), owner), there = in_block(to + own * 2 * HALVES * PLANE, owner);
        uint4 big, small;
        split(x, r, scale[r], big, small);
        store_there(there, big, full);
        if (HALVES == 2) store_there(there + 2 * PLANE, small, full);
        if (at.eight % 2 == 0)
            store_word_there(in_block(step + SCALES_AT + (own * ROWS + row) * 4, owner), __float_as_uint(back[r]),
                             full);
    }
}

// ---- multiply ----
using Sums = float[COLUMNS / 2];

// Column 16 q + 8 m + 2 t + e of the product, t = lane % 4, is j = 16 q + 4 t + 2 m + e, so that a thread has runs of
// 4 j: those of sums[8 q + 4 m + 2 h + e], for row h.

// Take the factor's scale back, fp32 [chunk][block][pass][l][COLUMNS], and add the bias.
__device__ __forceinline__ void finish(Sums& sums, const Work& w, const float* __restrict__ scales, const Consumer& me,
                                       const Pass& of) {
    const int own = me.first_l(), l = of.l(w) + w.rank * OWN_L + own, quad = me.lane % 4 * 4;
    const Index place = ((Index(of.chunk) * TEAM + w.rank) * w.passes + of.pass) * OWN_L + own;
#pragma unroll
    for (int g = 0; g < COLUMNS / 16; ++g) {
        const float4 four = *reinterpret_cast<const float4*>(scales + place * COLUMNS + 16 * g + quad);
        const float by[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int v = 0; v < 4; ++v) {
            const int j = of.pass * COLUMNS + 16 * g + quad + v, n = 8 * g + v / 2 * 4 + v % 2;
            const bool there = w.out.bias && j < w.b && l < w.d;
            const float plus = there ? w.out.bias[(Index(of.i(w)) * w.b + j) * w.d + l] : 0.0f;
            sums[n] = fmaf(sums[n], by[v], plus), sums[n + 2] = fmaf(sums[n + 2], by[v], plus);
        }
    }
    if (w.out.activation == ACTIVATION_NONE || w.out.residual) return;
#pragma unroll 1
    for (int turn = 0; turn < COLUMNS / 2; ++turn) {  // one at a time, the others moving up: the code is there once
        const float first = activate(sums[0], w.out.activation, w.out.negative_slope);
#pragma unroll
        for (int n = 0; n + 1 < COLUMNS / 2; ++n) sums[n] = sums[n + 1];
        sums[COLUMNS / 2 - 1] = first;
    }
}

// Where y of an l, a row of the block's and 4 j lies among what is exchanged: so that neither those who store nor those
// who read meet in a bank.
__device__ __forceinline__ uint32_t y_offset(int l, int row, int four) {
    return ((l * OWN_ROWS + (RUN == VECTOR ? row ^ (l / VECTOR & 1) : row)) * 4 + four) * 16;
}

// Send a part of all rows, each to the block that owns it.
__device__ __forceinline__ void send(const Sums& sums, int q, const Work& w, Ring& ring, const Consumer& me) {
    barrier_wait(w.empty_y(ring.stage), ring.phase ^ 1);
    const int l = w.rank * OWN_L + me.first_l();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = me.first_row() + me.warp * 16 + h * 8 + me.lane / 4, owner = row / OWN_ROWS;
        const uint32_t full = in_block(w.full_y(ring.stage), owner);
        const float* from = sums + 8 * q + 2 * h;
        const uint32_t to = w.y_at + ring.stage * Y_STAGE + y_offset(l, row % OWN_ROWS, me.lane % 4);
        store_there(in_block(to, owner),
                    make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[4]),
                               __float_as_uint(from[5])),
                    full);
    }
    ring.next(w.y_stages);
}

// The places of a warpgroup's operands and of a thread's scales, in the first stage.
struct Operands {
    uint32_t x, weights, scales;
};

// Start the products of a step; small ones first, while the sum is small.
__device__ __forceinline__ void start_products(Sums& t, uint32_t x_at, uint32_t w_at) {
    const uint64_t x = operand(x_at, PLANE, 128), weights = operand(w_at, W_PLANE, 128);
    constexpr int X_SMALL = 2 * PLANE / 16, W_SMALL = 2 * W_PLANE / 16;
    products_begin();
    if constexpr (HALVES == 2) {
        multiply_add<COLUMNS, 0>(t, x + X_SMALL, weights, 0, __half());
        multiply_add<COLUMNS, 0>(t, x, weights + W_SMALL, 1, __half());
    }
    multiply_add<COLUMNS, 0>(t, x, weights, HALVES == 2, __half());
    products_commit();
}

// Add the finished products of a step, on x's scale again.
__device__ __forceinline__ void add_products(Sums& sums, const Sums& t, uint32_t scales, bool first) {
    float back[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) back[h] = read_float(scales + 32 * h);
#pragma unroll
    for (int n = 0; n < COLUMNS / 2; ++n) sums[n] = fmaf(t[n], back[n / 2 % 2], first ? 0.0f : sums[n]);
}

// One pass over the planes of a tile, which are given back if `free_x`; the weights are if `free_w`. Meanwhile what was
// done before is sent. The products of two steps are under way at once; none from one stage to the next, or else the
// compiler would wait for each.
__device__ __forceinline__ void multiply(Sums& sums, const Sums& done, const Work& w, Rings& rings,
                                         const Operands& mine, const Consumer& me, int parts, bool free_x,
                                         bool free_w) {
    Ring &xs = rings.x, &ws = rings.w;
    Sums t, u;
    const auto stage = [&](int part) {  // and send this part and the next, if they are there
        barrier_wait(w.full_x(xs.stage), xs.phase);
        barrier_wait(w.full_w(ws.stage), ws.phase);
        publish_shared();
        const uint32_t x = mine.x + xs.stage * X_STAGE, weights = mine.weights + ws.stage * W_STAGE;
        const uint32_t scales = mine.scales + xs.stage * X_STAGE;
        start_products(t, x, weights);
        start_products(u, x + STEP, weights + W_STEP);
#pragma unroll
        for (int q = part; q < min(part + SENT_AT_ONCE, PARTS); ++q)
            if (q < parts) send(done, q, w, rings.y, me);
        products_wait<1>();
        add_products(sums, t, scales, part == 0);
        products_wait<0>();
        if (free_w) me.give_back_w(w, ws.stage);
        add_products(sums, u, scales + STEP, false);
        if (free_x) me.give_back_x(w, xs.stage);
        xs.next(w.x_stages), ws.next(w.w_stages, free_w);
    };
#pragma unroll
    for (int q = 0; q < PARTS; q += SENT_AT_ONCE) stage(q);
#pragma unroll 1
    for (int s = (PARTS + SENT_AT_ONCE - 1) / SENT_AT_ONCE; s < w.stages; ++s) stage(PARTS);
}

__device__ __forceinline__ void consume(const Work& w, const float* __restrict__ scales, const Consumer& me) {
    Rings rings;
    const uint32_t row = me.first_row() + me.warp * 16 + me.lane / 4, l = me.first_l();
    const Operands mine{w.x_at + l * 2 * HALVES * PLANE + me.first_row() * 16, w.w_at + l * 2 * HALVES * W_PLANE,
                        w.x_at + SCALES_AT + (l * ROWS + row) * 4};
    take_turns<Sums>(
        w, rings,
        [&](Sums& sums, Sums& done, const Pass& before, bool free_x, bool free_w) {
            if (before.is_there) finish(done, w, scales, me, before);
            const int parts = before.is_there ? w.parts(before.pass) : 0;
            multiply(sums, done, w, rings, mine, me, parts, free_x, free_w);
        },
        [&](Sums& done, const Pass& before) {
            if (!before.is_there) return;
            finish(done, w, scales, me, before);
#pragma unroll
            for (int q = 0; q < PARTS; ++q)
                if (q < w.parts(before.pass)) send(done, q, w, rings.y, me);
        });
}

// ---- write ----
// Write a part, from j on, of the block's rows.
__device__ __forceinline__ void write_part(const Work& w, const Tile& at, int j, int stage, int thread) {
    constexpr int FOURS = PART / 4, PIECES = OWN_ROWS * FOURS * RUNS;  // 4 j by RUN l of a row
    const uint32_t from = w.y_at + stage * Y_STAGE;
    const Index pitch = Index(w.a) * w.b * w.d, apart = RUN == VECTOR ? w.d : 4;  // vectors are 4 l of a j, or go on
    const int rows = w.rows - at.tile * ROWS - w.rank * OWN_ROWS, left_l = w.d - at.l(w), left_j = w.b - j;
    const Index start = (at.tile * ROWS + w.rank * OWN_ROWS) * pitch + (Index(at.i(w)) * w.b + j) * w.d + at.l(w);
#pragma unroll 1
    for (int piece = thread; piece < PIECES; piece += WRITERS * 32) {
        const int four = piece % FOURS, run = piece / FOURS % RUNS, row = piece / FOURS / RUNS;
        if (row >= rows || 4 * four >= left_j || (!WHOLE && VECTOR * run >= left_l)) continue;
        uint32_t sums[RUN][4];  // [l][j]
#pragma unroll
        for (int r = 0; r < RUN; ++r) {
            const uint4 vector = read_16_bytes(from + y_offset(run * VECTOR + r, row, four));
            sums[r][0] = vector.x, sums[r][1] = vector.y, sums[r][2] = vector.z, sums[r][3] = vector.w;
        }
        Index to = start + row * pitch + Index(4 * four) * w.d + VECTOR * run;
#pragma unroll
        for (int v = 0; v < RUN; ++v, to += apart) {
            float4 vector;
            float* element = &vector.x;
#pragma unroll
            for (int e = 0; e < 4; ++e) element[e] = __uint_as_float(sums[(4 * v + e) % RUN][(4 * v + e) / RUN]);
            if (w.out.residual) {
                const float4 add = *reinterpret_cast<const float4*>(w.out.residual + to);
                vector.x = activate(vector.x + add.x, w.out.activation, w.out.negative_slope);
                vector.y = activate(vector.y + add.y, w.out.activation, w.out.negative_slope);
                vector.z = activate(vector.z + add.z, w.out.activation, w.out.negative_slope);
                vector.w = activate(vector.w + add.w, w.out.activation, w.out.negative_slope);
            }
            *reinterpret_cast<float4*>(w.out.y + to) = vector;
        }
    }
}

extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS, 1)
ks_matmul_exchange_halves(const __grid_constant__ TensorMap x_map, const char* __restrict__ weights,
                          const float* __restrict__ scales, const float* __restrict__ bias, const float* residual,
                          float* y, const int* __restrict__ count, int rows, int a, int b, int c, int d, int activation,
                          float negative_slope, int raw_stages, int x_stages, int w_stages, int y_stages,
                          int together) {
    const Arguments arguments{weights, {bias, residual, y, activation, negative_slope}, count, rows, a, b, c, d,
                              raw_stages, x_stages, w_stages, y_stages, together};
    const uint32_t at = dynamic_shared();
    const int role = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) start_barriers(Work(arguments, at));
    __syncthreads();
    meet_team();
    if (role == 0) {
        take_registers<APART_REGISTERS, START_REGISTERS>();
        const Work w(arguments, at);
        take_apart(w, [&](int unit, int in, int out) { take_unit(w, unit, in, out); });
    } else if (role == 1) {
        take_registers<BRING_REGISTERS, START_REGISTERS>();
        if (warp == 0 && lane == 0) bring_x(Work(arguments, at), x_map);
        if (warp == 1 && lane == 0) bring_weights(Work(arguments, at));
        if (warp >= 2) {
            const Work w(arguments, at);
            const int thread = threadIdx.x % 128 - 64;
            write(w, thread, [&](const Tile& tile, int j, int stage) { write_part(w, tile, j, stage, thread); });
        }
    } else {
        take_registers<MULTIPLY_REGISTERS, START_REGISTERS>();
        consume(Work(arguments, at), scales, {role - 2, lane, warp});
    }
    __syncwarp();
    meet_team();  // nobody leaves while others still store or arrive here
}
