// How the threads of a team write y, part after part, from where its sums were sent: of ks_matmul_exchange.cu and
// ks_matmul_exchange_halves.cu, whose Share says what of a part a thread has.
#pragma once

#include "exchange.cuh"
#include "residual.cuh"

constexpr int FOURS = PART / 4, VECTORS = RUN * SIZE / 4;  // of a part; of 16 bytes in 4 j of RUN l

// Two neighbouring threads have VECTORS each of what lies side by side. Deal them out again, one to each in turn, so
// that they write whole sectors together.
constexpr bool DEALT = VECTORS > 4;  // or else it takes longer than it saves
__device__ __forceinline__ void deal_out(uint4 (&vectors)[VECTORS], bool odd) {
    constexpr int HALF = VECTORS / 2;
    const auto choose = [&](const uint4& if_odd, const uint4& if_even) {
        return make_uint4(odd ? if_odd.x : if_even.x, odd ? if_odd.y : if_even.y, odd ? if_odd.z : if_even.z,
                          odd ? if_odd.w : if_even.w);
    };
    const auto exchange = [](uint32_t word) { return __shfl_xor_sync(0xffffffff, word, 1); };
    uint4 kept[HALF], got[HALF];
#pragma unroll
    for (int v = 0; v < HALF; ++v) {
        const uint4 give = choose(vectors[2 * v], vectors[2 * v + 1]);
        got[v] = make_uint4(exchange(give.x), exchange(give.y), exchange(give.z), exchange(give.w));
        kept[v] = choose(vectors[2 * v + 1], vectors[2 * v]);
    }
#pragma unroll
    for (int v = 0; v < HALF; ++v) {
        vectors[v] = choose(got[v], kept[v]);
        vectors[HALF + v] = choose(kept[v], got[v]);
    }
}

// A thread that writes: its share of a part, 4 j of RUN neighbouring l, of every ROWS_APART-th row.
template <class Share>
struct Writer {
    static constexpr int PLACES = FOURS * RUNS, ROWS_APART = WRITERS * 32 / PLACES;
    static_assert(ROWS_APART > 0, "a thread stays at one place of the rows");
    static_assert(!DEALT || (RUNS == 1 && VECTORS % 2 == 0 && OWN_ROWS % (32 / FOURS) == 0 && WRITERS * 32 % FOURS == 0),
                  "warps stay together");
    const Work& w;
    const int thread, row;
    const bool odd;
    const Share share;
    Index start = 0;  // the thread's first element of y of a tile
    int rows = 0;     // of the block's that are there
    bool l_is_there = true;

    __device__ __forceinline__ Writer(const Work& w, int thread)
        : w(w), thread(thread), row(thread / PLACES), odd(thread % 2), share(thread) {}

    __device__ __forceinline__ void enter(const Tile& at) {
        const int first = at.tile * ROWS + w.rank * OWN_ROWS, l_of_tile = at.l(w);
        start = (((first + row) * Index(w.a) + at.i(w)) * w.b + share.j) * w.d + l_of_tile + share.l;
        if (DEALT && odd) start -= 4 * L - VECTOR;
        rows = row < ROWS_APART ? w.rows - first : 0;  // threads too many have none
        l_is_there = WHOLE || l_of_tile + share.l < w.d;
    }

    // Write a part, from j = `part` on.
    __device__ __forceinline__ void write(int part, int stage) const {
        const int left = w.b - part - share.j;  // unless they are every fourth, of 4 j, of 8 if DEALT, all or none
        const Index apart = STRIDED ? 4 * w.d : DEALT ? 2 * VECTOR : VECTOR, pitch = Index(w.a) * w.b * w.d;
        const bool wanted = left > 0 && l_is_there;
        if (!DEALT && !wanted) return;
        const int there = STRIDED ? min(VECTORS, (left + 3) / 4) : VECTORS;
        Index to = start + Index(part) * w.d;
#pragma unroll 1
        for (int mine = row; mine < OWN_ROWS && (DEALT || mine < rows); mine += ROWS_APART, to += ROWS_APART * pitch) {
            uint4 vectors[VECTORS];
            share.read(vectors, w.y_at + stage * Y_STAGE, mine);
            if (DEALT) {
                deal_out(vectors, odd);
                if (!wanted || mine >= rows) continue;
            }
            if (w.out.residual)
                add_residual(vectors, w.out.residual + to, apart, there, [&](auto& sums) {
#pragma unroll
                    for (float& sum : sums) sum = activate(sum, w.out.activation, w.out.negative_slope);
                });
            Element* y = w.out.y + to;
#pragma unroll
            for (int v = 0; v < VECTORS; ++v)
                if (v < there) write_out(y + v * apart, vectors[v]);
        }
    }
};

// Write y part after part.
template <class Share>
__device__ __forceinline__ void write(const Work& w, Writer<Share> writer) {
    Ring ring;
    for (Tile at(w); at.is_there(w); at.next(w)) {
        writer.enter(at);
        for (int pass = 0; pass < w.passes; ++pass) {
            const int parts = w.parts(pass);
            for (int q = 0; q < parts; ++q) {
                barrier_wait(w.full_y(ring.stage), ring.phase);
                if (writer.thread == 0) barrier_expect(w.full_y(ring.stage), Y_FROM_OTHERS);
                writer.write(pass * PASS_COLUMNS + q * PART, ring.stage);
                const int lane = writer.thread % 32;
                barrier_arrive(w.empty_y(ring.stage));  // for this block's stores all have read, for the others' a warp
                __syncwarp();
                if (lane < TEAM && lane != w.rank) arrive_there(in_block(w.empty_y(ring.stage), lane));
                ring.next(w.y_stages);
            }
        }
    }
}
