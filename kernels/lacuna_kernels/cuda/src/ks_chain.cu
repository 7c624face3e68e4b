// Two Kronecker-sparse factors in one kernel, (a, b1, c1, 1) then (1, b2, c2, d), fp16 or bf16 with fp32 sums (see
// ks_matmul.cuh). Between them z [rows, a*b1 = c2*d] is rounded to ELEMENT and never leaves the chip. With a residual,
// so are the sums of the second factor with the bias, before the residual is added.
//
// A team of TEAM blocks (a cluster) takes TILE rows at a time. Its registers hold all weights of both factors, each
// read once, as the 64-row operand of wgmma; rows of x and z are the other operand: products come out as
// [feature][row], and go to other blocks as they are, 8 rows of a feature of each thread.
//   first   two warpgroups: 64 features of z at a time, which go to the blocks that own their l: d / TEAM neighbouring
//           ones each. A warpgroup has a ring of STAGES slots of x, for BATCH pieces each, that its first thread fills
//   second  two warpgroups: 64 columns j of y at a time, for one l of the block, 8 of them for each block, which
//           interleaves all l of its columns, and writes them
// Barriers run over the team: a buffer of z or y is full once all bytes are there, which blocks store in each other's
// memory, and the warps have arrived that store in their own; it is empty once its readers have told all blocks that
// write it.
#ifndef FIRST_M
#define ELEMENT __nv_bfloat16
#define FIRST_M 4    // pieces of 64 features of z of a warpgroup
#define FIRST_K 64   // c1
#define FIRST_B 64   // b1
#define SECOND_M 4   // pieces of 64 columns j of a warpgroup
#define SECOND_K 64  // c2
#define WIDTH_L 64   // d
#define BATCH 2
#define STAGES 2
#define Z_BUFFERS 3
#define Y_BUFFERS 3  // it is written a turn late, and others hear of that later still
#endif

#include "activation.cuh"
#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "layout.cuh"
#include "residual.cuh"
#include "ring.cuh"
#include "team.cuh"

constexpr int TEAM = 8, WARPGROUP = 128, GROUPS = 2, THREADS = 2 * GROUPS * WARPGROUP;  // GROUPS for each factor
constexpr int TILE = 32;                          // rows
constexpr int SUMS = TILE / 2;                    // of a thread, for one piece
constexpr int OWN_L = WIDTH_L / TEAM;             // l of a block
constexpr int PARTS = GROUPS * SECOND_M / OWN_L;  // pieces of one l
constexpr int RUNS = WIDTH_L / 8;                 // of 8 neighbouring l
constexpr int WIDTH_OUT = 64 * PARTS * WIDTH_L;
static_assert(64 % WIDTH_L == 0 && WIDTH_L % 16 == 0 && GROUPS * SECOND_M % OWN_L == 0, "pieces hold whole runs of l");
static_assert(SECOND_K * WIDTH_L == 64 * GROUPS * TEAM * FIRST_M && SECOND_K % 16 == 0 && FIRST_K % 64 == 0, "a chain");
static_assert(FIRST_M % BATCH == 0 && (BATCH == 1 || FIRST_B == 64), "pieces of a slot have columns side by side");

constexpr int X_PLANE = TILE * 128;  // 64 columns of x
constexpr int X_PIECE = X_PLANE * (FIRST_K / 64), X_BYTES = BATCH * X_PIECE;  // of a slot
constexpr int Z_LINE = 2 * TILE, Z_BYTES = OWN_L * SECOND_K * Z_LINE;        // [l][k][row]
constexpr int PIECE_K = 64 / WIDTH_L;  // neighbouring k of one l, side by side in a piece
constexpr int Y_COLUMN = 2 * TILE, Y_L = 8 * PARTS * Y_COLUMN, Y_BYTES = WIDTH_L * Y_L;  // [l][j][row]
constexpr int HERE = GROUPS * 32;  // threads that store in their own block
constexpr int Z_SENT = Z_BYTES / TEAM * (TEAM - 1), Y_SENT = Y_BYTES / TEAM * (TEAM - 1);  // bytes that others store
constexpr int AT_Z = GROUPS * STAGES * X_BYTES, AT_Y = AT_Z + Z_BUFFERS * Z_BYTES;
constexpr int AT_X_FULL = AT_Y + Y_BUFFERS * Y_BYTES, AT_X_EMPTY = AT_X_FULL + 8 * GROUPS * STAGES;
constexpr int AT_Z_FULL = AT_X_EMPTY + 8 * GROUPS * STAGES, AT_Z_EMPTY = AT_Z_FULL + 8 * Z_BUFFERS;
constexpr int AT_Y_FULL = AT_Z_EMPTY + 8 * Z_BUFFERS, AT_Y_EMPTY = AT_Y_FULL + 8 * Y_BUFFERS;
constexpr int USED_BYTES = AT_Y_EMPTY + 8 * Y_BUFFERS;
#ifdef SHARED_BYTES
static_assert(SHARED_BYTES == USED_BYTES + 1024, "and what it takes to start at a multiple of 1024");
#endif

// ---- products ----
__device__ __forceinline__ void finish_products(float (&d)[SUMS]) {
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// ---- elements ----
__device__ __forceinline__ uint32_t pack(float low, float high) { return pack(low, high, Element()); }

// Pieces of 64 rows of weights, as wgmma's fragments: [piece][k / 16][thread][16 bytes].
template <int PIECES, int STEPS>
__device__ __forceinline__ void read_weights(uint4 (&w)[PIECES][STEPS], const uint4* __restrict__ packed, int first) {
#pragma unroll
    for (int m = 0; m < PIECES; ++m)
#pragma unroll
        for (int k = 0; k < STEPS; ++k)
            w[m][k] = packed[((first + m) * STEPS + k) * WARPGROUP + threadIdx.x % WARPGROUP];
}

// Where a block is, and which tiles its team takes.
struct Place {
    uint32_t shared;
    int rank, tile, tiles, step;
};

// From this block's places to those of another; 0 for its own.
__device__ __forceinline__ uint32_t away(const Place& at, int rank) { return in_block(at.shared, rank) - at.shared; }

// The warp of each warpgroup that stores in its own block says so, lane by lane.
__device__ __forceinline__ void stored_here(const Place& at, uint32_t full) {
    if (threadIdx.x / 32 % 4 == at.rank / 2) barrier_arrive(at.shared + full);
}

// A warpgroup has read a buffer: all blocks are told, except for one, once for all its warps, as each time goes through
// the cluster.
constexpr int NOBODY = -1;
__device__ __forceinline__ void tell_all(uint32_t empty, int except) {
    barrier_of_warpgroup(1 + threadIdx.x / WARPGROUP);
    const int thread = threadIdx.x % WARPGROUP;
    if (thread < TEAM && thread != except) arrive_there(in_block(empty, thread));
}

// ---- the first factor ----
// The slots of a warpgroup; full and empty barriers lie AT_X_EMPTY - AT_X_FULL apart.
struct Slots {
    uint32_t start, full;
    const TensorMap& x;
    int first;  // piece of the warpgroup

    __device__ __forceinline__ uint32_t empty(int slot) const { return full + AT_X_EMPTY - AT_X_FULL + 8 * slot; }

    // Start copying the columns of x that the pieces of a tile from m on need.
    __device__ __forceinline__ void load(int slot, int m, int tile) const {
        barrier_expect(full + 8 * slot, X_BYTES);
        const int plane = (first + m) / (FIRST_B / 64) * (FIRST_K / 64);
        copy_in(start + slot * X_BYTES, x, {0, tile * TILE, plane, 0}, full + 8 * slot);
    }
};

// Which pieces are loaded next.
struct Ahead {
    int tile, m;

    __device__ __forceinline__ void advance(int step) {
        if ((m += BATCH) == FIRST_M) m = 0, tile += step;
    }
};

// A thread's sums are of features lane / 4 and 8 more, rows 8 i + 2 t + e, t = lane % 4. Those of one feature in the
// order (i, e) are 16 bytes: chunk t of its line of z, whose rows thereby lie in the order (t, i, e). In that order they
// are columns of the second product, where a thread has 8 i + 2 t + e again: those are rows 8 t + 2 i + e, neighbours.
__device__ __forceinline__ uint4 eight_rows(const float (&d)[SUMS], int high) {
    const float* from = d + 2 * high;
    return make_uint4(pack(from[0], from[1]), pack(from[4], from[5]), pack(from[8], from[9]),
                      pack(from[12], from[13]));
}

// Send the features of a piece of z, the `piece`th, to the blocks that own their l.
__device__ __forceinline__ void send_z(const Place& at, const float (&d)[SUMS], int piece, int buffer) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int k = hidden(piece) * PIECE_K + lane / 4 % PIECE_K;  // or else the addresses of all are kept in registers
    const uint32_t place = AT_Z + buffer * Z_BYTES + lane / 4 / PIECE_K * (SECOND_K * Z_LINE) +
                           swizzled<Z_LINE>(k * Z_LINE + lane % 4 * 16);
#pragma unroll
    for (int high = 0; high < 2; ++high)  // owners of 8 features each
        store_in_team(at.shared + place, away(at, 2 * warp + high), eight_rows(d, high),
                      at.shared + AT_Z_FULL + 8 * buffer);
}

__device__ __forceinline__ void run_first(const Place& at, const TensorMap& x, const uint4* __restrict__ packed) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / WARPGROUP;
    const int first = (at.rank * GROUPS + group) * FIRST_M;
    uint4 w[FIRST_M][FIRST_K / 16];
    read_weights(w, packed, first);
    const Slots slots{at.shared + group * STAGES * X_BYTES, at.shared + AT_X_FULL + 8 * group * STAGES, x, first};
    const bool loads = threadIdx.x % WARPGROUP == 0;
    Ahead ahead{at.tile, 0};
#pragma unroll 1
    for (int slot = 0; slot < STAGES; ++slot, ahead.advance(at.step))
        if (loads && ahead.tile < at.tiles) slots.load(slot, ahead.m, ahead.tile);

    int slot = 0, parity = 0;
    Ring z;
    int read = -1, read_parity = 0;  // the slot read before this one: it is loaded again once all warps have read it
#pragma unroll 1
    for (int tile = at.tile; tile < at.tiles; tile += at.step) {
#pragma unroll
        for (int m = 0; m < FIRST_M; ++m) {
            float d[SUMS];
            if (m % BATCH == 0) barrier_wait(slots.full + 8 * slot, parity);
            const uint64_t rows = operand(slots.start + slot * X_BYTES + m % BATCH * X_PIECE);
            products_begin();
#pragma unroll
            for (int k = 0; k < FIRST_K / 16; ++k)
                multiply_add_registers<TILE, 0>(d, w[m][k], rows + (k / 4 * X_PLANE + k % 4 * 32) / 16, k, Element());
            products_commit();
            if (m % BATCH == 0 && read >= 0) {
                if (loads && ahead.tile < at.tiles) {
                    barrier_wait(slots.empty(read), read_parity);
                    slots.load(read, ahead.m, ahead.tile);
                }
                ahead.advance(at.step);
            }
            __syncwarp();
            finish_products(d);
            if (m % BATCH == BATCH - 1) {
                if (lane == 0) barrier_arrive(slots.empty(slot));
                read = slot, read_parity = parity;
                if (++slot == STAGES) slot = 0, parity ^= 1;
            }
            if (m == 0) barrier_wait(at.shared + AT_Z_EMPTY + 8 * z.stage, z.phase ^ 1);
            send_z(at, d, first + m, z.stage);
        }
        publish_shared();  // products read it; what others send, those who multiply publish
        stored_here(at, AT_Z_FULL + 8 * z.stage);
        z.next(Z_BUFFERS);
    }
}

// ---- the second factor ----
// Activate in turn, so that the code is there once: the kernel must fit the instruction cache.
template <int N>
__device__ __forceinline__ void activate_all(float (&d)[N], const Epilogue& e) {
#pragma unroll 1
    for (int turn = 0; turn < N; ++turn) {
        const float first = activate(d[0], e.activation, e.negative_slope);
#pragma unroll
        for (int i = 1; i < N; ++i) d[i - 1] = d[i];
        d[N - 1] = first;
    }
}

// Where rows 8 chunk and on of a column of one l are among the block's y: so that 8 threads meet in no bank, which have
// all runs of 8 l of neighbouring columns, or some.
__device__ __forceinline__ uint32_t y_offset(int l, int column, int chunk) {
    const int run = l / 8, flip = RUNS == 8 ? run / 4 : 0, turn = RUNS >= 4 ? run % 4 : run * 2 + column / 2 % 2;
    return l * Y_L + (column ^ flip) * Y_COLUMN + (chunk ^ turn) * 16;
}

// Finish the sums of 64 columns j of one l, and send them to the blocks that write them.
__device__ __forceinline__ void send_y(const Place& at, float (&d)[SUMS], const Epilogue& e, int l, int part,
                                       int buffer) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int j = part * 64 + 16 * warp + lane / 4;
    if (e.bias) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
            const float bias = e.bias[(j + 8 * high) * WIDTH_L + at.rank * OWN_L + l];
#pragma unroll
            for (int i = 2 * high; i < SUMS; i += 4) d[i] += bias, d[i + 1] += bias;
        }
    }
    if (!e.residual && e.activation != ACTIVATION_NONE) activate_all(d, e);
    const uint32_t place = AT_Y + buffer * Y_BYTES + y_offset(at.rank * OWN_L + l, part * 8 + lane / 4, lane % 4);
#pragma unroll
    for (int high = 0; high < 2; ++high)  // owners of 8 columns each
        store_in_team(at.shared + place, away(at, 2 * warp + high), eight_rows(d, high),
                      at.shared + AT_Y_FULL + 8 * buffer);
}

// ---- write ----
// Two neighbouring l of two rows, which are a word each, of one of the rows.
__device__ __forceinline__ uint32_t pair_of(uint32_t first, uint32_t second, int odd) {
    return __byte_perm(first, second, odd ? 0x7632 : 0x5410);
}

// A thread writes 8 neighbouring l of one column for AT_ONCE rows; 8 threads write 128 bytes of a row.
constexpr int WRITERS = GROUPS * WARPGROUP, AT_ONCE = 4, UNITS = TILE / AT_ONCE * RUNS * 8 * PARTS;
static_assert(8 % RUNS == 0, "8 threads have all runs of a column");

__device__ __forceinline__ void write_unit(const Epilogue& e, uint32_t from, Index to, int rows) {
    uint2 l_rows[8];
#pragma unroll
    for (int l = 0; l < 8; ++l) l_rows[l] = read_8_bytes(from + l * Y_L);
    uint4 out[AT_ONCE];
#pragma unroll
    for (int row = 0; row < AT_ONCE; ++row) {
        uint32_t pairs[4];
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            const uint2 a = l_rows[2 * p], b = l_rows[2 * p + 1];
            pairs[p] = pair_of(row < 2 ? a.x : a.y, row < 2 ? b.x : b.y, row % 2);
        }
        out[row] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
    if (e.residual)
        add_residual(out, e.residual + to, WIDTH_OUT, rows, [&](float (&sums)[8]) {
            if (e.activation != ACTIVATION_NONE) activate_all(sums, e);
        });
#pragma unroll
    for (int row = 0; row < AT_ONCE; ++row)
        if (row < rows) write_out(e.y + to + row * WIDTH_OUT, out[row]);
}

// Write what the block got of a tile.
__device__ __forceinline__ void write_tile(const Place& at, const Epilogue& e, int rows, int tile, const Ring& y) {
    const int thread = threadIdx.x % WRITERS;
    const uint32_t full = at.shared + AT_Y_FULL + 8 * y.stage, empty = at.shared + AT_Y_EMPTY + 8 * y.stage;
    barrier_wait(full, y.phase);
    if (thread == 0) barrier_expect(full, Y_SENT);
#pragma unroll 1
    for (int unit = thread; unit < UNITS; unit += WRITERS) {
        const int run = unit % RUNS, column = unit / 16 % (RUNS * PARTS) * (8 / RUNS) + unit % 8 / RUNS;
        const int four = unit / (16 * RUNS * PARTS) * 2 + unit / 8 % 2, first = tile * TILE + four * AT_ONCE;
        const int j = column / 8 * 64 + at.rank * 8 + column % 8;
        const uint32_t place = y_offset(run * 8, column, four / 2) + four % 2 * 8;
        const uint32_t from = at.shared + AT_Y + y.stage * Y_BYTES + place;
        write_unit(e, from, Index(first) * WIDTH_OUT + j * WIDTH_L + run * 8, rows - first);
    }
    barrier_arrive(empty);  // each thread for what is stored in this block
    tell_all(empty, at.rank);
}

// Multiply what the block got of z, and send it on.
__device__ __forceinline__ void multiply_tile(const Place& at, const uint4 (&w)[SECOND_M][SECOND_K / 16],
                                              const Epilogue& e, const Ring& from, const Ring& y) {
    const int group = threadIdx.x / WARPGROUP - GROUPS;
    const uint32_t full = at.shared + AT_Z_FULL + 8 * from.stage, empty = at.shared + AT_Z_EMPTY + 8 * from.stage;
    barrier_wait(full, from.phase);
    if (threadIdx.x == GROUPS * WARPGROUP) barrier_expect(full, Z_SENT);
    publish_shared();
#pragma unroll
    for (int m = 0; m < SECOND_M; ++m) {
        float d[SUMS];
        const int l = (group * SECOND_M + m) / PARTS, part = (group * SECOND_M + m) % PARTS;
        const uint64_t z = operand_of_32(at.shared + AT_Z + from.stage * Z_BYTES + l * SECOND_K * Z_LINE);
        products_begin();
#pragma unroll
        for (int k = 0; k < SECOND_K / 16; ++k)
            multiply_add_registers<TILE, 1>(d, w[m][k], z + k * Z_LINE, k, Element());
        products_commit();
        finish_products(d);
        if (m == SECOND_M - 1) tell_all(empty, NOBODY);
        if (m == 0) barrier_wait(at.shared + AT_Y_EMPTY + 8 * y.stage, y.phase ^ 1);
        send_y(at, d, e, l, part, y.stage);
    }
    stored_here(at, AT_Y_FULL + 8 * y.stage);
}

__device__ __forceinline__ void run_second(const Place& at, const uint4* __restrict__ packed, const Epilogue& e,
                                           int rows) {
    uint4 w[SECOND_M][SECOND_K / 16];
    read_weights(w, packed, (at.rank * GROUPS + threadIdx.x / WARPGROUP - GROUPS) * SECOND_M);
    Ring z, sent, written;
#pragma unroll 1
    for (int tile = at.tile; tile < at.tiles + at.step; tile += at.step) {
        if (tile < at.tiles) {
            multiply_tile(at, w, e, z, sent);
            z.next(Z_BUFFERS), sent.next(Y_BUFFERS);
        }
        if (tile > at.tile) {  // a turn late, so that there is no wait for the others
            write_tile(at, e, rows, tile - at.step, written);
            written.next(Y_BUFFERS);
        }
    }
}

__device__ __forceinline__ void init_barriers(uint32_t shared) {
    for (int slot = 0; slot < GROUPS * STAGES; ++slot) {
        barrier_init(shared + AT_X_FULL + 8 * slot, 1);
        barrier_init(shared + AT_X_EMPTY + 8 * slot, WARPGROUP / 32);
    }
    for (int buffer = 0; buffer < Z_BUFFERS; ++buffer) {
        barrier_init(shared + AT_Z_FULL + 8 * buffer, 1 + HERE);
        barrier_init(shared + AT_Z_EMPTY + 8 * buffer, TEAM * GROUPS);
    }
    for (int buffer = 0; buffer < Y_BUFFERS; ++buffer) {
        barrier_init(shared + AT_Y_FULL + 8 * buffer, 1 + HERE);
        barrier_init(shared + AT_Y_EMPTY + 8 * buffer, (TEAM - 1) * GROUPS + WRITERS);
    }
    barriers_are_ready();
    for (int buffer = 0; buffer < Z_BUFFERS; ++buffer) barrier_expect(shared + AT_Z_FULL + 8 * buffer, Z_SENT);
    for (int buffer = 0; buffer < Y_BUFFERS; ++buffer) barrier_expect(shared + AT_Y_FULL + 8 * buffer, Y_SENT);
}

// first, second: the weights of the factors in pieces of 64 rows, see read_weights.
extern "C" __global__ void __cluster_dims__(TEAM, 1, 1) __launch_bounds__(THREADS, 1)
ks_chain(const __grid_constant__ TensorMap x, const uint4* __restrict__ first, const uint4* __restrict__ second,
         const float* __restrict__ bias, const Element* residual, Element* y, const int* __restrict__ count, int rows,
         int activation, float negative_slope) {
    extern __shared__ char unaligned[];
    const uint32_t shared = (shared_address(unaligned) + 1023) & ~1023u;
    rows = rows_in_use(count, rows);
    const Place at{shared, int(blockIdx.x % TEAM), int(blockIdx.x / TEAM), (rows + TILE - 1) / TILE,
                   int(gridDim.x / TEAM)};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    if (threadIdx.x == 0) init_barriers(shared);
    __syncthreads();
    meet_team();
    if (threadIdx.x < GROUPS * WARPGROUP)
        run_first(at, x, first);
    else
        run_second(at, second, epilogue, rows);
    __syncwarp();
    meet_team();  // nobody leaves while others still store or arrive here
}
