// What the threads of a team of ks_matmul_exchange.cu and ks_matmul_exchange_halves.cu do, as far as they do the same:
// bring x and weights, add the bias and apply the activation; and the order of all work. How y is written:
// exchange_out.cuh.
#pragma once

#include "exchange.cuh"
#include "exchange_out.cuh"

// What is to be copied into a ring of stages, stage after stage.
struct Feed {
    const int stages;
    Ring ring;

    // Whether the next stage is empty: it may be asked again and again.
    __device__ __forceinline__ bool is_free(uint32_t empty) const {
        return barrier_is_over(empty + 8 * ring.stage, ring.phase ^ 1);
    }
};

// The x of a team's tiles.
struct FeedX : Feed {
    const Work& w;
    Tile at;
    int again = 0, stage = 0;  // the next

    __device__ __forceinline__ explicit FeedX(const Work& w) : Feed{w.raw_stages}, w(w), at(w) {}

    __device__ __forceinline__ bool is_there() const { return at.is_there(w); }

    // Start a copy if there is one left, and room for it; returns whether.
    __device__ __forceinline__ bool copy(const TensorMap& x) {
        constexpr int STAGE_PIECES = WHOLE ? STAGE_K * L * SIZE / PIECE : STAGE_K;
        if (!is_there() || !is_free(w.empty_raw(0))) return false;
        const uint32_t full = w.full_raw(ring.stage);
        barrier_expect(full, RAW_STAGE);
        copy_in(w.raw_at + ring.stage * RAW_STAGE, x,
                {at.l(w), at.tile * ROWS + w.rank * OWN_ROWS, stage * STAGE_PIECES, at.i(w)}, full);
        ring.next(stages);
        if (++stage == w.stages) {
            stage = 0;
            if (++again == w.times()) again = 0, at.next(w);
        }
        return true;
    }
};

// The weights of a team's tiles: of every tile, unless all weights of a chunk stay.
struct FeedWeights : Feed {
    const Work& w;
    Tile at;
    int stage = 0;  // the next

    __device__ __forceinline__ explicit FeedWeights(const Work& w) : Feed{w.w_stages}, w(w), at(w) {}

    __device__ __forceinline__ bool is_there() const { return at.is_there(w); }

    __device__ __forceinline__ bool copy() {
        if (!is_there() || !is_free(w.empty_w(0))) return false;
        const int all = w.stages * w.passes;
        const uint32_t full = w.full_w(ring.stage);
        const Index from = (Index(at.chunk()) * TEAM + w.rank) * all + stage;
        const bool last = SPLIT && (stage + 1) % w.stages == 0;
        barrier_expect(full, last ? W_STAGE + W_SCALES : W_STAGE);
        copy_in(w.w_at + ring.stage * W_STAGE, w.weights + from * W_STAGE, W_STAGE, full);
        if (last)
            copy_in(w.scales_at + ring.stage * W_SCALES, w.scales + from / w.stages * W_SCALES, W_SCALES, full);
        ring.next(stages);
        if (++stage == all) {
            stage = 0;
            const int chunk = at.chunk();
            do at.next(w);
            while (w.resident && at.is_there(w) && at.chunk() == chunk);
        }
        return true;
    }
};

// One thread copies both, whichever there is room for.
__device__ __forceinline__ void bring(const Work& w, const TensorMap& x) {
    FeedX feed_x(w);
    FeedWeights feed_w(w);
#pragma unroll 1
    while (feed_x.is_there() || feed_w.is_there()) {
        const bool x_came = feed_x.copy(x), weights_came = feed_w.copy();
        if (!x_came && !weights_came) __nanosleep(32);  // not to take turns from others
    }
}

// A unit of a stage of x: 8 k of TAKEN l of a row. Neighbouring threads have neighbouring rows; where values are split,
// a warp has all k of its rows.
struct Unit {
    int row, eight, run;  // of the block's rows, of 8 k, of TAKEN l

    __device__ __forceinline__ explicit Unit(int unit)
        : row(SPLIT ? unit % 8 + unit / (16 * STEPS) % (OWN_ROWS / 8) * 8 : unit % OWN_ROWS),
          eight(SPLIT ? unit / 8 % (2 * STEPS)
                      : unit / OWN_ROWS % STEPS * 2 + unit / (OWN_ROWS * STEPS) % 2),
          run(unit / (2 * OWN_ROWS * STEPS)) {}

    __device__ __forceinline__ bool is(int of_run, int phase) const { return run == of_run && eight % PHASES == phase; }

    // Where in a stage of x the first of PHASES eights is.
    __device__ __forceinline__ uint32_t start() const {
        return swizzled<PIECE>(row * PIECE) + eight / PHASES * (PHASES * EIGHT / CHUNKS * OWN_ROWS * PIECE);
    }
};

// Where piece m of a unit is, from `start` in a stage on: the TAKEN l of one k, or 16 bytes of what lies side by side.
__device__ __forceinline__ uint32_t piece_of_x(uint32_t start, int run, int phase, int m) {
    const int element = phase * 8 * L + (TAKEN == L ? m * VECTOR : m * L + run * TAKEN), v = element / VECTOR;
    return (start ^ v % CHUNKS * 16) + v / CHUNKS * (OWN_ROWS * PIECE) + element % VECTOR * SIZE;
}

// Take this thread's units of a stage apart.
template <class Taker>
__device__ __forceinline__ void take_units(const Work& w, const Taker& taker, int in, int out) {
#pragma unroll 1
    for (int u = 0; u < UNITS_EACH; ++u) {
        const Unit unit((Taker::KEEPS_PLACE ? taker.thread : hidden(taker.thread)) + u * CREW);
        const uint32_t start = w.raw_at + in * RAW_STAGE + unit.start();
#pragma unroll
        for (int run = 0; run < TAKES; ++run)  // what follows from it is known beforehand
#pragma unroll
            for (int phase = 0; phase < PHASES; ++phase)
                if (unit.is(run, phase)) taker.take(unit, run, phase, start, out);
    }
}

// Take stages of x apart. Rings are multiples of CREWS, so that a crew always has the same stages of them: a thread has
// to see every phase of the barriers it waits for.
template <class Taker>
__device__ __forceinline__ void take_apart(const Work& w, const Taker& taker) {
    const int crew = threadIdx.x / CREW;
    if (crew >= CREWS) return;
    int left = -crew;
    for (Tile at(w); at.is_there(w); at.next(w)) left += w.times() * w.stages;
    Ring in, out;
    const auto go_on = [&](int by) {
        for (int s = 0; s < by; ++s) in.next(w.raw_stages), out.next(w.x_stages);
    };
#pragma unroll 1
    for (go_on(crew); left > 0; left -= CREWS, go_on(CREWS)) {
        barrier_wait(w.full_raw(in.stage), in.phase);
        barrier_wait(w.empty_x(out.stage), out.phase ^ 1);
        take_units(w, taker, in.stage, out.stage);
        barrier_arrive(w.empty_raw(in.stage));
        barrier_arrive(w.full_x(out.stage));  // what is for this block
    }
}

// Wait for a stage of planes; what was stored there the products may read from now on.
__device__ __forceinline__ void await_planes(const Work& w, const Ring& xs) {
    barrier_wait(w.full_x(xs.stage), xs.phase);
    publish_shared();
}

// An address as a descriptor has it, in units of 16 bytes: there is room for all of a block's memory, but not for the
// block's rank, which addresses have further up.
__device__ __forceinline__ uint32_t units_of(uint32_t address) { return address >> 4 & 0x3fff; }
__device__ __forceinline__ uint64_t operand_at(uint32_t units, uint32_t next_k) {
    return operand(0, next_k, 128) | units;
}

// Go through all passes of all tiles.
template <class Multiply>
__device__ __forceinline__ void take_turns(const Work& w, Rings& rings, Multiply multiply) {
    for (Tile at(w); at.is_there(w); at.next(w)) {
        const Ring start = rings.x;
        const bool new_weights = !w.resident || at.begins_chunk(w), free_w = !w.resident || at.ends_chunk(w);
#pragma unroll 1
        for (int pass = 0; pass < w.passes; ++pass) {
            if (w.keeps) rings.x = start;
            multiply(Pass{at, pass, pass == 0 || !w.keeps, new_weights, pass + 1 == w.passes || !w.keeps, free_w});
        }
    }
}

// Column 8 n + 2 t + e of the product, t = lane % 4, n = N q + m for N = PART / SHARES / 8, is j = PART q + 8 m + 4 e +
// t if STRIDED, else PART q + 2 N t + 2 m + e; PART / SHARES j further on in the next warpgroup, if they differ in
// columns.
constexpr int EIGHTS_OF_PART = PART / SHARES / 8;
__device__ __forceinline__ int column_of(const Consumer& me, int n, int e) {
    const int t = me.lane % 4, m = n % EIGHTS_OF_PART, first = BY_COLUMNS ? me.who * (PART / SHARES) : 0;
    return n / EIGHTS_OF_PART * PART + first + (STRIDED ? 8 * m + 4 * e + t : 2 * EIGHTS_OF_PART * t + 2 * m + e);
}

// A thread's sums of each l, as the products give them.
using Sums = float[MINE][COLUMNS / 2];

__device__ __forceinline__ void add_bias(Sums& sums, const Work& w, const Consumer& me, const Pass& of) {
    const int i = hidden(of.place.i(w));  // or else it is worked out without a bias too
    const int l = of.place.l(w) + w.rank * OWN_L + me.first_l();
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int j = of.pass * PASS_COLUMNS + column_of(me, n, e);
#pragma unroll
            for (int m = 0; m < MINE; ++m) {
                const bool there = j < w.b && l + m < w.d;
                const float add = there ? w.out.bias[(Index(i) * w.b + j) * w.d + l + m] : 0.0f;
                sums[m][4 * n + e] += add, sums[m][4 * n + 2 + e] += add;
            }
        }
}

// One at a time, the others moving up, as registers cannot be indexed in a loop and code for all would be long.
__device__ __forceinline__ void apply_activation(Sums& sums, const Work& w) {
#pragma unroll 1
    for (int turn = 0; turn < COLUMNS / 2; ++turn)
#pragma unroll
        for (int m = 0; m < MINE; ++m) {
            const float first = activate(sums[m][0], w.out.activation, w.out.negative_slope);
#pragma unroll
            for (int n = 0; n + 1 < COLUMNS / 2; ++n) sums[m][n] = sums[m][n + 1];
            sums[m][COLUMNS / 2 - 1] = first;
        }
}

// What the threads of a block do: take x apart, bring, write and multiply.
template <class Taker, class Share, class Consume>
__device__ __forceinline__ void as_a_team(const Arguments& arguments, const TensorMap& x, Consume consume) {
    const uint32_t at = hidden(dynamic_shared());  // or else it would be asked for again and again
    const int warp_in_block = warp_of_block(), role = warp_in_block / 4, warp = warp_in_block % 4;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) start_barriers(Work(arguments, at));
    __syncthreads();
    meet_team();
    static_assert(APART_REGISTERS + BRING_REGISTERS + GROUPS * MULTIPLY_REGISTERS <= THREADS / 128 * START_REGISTERS,
                  "or else they would wait for registers forever");
    const auto write_all = [&](int thread) {
        const Work w(arguments, at);
        write(w, Writer<Share>(w, thread));
    };
    if (role == 0) {
        take_registers<APART_REGISTERS, START_REGISTERS>();
        if (threadIdx.x >= TAKERS) {
            write_all(threadIdx.x - TAKERS);
        } else {
            const Work w(arguments, at);
            take_apart(w, Taker{w, int(threadIdx.x) % CREW});
        }
    } else if (role == 1) {
        take_registers<BRING_REGISTERS, START_REGISTERS>();
        if (warp > 0)
            write_all(threadIdx.x - 32 - TAKERS);
        else if (lane == 0)
            bring(Work(arguments, at), x);
    } else {
        take_registers<MULTIPLY_REGISTERS, START_REGISTERS>();
        consume(Work(arguments, at), Consumer{role - 2, lane, warp});
    }
    __syncwarp();
    meet_team();  // nobody leaves while others still store or arrive here
}
