// A Kronecker-sparse factor with d > 1, batch-size-first, in fp32 on Hopper (see ks_matmul.cuh): teams of blocks take x
// apart for one another as in ks_matmul_exchange.cu, and split it into halves as ks_matmul_halves.cu does, but only once
// for all columns of a pass, and with one scale for the 16 or 32 k of a stage.
//
// The planes of an l and 16 k are those of the big halves and of the small ones; behind the planes of a stage lie the
// powers of two that take the sums of each l and row back to x's scale. Products of a stage are added in fp32, while the
// tensor cores work for the other warpgroup. With SPLIT = 1 only big*big is left, which is tf32's accuracy.
#define ELEMENT float
#ifndef TEAM
#define SPLIT 2       // halves of a value
#define TEAM 8        // blocks of a cluster
#define OWN_L 2       // l of a block
#define COLUMNS 128   // j of a product
#define GROUPS 2      // warpgroups that multiply
#define STEPS 2       // of 16 k in a stage
#define TAKERS 128    // threads that take x apart, of 224: the others write
#define TAKEN 4       // neighbouring l that they take at once
#define WHOLE 0       // whether the team's l are all of d, so that (k, l) of one row are contiguous
#define PIECE 64      // bytes of a row of x that lie together as they come
#define SETS 1        // of products: with two, those of the next l are under way while one's are added
#define APART_REGISTERS 80
#define BRING_REGISTERS 80
#define MULTIPLY_REGISTERS 176
#endif

#include "exchange_roles.cuh"
#include "fp16_halves.cuh"

static_assert(PHASES == 1 && STEPS <= 2, "what a warp takes apart lies alike, and has whole stages of its rows");
static_assert(2 * OWN_ROWS * STEPS % 32 == 0, "a warp takes one run of l, as its lanes tell one another scales");

constexpr int X_L = 2 * HALVES * PLANE, W_L = 2 * HALVES * W_PLANE;  // bytes from an l to the next
constexpr int SCALES_AT = STEPS * STEP;                              // in a stage: fp32 [row][l]

// ---- take apart ----
// The largest of a stage's k, of which a lane holds 8, tells the scale.
__device__ __forceinline__ void measure(const float (&x)[8][TAKEN], float (&scale)[TAKEN], float (&back)[TAKEN]) {
    float largest[TAKEN];
#pragma unroll
    for (int r = 0; r < TAKEN; ++r) {
        largest[r] = SMALLEST_SCALED;
#pragma unroll
        for (int k = 0; k < 8; ++k) largest[r] = fmaxf(largest[r], fabsf(x[k][r]));
    }
    scales_of(largest, scale, back, [](uint32_t both) {
        both = __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 8));
        return STEPS == 1 ? both : __vmaxu2(both, __shfl_xor_sync(0xffffffff, both, 16));
    });
}

// A thread that takes x apart.
struct Taker {
    static constexpr bool KEEPS_PLACE = false;
    const Work& w;
    int thread;

    __device__ __forceinline__ static void read(float (&x)[8][TAKEN], uint32_t start, int run) {
#pragma unroll
        for (int m = 0; m < 2 * TAKEN; ++m) {
            const uint4 v = read_16_bytes(piece_of_x(start, run, 0, m));
            const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) x[(4 * m + e) / TAKEN][(4 * m + e) % TAKEN] = __uint_as_float(words[e]);
        }
    }

    // What takes the sums of neighbouring l of one owner back.
    template <int COUNT>
    __device__ __forceinline__ static void send_scales(uint32_t to, uint32_t there, const float* back, uint32_t full) {
        const auto word = [&](int r) { return __float_as_uint(back[r]); };
        if constexpr (COUNT == 4)
            store_in_team(to, there, make_uint4(word(0), word(1), word(2), word(3)), full);
        else if constexpr (COUNT == 2)
            store_in_team(to, there, make_uint2(word(0), word(1)), full);
        else
            store_in_team(to, there, word(0), full);
    }

    // 8 k of a row and TAKEN l: within the 8 they lie as 0 4 1 5 2 6 3 7, as in ks_matmul_halves.cu.
    __device__ __forceinline__ void take(const Unit& unit, int run, int, uint32_t start, int stage) const {
        float x[8][TAKEN], scale[TAKEN], back[TAKEN];
        read(x, start, run);
        measure(x, scale, back);
        const uint32_t planes = w.x_at + stage * X_STAGE, row = w.rank * OWN_ROWS + unit.row;
        const uint32_t to = planes + unit.eight / 2 * STEP + unit.eight % 2 * PLANE + row * 16;
#pragma unroll
        for (int r = 0; r < TAKEN; ++r) {
            const int l = run * TAKEN + r, own = l % OWN_L;
            const uint32_t there = away(w, l / OWN_L), full = w.full_x(stage);
            uint32_t big[4], small[4];
#pragma unroll
            for (int t = 0; t < 4; ++t) split(x[t][r] * scale[r], x[t + 4][r] * scale[r], big[t], small[t]);
            const auto store = [&](const uint32_t* half, int at) {
                store_in_team(to + own * X_L + at, there, make_uint4(half[0], half[1], half[2], half[3]), full);
            };
            store(big, 0);
            if (HALVES == 2) store(small, 2 * PLANE);
            constexpr int SAME = (OWN_L == 2 || OWN_L == 4) && TAKEN % OWN_L == 0 ? OWN_L : 1;  // l of one owner
            if (r % SAME == 0 && unit.eight == 0)
                send_scales<SAME>(planes + SCALES_AT + (row * OWN_L + own) * 4, there, back + r, full);
        }
    }
};

// ---- multiply ----
using Products = float[COLUMNS / 2];

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int m = 0; m < MINE; ++m)
#pragma unroll
        for (int n = 0; n < COLUMNS / 2; ++n) sums[m][n] = 0.0f;
}

// Whether registers allow for sums that are kept until they have been sent: 32 are for all else.
constexpr bool KEEPS = COLUMNS / 2 * (2 * MINE + SETS) <= MULTIPLY_REGISTERS - 32;

// Take the factor's scale back: fp32 [l][column], where a thread's four columns of 16 lie side by side. Returns a word
// that depends on all that was read.
__device__ __forceinline__ uint32_t scale_back(Sums& sums, uint32_t first, const Consumer& me) {
    const uint32_t scales = first +
                            (me.first_l() * PASS_COLUMNS + (BY_COLUMNS ? me.who * COLUMNS : 0) + me.lane % 4 * 4) * 4;
    uint32_t read = 0;
#pragma unroll
    for (int l = 0; l < MINE; ++l)
#pragma unroll
        for (int q = 0; q < COLUMNS / 16; ++q) {
            const uint4 four = read_16_bytes(scales + (l * PASS_COLUMNS + 16 * q) * 4);
            const uint32_t by[4] = {four.x, four.y, four.z, four.w};
            read ^= four.x;
#pragma unroll
            for (int v = 0; v < 4; ++v) {
                float* sum = sums[l] + 8 * q + v / 2 * 4 + v % 2;
                sum[0] *= __uint_as_float(by[v]), sum[2] *= __uint_as_float(by[v]);
            }
        }
    return read;
}

__device__ __forceinline__ void finish(Sums& sums, const Work& w, const Consumer& me, const Pass& of) {
    if (w.out.bias) add_bias(sums, w, me, of);
    if (w.out.activation != ACTIVATION_NONE && !w.out.residual) apply_activation(sums, w);
}

// Where 4 j of an l and a row of the block's lie among what is exchanged, the t-th of the q-th 16 of a part: so that
// neither those who store nor those who read meet in a bank.
constexpr int Y_SIXTEEN = OWN_ROWS * 64, Y_L = PART / 16 * Y_SIXTEEN;  // bytes from 16 j to the next, and from an l
__device__ __forceinline__ uint32_t y_offset(int l, int row, int q, int t) {
    return l * Y_L + q * Y_SIXTEEN + (row ^ ((l / 4 + q) & 1)) * 64 + t * 16;
}

// Send a part of all rows, each to the block that owns it, which may be this one.
__device__ __forceinline__ void send(const Sums& sums, int q, const Work& w, Ring& ring, const Consumer& me) {
    barrier_wait(w.empty_y(ring.stage), ring.phase ^ 1);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int first = me.warp * 16 + h * 8, row = (first + me.lane / 4) % OWN_ROWS;
        const uint32_t there = away(w, first / OWN_ROWS), barrier = w.full_y(ring.stage);
#pragma unroll
        for (int m = 0; m < MINE; ++m) {
            const float* from = sums[m] + 8 * q + 2 * h;
            const int l = w.rank * OWN_L + me.first_l() + m;
            const uint32_t to = w.y_at + ring.stage * Y_STAGE + y_offset(l, row, BY_COLUMNS ? me.who : 0, me.lane % 4);
            store_in_team(to, there,
                          make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[4]),
                                     __float_as_uint(from[5])),
                          barrier);
        }
        if (!there) barrier_arrive(barrier);
    }
    ring.next(w.y_stages);
}

// Start the products of a stage's l; small ones first, while the sum is small.
__device__ __forceinline__ void start(Products& t, uint32_t x, uint32_t weights) {
    const auto product = [&](int step, int half_of_x, int half_of_weights, bool add) {
        const uint32_t from = x + (step * STEP + half_of_x * 2 * PLANE) / 16;
        const uint32_t by = weights + (step * W_STEP + half_of_weights * 2 * W_PLANE) / 16;
        multiply_add<COLUMNS, 0>(t, operand_at(from, PLANE), operand_at(by, W_PLANE), add, __half());
    };
    products_begin();
#pragma unroll
    for (int step = 0; HALVES == 2 && step < STEPS; ++step) product(step, 1, 0, step > 0), product(step, 0, 1, true);
#pragma unroll
    for (int step = 0; step < STEPS; ++step) product(step, 0, 0, HALVES == 2 || step > 0);
    products_commit();
}

// Add a stage's products of an l to the sums, once they are done; PENDING later ones may not be. Returns a word that
// depends on what was read.
template <int PENDING>
__device__ __forceinline__ uint32_t add(Products& sums, Products& t, const float (&back)[2]) {
    products_wait<PENDING>();
#pragma unroll
    for (int n = 0; n < COLUMNS / 2; ++n) is_changed(t[n]);  // not to be read any earlier
#pragma unroll
    for (int n = 0; n < COLUMNS / 2; ++n) sums[n] = fmaf(t[n], back[n / 2 % 2], sums[n]);
    return __float_as_uint(back[0]) ^ __float_as_uint(back[1]);
}

// Send what the sums are of.
__device__ __forceinline__ void send_all(const Sums& sums, int parts, const Work& w, Ring& ring, const Consumer& me) {
#pragma unroll
    for (int q = 0; q < PARTS; ++q)
        if (q < parts) send(sums, q, w, ring, me);
}

// One pass over the planes of a tile. Meanwhile `parts` of what was done before are sent: one with the products of each
// l of a stage, or if they lie where the new sums will, all with the first.
__device__ __forceinline__ void multiply(Sums& sums, Sums& done, int parts, const Work& w, Rings& rings,
                                         const Consumer& me, const Pass& pass) {
    const uint32_t x_first = units_of(w.x_at + me.first_l() * X_L);
    const uint32_t w_first = units_of(w.w_at + me.who * (BY_COLUMNS ? COLUMNS * 16 : MINE * W_L));
    const uint32_t first_scale = w.x_at + SCALES_AT + ((me.warp * 16 + me.lane / 4) * OWN_L + me.first_l()) * 4;
    Ring &xs = rings.x, &ws = rings.w;
    Products t[SETS];
    float back[SETS][2];
#pragma unroll
    for (int set = 0; set < SETS; ++set)
#pragma unroll
        for (int n = 0; n < COLUMNS / 2; ++n) is_overwritten(t[set][n]);
    int w_stage = 0;
    const auto stage = [&](int s, int part) {  // `part` is the first that is sent
        if (pass.await_w) barrier_wait(w.full_w(ws.stage), ws.phase);
        const int x_stage = xs.stage;
        const bool last = s + 1 == w.stages;
        uint32_t read = 0;  // of the planes
        w_stage = ws.stage;
#pragma unroll
        for (int m = 0; m < MINE; ++m) {
            const int set = m % SETS;
            start(t[set], x_first + (x_stage * X_STAGE + m * X_L) / 16, w_first + (w_stage * W_STAGE + m * W_L) / 16);
            const uint32_t scale = first_scale + x_stage * X_STAGE + m * 4;
            back[set][0] = read_float(scale), back[set][1] = read_float(scale + 8 * OWN_L * 4);
            if (KEEPS && part + m < min(parts, PARTS)) send(done, part + m, w, rings.y, me);
            if (!KEEPS && part + m == 0) {
                send_all(sums, parts, w, rings.y, me);
                clear(sums);
            }
            if (m + 1 == MINE) {
                xs.next(w.x_stages), ws.next(w.w_stages, pass.free_w);
                if (pass.await_x && !last) await_planes(w, xs);  // while these products run
            }
            if (SETS == 2 && m > 0) read ^= add<1>(sums[m - 1], t[(m - 1) % SETS], back[(m - 1) % SETS]);
            if (SETS == 1 || m + 1 == MINE) read ^= add<0>(sums[m], t[set], back[set]);
        }
        if (!last) me.give_back_weights(w, pass, w_stage);  // the last have the scales, too
        me.give_back_x(w, pass, x_stage, read);
    };
    if (pass.await_x) await_planes(w, xs);
    constexpr int SENDING = KEEPS ? (PARTS + MINE - 1) / MINE : 1;  // stages
#pragma unroll
    for (int s = 0; s < SENDING; ++s) {
        if (s < w.stages) {
            stage(s, s * MINE);
        } else {
#pragma unroll
            for (int part = s * MINE; part < min(PARTS, (s + 1) * MINE); ++part)
                if (part < parts) send(done, part, w, rings.y, me);
        }
    }
#pragma unroll 1
    for (int s = SENDING; s < w.stages; ++s) stage(s, PARTS);
    me.give_back_weights(w, pass, w_stage, scale_back(sums, w.scales_at + w_stage * W_SCALES, me));
}

__device__ __forceinline__ void consume(const Work& w, const Consumer& me) {
    Rings rings;
    Sums sums, done;
    int parts = 0;
    clear(sums);
    take_turns(w, rings, [&](const Pass& pass) {
        multiply(sums, done, parts, w, rings, me, pass);
        parts = w.parts(pass.pass);
        finish(sums, w, me, pass);
        if constexpr (KEEPS) {
#pragma unroll
            for (int m = 0; m < MINE; ++m)
#pragma unroll
                for (int n = 0; n < COLUMNS / 2; ++n) done[m][n] = sums[m][n];
            clear(sums);
        }
    });
    send_all(KEEPS ? done : sums, parts, w, rings.y, me);
}

// ---- write ----
// What a thread that writes has of a part: 4 j of 16, which lie side by side or are every fourth.
struct Share {
    int l, j, sixteen, fourth;

    __device__ __forceinline__ explicit Share(int thread)
        : l(thread / 4 % RUNS * RUN), sixteen(thread / (4 * RUNS) % (PART / 16)), fourth(thread % 4) {
        j = sixteen * 16 + fourth * (STRIDED ? 1 : 4);
    }

    // Read a row, in the order (j, l), from where parts lie.
    __device__ __forceinline__ void read(uint4 (&vectors)[VECTORS], uint32_t from, int row) const {
        uint32_t words[4 * RUN];
#pragma unroll
        for (int r = 0; r < RUN; ++r) {
            const uint4 v = read_16_bytes(from + y_offset(l + r, row, sixteen, fourth));
            words[r] = v.x, words[RUN + r] = v.y, words[2 * RUN + r] = v.z, words[3 * RUN + r] = v.w;
        }
#pragma unroll
        for (int v = 0; v < VECTORS; ++v)
            vectors[v] = make_uint4(words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3]);
    }
};

extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS, 1)
ks_matmul_exchange_halves(const __grid_constant__ TensorMap x_map, const char* __restrict__ weights,
                          const char* __restrict__ scales, const float* __restrict__ bias, const float* residual,
                          float* y, const int* __restrict__ count, int rows, int a, int b, int c, int d, int activation,
                          float negative_slope, int raw_stages, int x_stages, int w_stages, int y_stages,
                          int together) {
    const Arguments arguments{weights, scales, {bias, residual, y, activation, negative_slope}, count, rows, a, b, c, d,
                              raw_stages, x_stages, w_stages, y_stages, together};
    as_a_team<Taker, Share>(arguments, x_map, consume);
}
