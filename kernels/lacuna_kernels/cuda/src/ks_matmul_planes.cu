// A Kronecker-sparse factor with d > 1, batch-size-first, 16 bits, on Hopper's tensor cores (see ks_matmul.cuh).
//
// x has l fastest, while the tensor cores want k fastest: the x of every l must become a plane [row][k] of its own. A
// block takes L neighbouring l of one i and ROWS rows at a time, and keeps four kinds of threads busy at once:
//   bring       two threads: bulk copies of x as it is (boxes of whole sectors) and of the packed weights, in two rings
//   transpose   a warpgroup: 8 k of PLANES l of one row are 16-byte loads, byte permutes, and a 16-byte store to each
//               plane, in the order of the matrices that the products read
//   multiply    two warpgroups: weights [64 j][16 k] times planes [TILE rows][16 k], the sums of PLANES l in
//               registers, so that a thread has neighbours of a row of y; they differ in l (OCTETS) or else in rows
// Weights that fit stay in shared memory for all rows; otherwise they stream past for every tile, from the second-level
// cache, as all blocks want the same ones at about the same time. Blocks of 64 j follow one another over the same
// planes.
#include "ks_matmul.cuh"
#include "planes.cuh"
#include "ring.cuh"

#ifndef DEPTH
#define DEPTH 16   // L
#define WHOLE 1    // whether that is all of d, so that (k, l) of one row are contiguous
#define TILE 32    // rows of a product
#define TRANSPOSER_REGISTERS 56
#define CONSUMER_REGISTERS 168
#endif

constexpr int L = DEPTH;
constexpr bool OCTETS = L == 16;                   // one octet of l for each consumer; else a tile of rows for each
constexpr int PLANES = OCTETS ? 8 : L;             // l of a consumer
constexpr int ROWS = OCTETS ? TILE : 2 * TILE;     // of a block
constexpr int GROUPS = OCTETS ? 4 : 8;             // of 8 rows, that a warpgroup transposes at once
constexpr int UNITS = ROWS / 8 > GROUPS ? ROWS / 8 / GROUPS : 1;
constexpr int SUBS = ROWS / 8 < GROUPS ? GROUPS / (ROWS / 8) : 1;  // steps of 16 k in a stage of x
constexpr int HALF = PLANES * 2 * TILE * 16, SUB = 2 * HALF, X_STAGE = SUBS * SUB;  // bytes
constexpr int PIECE = !WHOLE ? 2 * L : L == 3 ? 96 : L == 2 || L == 6 ? 64 : 128;   // bytes of a row together in a box
constexpr int W_GROUP = L * 256;                   // bytes of the weights for 8 j and 16 k
constexpr bool PAIRS = L < 8 || L == 12;           // the two rows of a thread's sums are neighbouring j
constexpr int OUT = PAIRS ? 2 * PLANES : PLANES, OUTS = PAIRS ? 1 : 2;  // elements that it writes together, how often
constexpr bool STAGED = L == 16 || L % 3 == 0;     // y is written through boxes: otherwise runs would be too short
constexpr bool SPREAD = OCTETS;                    // rows and j are dealt out so that threads do not meet in a bank
constexpr int ROW_STEP = SPREAD ? 4 : 1;           // from the first to the second column of a thread's sums
constexpr int Y_PIECE = L == 3 ? 32 : PIECE;       // bytes of a row together in a box of y
constexpr int SLAB_GROUPS = L == 3 ? 2 : 1;        // of 8 rows, in a box of y
constexpr int SLAB = SLAB_GROUPS * 8 * 64 * L * 2; // bytes
constexpr int EACH = L < 8 ? 2 : 1;                // of a consumer; or both share two
constexpr int THREADS = 512;                       // the transposers, those who bring, and two consumers
constexpr int BRINGER_REGISTERS = 40;
constexpr int MAX_STAGES = 40;                     // of a ring
// Shared memory: barriers, y, raw x, weights, planes.
constexpr int Y_AT = 2048, RAW_AT = Y_AT + (STAGED ? 2 * EACH * SLAB : 0);

using Output = Words<OUT / 2>;

struct Arguments {
    const Element* weights;
    const float* bias;
    const Element* residual;
    Element* y;
    const int* count;
    int rows_max, a, b, c, d, activation;
    float negative_slope;
    int raw_stages, x_stages, w_stages, tiles_per_item, chunks_together;
};

// What all threads agree on. Items are strips of tiles of one chunk (L neighbouring l of one i), neighbouring chunks
// fastest, so that blocks which run together share rows; a block takes every gridDim-th. `chunks` is a multiple of
// chunks_together.
struct Work : Arguments {
    int rows, tiles, chunks_l, chunks, strips, stages, steps, groups_j;
    bool resident, keeps;  // whether all weights of a chunk fit; whether a block never changes its chunk then
    uint32_t shared, w_bytes, w_at, x_at;

    __device__ __forceinline__ Work(const Arguments& arguments, uint32_t at) : Arguments(arguments), shared(at) {
        rows = rows_in_use(count, rows_max);
        tiles = (rows + ROWS - 1) / ROWS;
        chunks_l = (d + L - 1) / L, chunks = a * chunks_l;
        strips = (tiles + tiles_per_item - 1) / tiles_per_item;
        stages = (c + 16 * SUBS - 1) / (16 * SUBS), steps = (c + 15) / 16;
        groups_j = (b + 15) / 16 * 2;
        resident = steps * ((groups_j + 7) / 8) == w_stages;
        keeps = resident && chunks_together == chunks && gridDim.x % chunks == 0;
        w_bytes = min(groups_j, 8) * W_GROUP;
        w_at = shared + RAW_AT + raw_stages * X_STAGE, x_at = w_at + w_stages * w_bytes;
    }

    __device__ __forceinline__ uint32_t raw(int stage) const { return shared + RAW_AT + stage * X_STAGE; }
    __device__ __forceinline__ uint32_t full_raw(int stage) const { return shared + 8 * stage; }
    __device__ __forceinline__ uint32_t empty_raw(int stage) const { return full_raw(stage) + 8 * MAX_STAGES; }
    __device__ __forceinline__ uint32_t full_x(int stage) const { return full_raw(stage) + 16 * MAX_STAGES; }
    __device__ __forceinline__ uint32_t empty_x(int stage) const { return full_raw(stage) + 24 * MAX_STAGES; }
    __device__ __forceinline__ uint32_t full_w(int stage) const { return full_raw(stage) + 32 * MAX_STAGES; }
    __device__ __forceinline__ uint32_t empty_w(int stage) const { return full_raw(stage) + 40 * MAX_STAGES; }

    __device__ __forceinline__ int i(int chunk) const { return WHOLE ? chunk : chunk / chunks_l; }
    __device__ __forceinline__ int l(int chunk) const { return WHOLE ? 0 : chunk % chunks_l * L; }
};

// The items of a block, one after another: all strips of a few neighbouring chunks, then of the next few.
struct Item {
    int strip, among, group = 0;

    __device__ __forceinline__ explicit Item(const Work& w)
        : strip(blockIdx.x / w.chunks_together), among(blockIdx.x % w.chunks_together) {
        enter(w);
    }
    __device__ __forceinline__ int chunk(const Work& w) const { return group * w.chunks_together + among; }
    __device__ __forceinline__ bool is_there(const Work& w) const { return group * w.chunks_together < w.chunks; }
    __device__ __forceinline__ int first_tile(const Work& w) const { return strip * w.tiles_per_item; }
    __device__ __forceinline__ int last_tile(const Work& w) const {
        return min((strip + 1) * w.tiles_per_item, w.tiles);
    }
    __device__ __forceinline__ void enter(const Work& w) {
        while (strip >= w.strips && is_there(w)) strip -= w.strips, ++group;
    }
    __device__ __forceinline__ void next(const Work& w) {
        strip += gridDim.x / w.chunks_together, among += gridDim.x % w.chunks_together;
        if (among >= w.chunks_together) ++strip, among -= w.chunks_together;
        enter(w);
    }
};

__device__ __forceinline__ void start_barriers(const Work& w) {
    for (int s = 0; s < w.raw_stages; ++s) barrier_init(w.full_raw(s), 1), barrier_init(w.empty_raw(s), 128);
    for (int s = 0; s < w.x_stages; ++s) barrier_init(w.full_x(s), 128), barrier_init(w.empty_x(s), 8);
    for (int s = 0; s < w.w_stages; ++s) barrier_init(w.full_w(s), 1), barrier_init(w.empty_w(s), 8);
    barriers_are_ready();
}

__device__ __forceinline__ void bring_x(const Work& w, const TensorMap& x) {
    Ring ring;
    for (Item item(w); item.is_there(w); item.next(w)) {
        const int last = item.last_tile(w), i = w.i(item.chunk(w)), l = w.l(item.chunk(w));
        for (int tile = item.first_tile(w); tile < last; ++tile)
            for (int stage = 0; stage < w.stages; ++stage) {
                barrier_wait(w.empty_raw(ring.stage), ring.phase ^ 1);
                barrier_expect(w.full_raw(ring.stage), X_STAGE);
                const int k = stage * SUBS * (WHOLE ? 32 * L / PIECE : 16);
                copy_in(w.raw(ring.stage), x, {l, tile * ROWS, k, i}, w.full_raw(ring.stage));
                ring.next(w.raw_stages);
            }
    }
}

__device__ __forceinline__ void bring_weights(const Work& w) {
    Ring ring;
    for (Item item(w); item.is_there(w); item.next(w)) {
        const Index chunk = Index(item.chunk(w)) * w.groups_j * w.steps * (W_GROUP / 2);
        const int times = w.resident ? 1 : item.last_tile(w) - item.first_tile(w);
        for (int time = 0; time < times; ++time) {
            const Element* from = w.weights + chunk;
            for (int j = 0; j < w.groups_j; j += 8) {
                const int bytes = min(8, w.groups_j - j) * W_GROUP;
                for (int step = 0; step < w.steps; ++step, from += bytes / 2) {
                    barrier_wait(w.empty_w(ring.stage), ring.phase ^ 1);
                    barrier_expect(w.full_w(ring.stage), bytes);
                    copy_in(w.w_at + ring.stage * w.w_bytes, from, bytes, w.full_w(ring.stage));
                    ring.next(w.w_stages);
                }
            }
        }
        if (w.keeps) break;
    }
}

// A thread has 8 k of PLANES l of one row in each of its units.
__device__ __forceinline__ void transpose(const Work& w) {
    constexpr bool BLOCKED = L % 3 == 0;  // its vectors are neighbours; else every other is of the other half
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const int half = lane >> 3 & 1, kb = OCTETS ? lane >> 4 : half, group = OCTETS ? warp : warp * 2 + (lane >> 4);
    const int row = group % (ROWS / 8) * 8 + (lane & 7), sub = group / (ROWS / 8);
    const int column = SPREAD ? (lane & 3) * 2 + (lane >> 2 & 1) : lane & 7;  // of the sums, among 8
    const int first = sub * 2 * L + (OCTETS ? kb * 16 + half : BLOCKED ? half * L : half);  // vector of 16 bytes
    uint32_t to = w.x_at + sub * SUB + half * HALF + column * 16;
    if (OCTETS) to += kb * TILE * 16 + row / 8 * 128;
    int left = 0;
    for (Item item(w); item.is_there(w); item.next(w))
        left += (item.last_tile(w) - item.first_tile(w)) * w.stages;
    Ring in, out;
#pragma unroll 1
    for (; left > 0; --left, in.next(w.raw_stages), out.next(w.x_stages)) {
        barrier_wait(w.full_raw(in.stage), in.phase);
        barrier_wait(w.empty_x(out.stage), out.phase ^ 1);
        const uint32_t raw = w.raw(in.stage), planes = to + out.stage * X_STAGE;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int r = row + u * 64;
            uint32_t words[PLANES * 4];
#pragma unroll
            for (int m = 0; m < PLANES; ++m) {
                const int v = first + m * (BLOCKED ? 1 : 2);
                const int offset = v / (PIECE / 16) * (ROWS * PIECE) + r * PIECE + v % (PIECE / 16) * 16;
                asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(words[4 * m]), "=r"(words[4 * m + 1]), "=r"(words[4 * m + 2]),
                               "=r"(words[4 * m + 3])
                             : "r"(raw + swizzled<PIECE>(offset)));
            }
            const uint32_t plane = OCTETS ? planes : planes + r / TILE * (PLANES * TILE * 16) + r % TILE / 8 * 128;
#pragma unroll
            for (int l = 0; l < PLANES; ++l) {
                uint32_t pairs[4];
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    const int e = 2 * m * PLANES + l, f = e + PLANES;  // k and k + 1 of this l, among the elements
                    const int order = (e % 2 ? 0x32 : 0x10) | (f % 2 ? 0x7600 : 0x5400);
                    pairs[m] = __byte_perm(words[e / 2], words[f / 2], order);
                }
                asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(plane + l * (OCTETS ? 2 : 1) * TILE * 16),
                             "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                             : "memory");
            }
        }
        barrier_arrive(w.empty_raw(in.stage));
        publish_shared();
        barrier_arrive(w.full_x(out.stage));
    }
}

using Sums = float[PLANES][TILE / 2];

// What a thread writes side by side of column (n, r) of the sums: of its first row and, if PAIRS, second, else of
// row h.
__device__ __forceinline__ Output outputs(const Sums& sums, int n, int r, int h) {
    Output out;
#pragma unroll
    for (int e = 0; e < OUT; e += 2)
        out.word[e / 2] = pack(sums[e % PLANES][n * 4 + (PAIRS ? e / PLANES : h) * 2 + r],
                               sums[(e + 1) % PLANES][n * 4 + (PAIRS ? (e + 1) / PLANES : h) * 2 + r], Element());
    return out;
}

// Where a consumer's thread writes: rows row, row + ROW_STEP, row + 8 ...; columns from `column` on, and 8 j further.
struct Lane {
    int row;
    bool there[2];
    Index column, pitch, next_j;
};

__device__ __forceinline__ void add_bias(Sums& sums, const Work& w, const Lane& lane) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int p = 0; p < PLANES; ++p) {
            const Index column = lane.column + h * (PAIRS ? Index(PLANES) : lane.next_j) + p;
            const float add = lane.there[PAIRS ? 0 : h] ? w.bias[column] : 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 2; n += 4) sums[p][n + 2 * h] += add, sums[p][n + 2 * h + 1] += add;
        }
}

__device__ __forceinline__ void add_residual(Sums& sums, const Work& w, const Lane& lane) {
    const Element* from = w.residual + lane.row * lane.pitch + lane.column;
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int h = 0; h < OUTS; ++h)
                if (lane.row + n * 8 + r * ROW_STEP < w.rows && lane.there[h]) {
                    Output words;
#pragma unroll
                    for (int v = 0; v < Output::VECTORS; ++v)
                        words.vector[v] = reinterpret_cast<const Output::Vector*>(from + h * lane.next_j)[v];
#pragma unroll
                    for (int e = 0; e < OUT; e += 2) {
                        const float2 both = unpack(words.word[e / 2], Element());
                        sums[e % PLANES][n * 4 + (PAIRS ? e / PLANES : h) * 2 + r] += both.x;
                        sums[(e + 1) % PLANES][n * 4 + (PAIRS ? (e + 1) / PLANES : h) * 2 + r] += both.y;
                    }
                }
            from += (r ? 8 - ROW_STEP : ROW_STEP) * lane.pitch;
        }
}

// A few at a time, the others moving up, as registers cannot be indexed in a loop and code for all would be long.
__device__ __forceinline__ void apply_activation(Sums& sums, const Work& w) {
#pragma unroll 1
    for (int turn = 0; turn < TILE / 2; ++turn)
#pragma unroll
        for (int p = 0; p < PLANES; ++p) {
            const float first = activate(sums[p][0], w.activation, w.negative_slope);
#pragma unroll
            for (int n = 0; n + 1 < TILE / 2; ++n) sums[p][n] = sums[p][n + 1];
            sums[p][TILE / 2 - 1] = first;
        }
}

__device__ __forceinline__ void write_direct(const Sums& sums, const Work& w, const Lane& lane) {
    Element* to = w.y + lane.row * lane.pitch + lane.column;
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
#pragma unroll
            for (int h = 0; h < OUTS; ++h) {
                const Output out = outputs(sums, n, r, h);
                if (lane.row + n * 8 + r * ROW_STEP < w.rows && lane.there[h]) {
#pragma unroll
                    for (int v = 0; v < Output::VECTORS; ++v)
                        reinterpret_cast<Output::Vector*>(to + h * lane.next_j)[v] = out.vector[v];
                }
            }
            to += (r ? 8 - ROW_STEP : ROW_STEP) * lane.pitch;
        }
}

// Through boxes [piece][row][Y_PIECE] of 8 (or 16) rows by 64 j: of both consumers, which take turns with two, or EACH.
// `j_lane` is where the thread's j are among the 64, and `at` where the first box goes.
__device__ __forceinline__ void write_boxes(const Sums& sums, const Work& w, const TensorMap& y, unsigned char* shared,
                                            int who, int j_lane, Coordinates at) {
    const int lane = threadIdx.x % 32;
    const bool leads = threadIdx.x % 128 == 0 && (!OCTETS || who == 0);
#pragma unroll
    for (int n = 0; n < TILE / 8; n += SLAB_GROUPS, at.y += 8 * SLAB_GROUPS) {
        const uint32_t slab = w.shared + Y_AT + (OCTETS ? n & 1 : who * EACH + n / SLAB_GROUPS % EACH) * SLAB;
        if (leads) copies_out_have_read<OCTETS ? 1 : EACH - 1>();
        named_barrier(OCTETS ? 1 : 1 + who, OCTETS ? 256 : 128);
#pragma unroll
        for (int g = 0; g < SLAB_GROUPS; ++g)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int h = 0; h < OUTS; ++h) {
                    const Output out = outputs(sums, n + g, r, h);
                    const int row = g * 8 + lane % 4 * (SPREAD ? 1 : 2) + r * ROW_STEP;
                    const int first = ((j_lane + h * 8) * L + (OCTETS ? who * 8 : 0)) * 2;  // byte of the row
#pragma unroll
                    for (int v = 0; v < Output::VECTORS; ++v) {
                        const int byte = first + v * 4 * Output::AT_ONCE;
                        const uint32_t piece = byte / Y_PIECE * (SLAB_GROUPS * 8 * Y_PIECE);
                        const uint32_t offset = piece + row * Y_PIECE + byte % Y_PIECE;
                        *reinterpret_cast<Output::Vector*>(shared + (slab - w.shared) + swizzled<Y_PIECE>(offset)) =
                            out.vector[v];
                    }
                }
        publish_shared();
        named_barrier(OCTETS ? 1 : 1 + who, OCTETS ? 256 : 128);
        if (leads) copy_group_out(y, at, slab);
    }
}

// The products for one tile and 64 j. The planes of x are given back if `free_x`, the weights if `free_w`.
__device__ __forceinline__ void multiply(Sums& sums, const Work& w, Ring& xs, Ring& ws, int who, bool free_x,
                                         bool free_w) {
    const bool speaks = threadIdx.x % 32 == 0;
    const uint32_t x_mine = w.x_at + who * (OCTETS ? HALF : PLANES * TILE * 16);
    const uint32_t w_mine = w.w_at + (OCTETS ? who * 8 * 256 : 0);
    int done_x = 0, done_w = 0;
#pragma unroll
    for (int p = 0; p < PLANES; ++p)
#pragma unroll
        for (int n = 0; n < TILE / 2; ++n) asm volatile("" : "=f"(sums[p][n]));  // the first product overwrites them
#pragma unroll 1
    for (int stage = 0; stage < w.stages; ++stage) {
        barrier_wait(w.full_x(xs.stage), xs.phase);
#pragma unroll
        for (int sub = 0; sub < SUBS; ++sub) {
            if (sub && stage * SUBS + sub >= w.steps) break;
            barrier_wait(w.full_w(ws.stage), ws.phase);
            products_begin();
            const uint64_t x = operand(x_mine + xs.stage * X_STAGE + sub * SUB, OCTETS ? TILE * 16 : HALF, 128);
            const uint64_t weights = operand(w_mine + ws.stage * w.w_bytes, 128, W_GROUP);
#pragma unroll
            for (int p = 0; p < PLANES; ++p)
                multiply_add<TILE, 0>(sums[p], weights + p * 16, x + p * (OCTETS ? 2 : 1) * TILE, stage + sub,
                                      Element());
            products_commit();
            products_wait<1>();
            if (stage + sub > 0 && speaks) {
                if (free_x && sub == 0) barrier_arrive(w.empty_x(done_x));
                if (free_w) barrier_arrive(w.empty_w(done_w));
            }
            done_w = ws.stage;
            ws.next(w.w_stages, free_w);
        }
        done_x = xs.stage;
        xs.next(w.x_stages);
    }
    products_wait<0>();
    if (speaks) {
        if (free_x) barrier_arrive(w.empty_x(done_x));
        if (free_w) barrier_arrive(w.empty_w(done_w));
    }
}

__device__ __forceinline__ void finish(Sums& sums, const Work& w, const TensorMap& y, unsigned char* shared, int who,
                                       int chunk, int tile, int j0) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
    const int spread = lane / 8 % 2 + lane / 4 % 2 * 2 + lane / 16 * 4;
    const int j_lane = warp * 16 + (SPREAD ? spread : lane / 4 * (PAIRS ? 2 : 1));
    const int first = tile * ROWS + (OCTETS ? 0 : who * TILE), octet = OCTETS ? who * 8 : 0;
    const int l = w.l(chunk), i = w.i(chunk);
    const bool in_d = WHOLE || l + octet < w.d;
    Lane mine;
    mine.row = first + lane % 4 * (SPREAD ? 1 : 2);
    mine.there[0] = in_d && j0 + j_lane < w.b, mine.there[1] = in_d && j0 + j_lane + 8 < w.b;
    mine.column = (Index(i) * w.b + j0 + j_lane) * w.d + l + octet;
    mine.pitch = Index(w.a) * w.b * w.d, mine.next_j = Index(8) * w.d;
    if (w.bias) add_bias(sums, w, mine);
    if (w.residual) add_residual(sums, w, mine);
    if (w.activation != ACTIVATION_NONE) apply_activation(sums, w);
    if (STAGED && (w.rows == w.rows_max || (tile + 1) * ROWS <= w.rows))  // boxes end with the matrix, not the count
        write_boxes(sums, w, y, shared, who, j_lane, {WHOLE ? 0 : l, first, WHOLE ? j0 * L * 2 / Y_PIECE : j0, i});
    else
        write_direct(sums, w, mine);
}

__device__ __forceinline__ void consume(const Work& w, const TensorMap& y, unsigned char* shared, int who) {
    Sums sums;
    Ring xs, ws;
#pragma unroll 1
    for (Item item(w); item.is_there(w); item.next(w)) {
        const int last = item.last_tile(w);
#pragma unroll 1
        for (int tile = item.first_tile(w); tile < last; ++tile) {
            const Ring start = xs;
            const bool free_w = !w.resident || (!w.keeps && tile + 1 == last);
#pragma unroll 1
            for (int j0 = 0; j0 < w.b; j0 += 64) {
                xs = start;
                multiply(sums, w, xs, ws, who, j0 + 64 >= w.b, free_w);
                int opaque = item.chunk(w);
                asm volatile("" : "+r"(opaque));  // so that what follows from it takes no registers during the products
                finish(sums, w, y, shared, who, opaque, tile, j0);
            }
        }
    }
    copies_out_are_done();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
ks_matmul_planes(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
                 const Element* __restrict__ weights, const float* __restrict__ bias, const Element* residual,
                 Element* y, const int* __restrict__ count, int rows, int a, int b, int c, int d, int activation,
                 float negative_slope, int raw_stages, int x_stages, int w_stages, int tiles_per_item,
                 int chunks_together) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Arguments arguments{weights, bias, residual, y, count, rows, a, b, c, d, activation, negative_slope,
                              raw_stages, x_stages, w_stages, tiles_per_item, chunks_together};
    const uint32_t at = shared_address(shared);
    const int role = warp_of_block() / 4;
    if (threadIdx.x == 0) start_barriers(Work(arguments, at));
    __syncthreads();
    if (role == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(TRANSPOSER_REGISTERS));
        transpose(Work(arguments, at));
    } else if (role == 1) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(BRINGER_REGISTERS));
        if (threadIdx.x % 128 == 0) bring_x(Work(arguments, at), x_map);
        if (threadIdx.x % 128 == 32) bring_weights(Work(arguments, at));
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER_REGISTERS));
        consume(Work(arguments, at), y_map, shared, role - 2);
    }
}
