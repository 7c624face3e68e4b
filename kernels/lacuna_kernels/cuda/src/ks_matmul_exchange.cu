// A Kronecker-sparse factor with d > 1, batch-size-first, 16 bits, on Hopper (see ks_matmul.cuh).
//
// x has l fastest, while the tensor cores want k fastest: the x of every l must become a plane [row][k] of its own. One
// block has no room for the planes of all l of a whole sector of memory with so many rows that weights are read
// seldom (ks_matmul_planes.cu tries). So a team of TEAM blocks (a cluster) takes L neighbouring l of one i and ROWS
// rows at a time. Each block owns OWN_L of the l, all rows of which it multiplies, and OWN_ROWS of the rows, all l of
// which it reads and writes, in whole runs. Between the two the blocks store in each other's shared memory. In a block
//   bring       one thread: bulk copies of the x of its rows, as it is, and of the packed weights of its l
//   take apart  two to four warps: 8 k of TAKEN l of one row are loads, byte permutes, and a 16-byte store to the
//               plane of each l, in the block that owns it, in the order of the matrices that the products read.
//               Where a stage has work for half of them, they are two crews that have every other stage
//   multiply    GROUPS warpgroups: planes [64 rows][16 k] times weights [16 k][COLUMNS j]. Sums are rounded, and sent
//               to the owners of the rows while the tensor cores work on the next columns
//   write       the other warps of seven: 4 j of RUN l of one row are put back in the order of y
// Weights that fit stay in shared memory; otherwise they stream past for every tile of rows, from the second-level
// cache. Planes that fit are kept until all columns have been multiplied by them; otherwise x comes again for every
// pass.
//
// With a residual, the sums with the bias are rounded to ELEMENT before the residual is added.
#ifndef TEAM
#define ELEMENT __half
#define TEAM 8        // blocks of a cluster
#define OWN_L 2       // l of a block
#define COLUMNS 128   // j of a product
#define GROUPS 2      // warpgroups that multiply
#define STEPS 2       // of 16 k in a stage
#define TAKERS 64     // threads that take x apart, of 224: the others write
#define TAKEN 8       // neighbouring l that they take at once
#define WHOLE 0       // whether the team's l are all of d, so that (k, l) of one row are contiguous
#define PIECE 32      // bytes of a row of x that lie together as they come
#define APART_REGISTERS 112
#define BRING_REGISTERS 96
#define MULTIPLY_REGISTERS 152
#endif

#include "exchange_roles.cuh"

// ---- take apart ----
// A word of elements e and f of what vectors of 8 hold: side by side, whichever half of a word they are in.
__device__ __forceinline__ uint32_t pair_of(const uint32_t* words, int e, int f) {
    return __byte_perm(words[e / 2], words[f / 2], (e % 2 ? 0x32 : 0x10) | (f % 2 ? 0x7600 : 0x5400));
}

// A thread that takes x apart.
struct Taker {
    static constexpr bool KEEPS_PLACE = UNITS_EACH == 1 && TAKES < 3;  // if there are registers
    const Work& w;
    int thread;

    // From where a unit of x starts, in a stage, to the planes of a stage, of all who own some of the l.
    __device__ __forceinline__ void take(const Unit& unit, int run, int phase, uint32_t start, int stage) const {
        const uint32_t to = w.x_at + stage * X_STAGE + unit.eight / 2 * STEP + unit.eight % 2 * PLANE +
                            (w.rank * OWN_ROWS + unit.row) * 16;
        uint32_t words[TAKEN * 4];
        if constexpr (TAKEN < RUN) {
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                const uint2 v = read_8_bytes(piece_of_x(start, run, phase, k));
                words[2 * k] = v.x, words[2 * k + 1] = v.y;
            }
        } else {
#pragma unroll
            for (int m = 0; m < TAKEN; ++m) {
                const uint4 v = read_16_bytes(piece_of_x(start, run, phase, m));
                words[4 * m] = v.x, words[4 * m + 1] = v.y, words[4 * m + 2] = v.z, words[4 * m + 3] = v.w;
            }
        }
#pragma unroll
        for (int r = 0; r < TAKEN; ++r) {
            const int l = run * TAKEN + r;
            uint32_t pairs[4];
#pragma unroll
            for (int m = 0; m < 4; ++m) pairs[m] = pair_of(words, 2 * m * TAKEN + r, (2 * m + 1) * TAKEN + r);
            store_in_team(to + l % OWN_L * 2 * PLANE, away(w, l / OWN_L),
                          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]), w.full_x(stage));
        }
    }
};

// ---- multiply ----
using Rounded = uint4[MINE][PARTS][2];  // 8 j of rows lane / 4, and 8 more

// A thread's sums of 8 j of a row.
__device__ __forceinline__ uint4 eight_of(const float* from) {
    const auto two = [&](int m) { return pack(from[4 * m], from[4 * m + 1], Element()); };
    return make_uint4(two(0), two(1), two(2), two(3));
}

__device__ __forceinline__ void finish(Rounded& rounded, Sums& sums, const Work& w, const Consumer& me,
                                       const Pass& of) {
    if (w.out.bias) add_bias(sums, w, me, of);
    if (w.out.activation != ACTIVATION_NONE && !w.out.residual) apply_activation(sums, w);
#pragma unroll
    for (int m = 0; m < MINE; ++m)
#pragma unroll
        for (int q = 0; q < PARTS; ++q)
#pragma unroll
            for (int h = 0; h < 2; ++h) rounded[m][q][h] = eight_of(sums[m] + 16 * q + 2 * h);
}

// Where y of an l, a row of the block's and 8 j lies among what is exchanged: so that neither those who store nor those
// who read meet in a bank.
constexpr unsigned EIGHTS = PART / 8, Y_L = OWN_ROWS * EIGHTS * 16;  // bytes from an l to the next
__device__ __forceinline__ uint32_t y_offset(unsigned l, unsigned row, unsigned eight) {
    if (BY_COLUMNS) return l * Y_L + row * (EIGHTS * 16) + (eight ^ (row & 1) * 4) * 16;
    return l * Y_L + (RUN == 8 ? row ^ (l / 8 & 1) : row) * (EIGHTS * 16) + eight * 16;
}

// Where a thread's sums of two rows go: to the blocks that own them, which may be this one.
struct Sender {
    uint32_t to[2], away[2];
    int next_eight, aside;  // the first l of the next 8, counted from the first, and how places move there

    __device__ __forceinline__ Sender(const Work& w, const Consumer& me) {
        const int eight = (BY_COLUMNS ? me.who * 4 : 0) + me.lane % 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int first = me.warp * 16 + h * 8, row = first + me.lane / 4;
            away[h] = ::away(w, first / OWN_ROWS);
            to[h] = w.y_at + y_offset(w.rank * OWN_L + me.first_l(), row % OWN_ROWS, eight) + away[h];
        }
        const int l = w.rank * OWN_L + me.first_l(), odd = (me.lane / 4 ^ l / 8) & 1;
        next_eight = 8 - l % 8, aside = odd ? -int(EIGHTS * 16) : int(EIGHTS * 16);
    }

    // From the first l to another.
    __device__ __forceinline__ uint32_t to_l(int m) const {
        constexpr bool CROSSED = !BY_COLUMNS && RUN == 8 && 8 % MINE;  // l / 8 may change
        static_assert(!CROSSED || MINE < 8, "once");
        return m * Y_L + (CROSSED && m >= next_eight ? aside : 0);
    }

    // Send a part of all rows.
    __device__ __forceinline__ void send(const Rounded& rounded, int q, const Work& w, Ring& ring) const {
        barrier_wait(w.empty_y(ring.stage), ring.phase ^ 1);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t place = to[h] + ring.stage * Y_STAGE, barrier = w.full_y(ring.stage) + away[h];
            if (away[h]) {
#pragma unroll
                for (int m = 0; m < MINE; ++m) store_there(place + to_l(m), rounded[m][q][h], barrier);
            } else {
#pragma unroll
                for (int m = 0; m < MINE; ++m) write_16_bytes(place + to_l(m), rounded[m][q][h]);
                barrier_arrive(barrier);
            }
        }
        ring.next(w.y_stages);
    }
};

// One pass over the planes of a tile. Meanwhile `parts` of what was done before are sent.
__device__ __forceinline__ void multiply(Rounded& rounded, int parts, const Work& w, Rings& rings, const Consumer& me,
                                         const Sender& sender, const Pass& pass) {
    const uint32_t x_first = units_of(w.x_at + me.first_l() * 2 * PLANE);
    const uint32_t w_first =
        units_of(w.w_at + me.first_l() * 2 * W_PLANE + (BY_COLUMNS ? me.who * COLUMNS * 16 : 0));
    Ring &xs = rings.x, &ws = rings.w;
    Sums sums;
#pragma unroll
    for (int m = 0; m < MINE; ++m)
#pragma unroll
        for (int n = 0; n < COLUMNS / 2; ++n) is_overwritten(sums[m][n]);
    int x_before = 0, w_before = 0, awaited = pass.await_x ? w.stages : 1;
    const auto stage = [&](bool first) {
        if (pass.await_w) barrier_wait(w.full_w(ws.stage), ws.phase);
        const uint32_t x = x_first + xs.stage * (X_STAGE / 16), weights = w_first + ws.stage * (W_STAGE / 16);
        products_begin();
#pragma unroll
        for (int step = 0; step < STEPS; ++step)
#pragma unroll
            for (int m = 0; m < MINE; ++m)
                multiply_add<COLUMNS, 0>(sums[m], operand_at(x + (step * STEP + m * 2 * PLANE) / 16, PLANE),
                                         operand_at(weights + (step * W_STEP + m * 2 * W_PLANE) / 16, W_PLANE),
                                         !first || step, Element());
        products_commit();
        products_wait<1>();
        if (!first) me.give_back_weights(w, pass, w_before), me.give_back_x(w, pass, x_before);
        x_before = xs.stage, w_before = ws.stage;
        xs.next(w.x_stages), ws.next(w.w_stages, pass.free_w);
        if (--awaited > 0) await_planes(w, xs);  // while these products run
    };
    if (pass.await_x) await_planes(w, xs);
#pragma unroll
    for (int q = 0; q < PARTS; ++q) {
        if (q < w.stages) stage(q == 0);
        if (q < parts) sender.send(rounded, q, w, rings.y);
    }
#pragma unroll 1
    for (int s = PARTS; s < w.stages; ++s) stage(false);
    products_wait<0>();
    me.give_back_weights(w, pass, w_before), me.give_back_x(w, pass, x_before);
    finish(rounded, sums, w, me, pass);
}

__device__ __forceinline__ void consume(const Work& w, const Consumer& me) {
    const Sender sender(w, me);
    Rings rings;
    Rounded rounded;
    int parts = 0;
    take_turns(w, rings, [&](const Pass& pass) {
        multiply(rounded, parts, w, rings, me, sender, pass);
        parts = w.parts(pass.pass);
    });
#pragma unroll
    for (int q = 0; q < PARTS; ++q)
        if (q < parts) sender.send(rounded, q, w, rings.y);
}

// ---- write ----
// What a thread that writes has of a part: half of one of its eights of j, 4 that lie side by side or are every fourth.
struct Share {
    int l, j, eight, half;

    __device__ __forceinline__ explicit Share(int thread) : l(VECTOR * (thread % RUNS)) {
        const int place = thread / RUNS % FOURS;
        if (STRIDED) {  // neighbours have neighbouring j
            half = place / 4 % 2, eight = place / 8 * 4 + place % 4;
            j = eight / 4 * 32 + eight % 4 + half * 16;
        } else {
            half = place % 2, eight = place / 2;
            j = eight * 8 + half * 4;
        }
    }

    // Read a row, in the order (j, l), from where parts lie.
    __device__ __forceinline__ void read(uint4 (&vectors)[VECTORS], uint32_t from, int row) const {
        const uint32_t at = from + y_offset(l, row, eight) + half * 8;
        uint32_t words[RUN * 2];
#pragma unroll
        for (int r = 0; r < RUN; ++r) {
            const uint2 both = read_8_bytes(at + r * Y_L);
            words[2 * r] = both.x, words[2 * r + 1] = both.y;
        }
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            uint32_t pairs[4];
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const int e = 8 * v + 2 * m, f = e + 1;
                pairs[m] = pair_of(words, e % RUN * 4 + e / RUN, f % RUN * 4 + f / RUN);
            }
            vectors[v] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
};

extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS, 1)
ks_matmul_exchange(const __grid_constant__ TensorMap x_map, const char* __restrict__ weights,
                   const float* __restrict__ bias, const Element* residual, Element* y, const int* __restrict__ count,
                   int rows, int a, int b, int c, int d, int activation, float negative_slope, int raw_stages,
                   int x_stages, int w_stages, int y_stages, int together) {
    const Arguments arguments{weights, nullptr, {bias, residual, y, activation, negative_slope}, count, rows, a, b, c, d,
                              raw_stages, x_stages, w_stages, y_stages, together};
    as_a_team<Taker, Share>(arguments, x_map, consume);
}
