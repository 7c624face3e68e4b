// Two Kronecker-sparse factors in one kernel, (a, b1, c1, 1) then (1, b2, c2, d), fp16 or bf16 with fp32 sums (see
// ks_matmul.cuh). Between them z [rows, a*b1 = c2*d] is rounded to ELEMENT and never leaves the chip. With a residual,
// so are the sums of the second factor with the bias, before the residual is added.
//
// A team of TEAM blocks (a cluster) takes TILE rows at a time. Its registers hold all weights of both factors, each
// read once, as the 64-row operand of wgmma; rows of x and z are the other operand: products come out as
// [feature][row].
//   first   two warpgroups: 64 features of z at a time, which go to the blocks that own their l: d / TEAM neighbouring
//           ones each. A warpgroup has a ring of STAGES slots of x, for BATCH pieces each, that its first thread fills
//   second  two warpgroups: 64 columns j of y at a time, for one l of the block. Then SHARE blocks with neighbouring l
//           exchange rows; each interleaves the l of its rows, and writes them
// Buffers are double. Barriers run over the team: a buffer is full once all bytes are there, which blocks store in each
// other's memory 16 at a time, and empty once its readers have told all blocks that write it.
#ifndef FIRST_M
#define ELEMENT __nv_bfloat16
#define FIRST_M 4    // pieces of 64 features of z of a warpgroup
#define FIRST_K 64   // c1
#define FIRST_B 64   // b1
#define SECOND_M 4   // pieces of 64 columns j of a warpgroup
#define SECOND_K 64  // c2
#define WIDTH_L 64   // d
#define SHARE 4
#define BATCH 2
#define STAGES 4
#endif

#include "activation.cuh"
#include "hopper.cuh"
#include "ks_matmul.cuh"
#include "team.cuh"

constexpr int TEAM = 8, WARPGROUP = 128, THREADS = 4 * WARPGROUP;
constexpr int TILE = 32;                     // rows
constexpr int SUMS = TILE / 2;               // of a thread, for one piece
constexpr int OWN_L = WIDTH_L / TEAM;        // l of a block
constexpr int PARTS = 2 * SECOND_M / OWN_L;  // pieces of one l
constexpr int SHARED_L = SHARE * OWN_L, SHARED_ROWS = TILE / SHARE;
constexpr int WIDTH_OUT = 64 * PARTS * WIDTH_L;
static_assert(64 % WIDTH_L == 0 && WIDTH_L % 16 == 0 && 2 * SECOND_M % OWN_L == 0, "pieces hold whole runs of l");
static_assert(SECOND_K * WIDTH_L == 64 * 2 * TEAM * FIRST_M && SECOND_K % 16 == 0 && FIRST_K % 64 == 0, "a chain");
static_assert(SHARED_L % 8 == 0, "vectors of 8 neighbouring l");
static_assert(FIRST_M % BATCH == 0 && (BATCH == 1 || FIRST_B == 64), "pieces of a slot have columns side by side");

constexpr int X_PLANE = TILE * 128;  // 64 columns of x
constexpr int X_PIECE = X_PLANE * (FIRST_K / 64), X_BYTES = BATCH * X_PIECE;  // of a slot
constexpr int Z_LINE = 2 * TILE, Z_BYTES = OWN_L * SECOND_K * Z_LINE;        // [l][k][row]
// Lines of z are sent in twos at least, side by side: those of neighbouring k of one l, of which a piece has PIECE_K.
constexpr int PIECE_K = 64 / WIDTH_L, TOGETHER = PIECE_K > 1 ? 1 : 2, SENT_K = PIECE_K * TOGETHER;  // pieces; k
static_assert(FIRST_M % TOGETHER == 0 && (TOGETHER == 1 || OWN_L % 8 == 0), "halves of a warp's l have one owner");
constexpr int Y_PLANE = SHARED_ROWS * 128, Y_BYTES = SHARED_L * PARTS * Y_PLANE;  // [l][part][row][64 j]
constexpr int Z_STAGE = TOGETHER * 16 * Z_LINE, Y_STAGE = TILE * 128;        // of a warp; of a warpgroup, two of them
constexpr int AT_Z = 2 * STAGES * X_BYTES, AT_Y = AT_Z + 2 * Z_BYTES;
constexpr int AT_Y_STAGE = AT_Y + 2 * Y_BYTES, AT_Z_STAGE = AT_Y_STAGE + 4 * Y_STAGE;
constexpr int AT_X_FULL = AT_Z_STAGE + 8 * Z_STAGE, AT_X_EMPTY = AT_X_FULL + 16 * STAGES;
constexpr int AT_Z_FULL = AT_X_EMPTY + 16 * STAGES, AT_Z_EMPTY = AT_Z_FULL + 16;
constexpr int AT_Y_FULL = AT_Z_EMPTY + 16, AT_Y_EMPTY = AT_Y_FULL + 16, USED_BYTES = AT_Y_EMPTY + 16;
#ifdef SHARED_BYTES
static_assert(SHARED_BYTES == USED_BYTES + 1024, "and what it takes to start at a multiple of 1024");
#endif

// ---- products ----
#define PRODUCT_OF_REGISTERS(type)                                                                                   \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                         \
                 " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, %22;\n}" \
                 : EIGHT(0), EIGHT(8)                                                                                \
                 : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "l"(rows), "r"(add), "n"(ACROSS))

// d [64, TILE] = w [64, 16 k] rows^T, plus d if `add`. The rows lie along k, or ACROSS k.
template <int ACROSS>
__device__ __forceinline__ void multiply_add(float (&d)[SUMS], const uint4& w, uint64_t rows, int add, __half) {
    PRODUCT_OF_REGISTERS("f16");
}

template <int ACROSS>
__device__ __forceinline__ void multiply_add(float (&d)[SUMS], const uint4& w, uint64_t rows, int add, __nv_bfloat16) {
    PRODUCT_OF_REGISTERS("bf16");
}

__device__ __forceinline__ void finish_products(float (&d)[SUMS]) {
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Lines of 64 bytes of z, swizzled by 64 bytes; groups of 8 k lie 512 bytes apart, and k16 steps 1024.
__device__ __forceinline__ uint64_t z_operand(uint32_t address) {
    return uint64_t(2) << 62 | uint64_t(512 >> 4) << 32 | uint64_t(1) << 16 | (address & 0x3FFFF) >> 4;
}
__device__ __forceinline__ int swizzled(int line, int chunk) { return (chunk ^ line >> 1 & 3) * 16; }

// ---- elements ----
__device__ __forceinline__ uint32_t pack(float low, float high) { return pack(low, high, Element()); }

__device__ __forceinline__ float unpack(uint32_t pair, int high) {
    const uint16_t bits = high ? pair >> 16 : pair & 0xffff;
    return to_float(reinterpret_cast<const Element&>(bits));
}

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

// ---- the first factor ----
// The ring of a warpgroup; full and empty barriers lie AT_X_EMPTY - AT_X_FULL apart.
struct Ring {
    uint32_t slots, full;
    const TensorMap& x;
    int first;  // piece of the warpgroup

    __device__ __forceinline__ uint32_t empty(int slot) const { return full + AT_X_EMPTY - AT_X_FULL + 8 * slot; }

    // Start copying the columns of x that the pieces of a tile from m on need.
    __device__ __forceinline__ void load(int slot, int m, int tile) const {
        barrier_expect(full + 8 * slot, X_BYTES);
        const int plane = (first + m) / (FIRST_B / 64) * (FIRST_K / 64);
        copy_in(slots + slot * X_BYTES, x, {0, tile * TILE, plane, 0}, full + 8 * slot);
    }
};

// Which pieces are loaded next.
struct Ahead {
    int tile, m;

    __device__ __forceinline__ void advance(int step) {
        if ((m += BATCH) == FIRST_M) m = 0, tile += step;
    }
};

// Where 16 bytes of a line lie among those that a warp sends; the lines of an l lie side by side.
__device__ __forceinline__ int z_staged(int line, int chunk) {
    if (TOGETHER == 1) return line * Z_LINE + swizzled(line, chunk);
    return line / 2 * (2 * Z_LINE) + ((line % 2 * 4 + chunk) ^ line / 2 % 8) * 16;
}

// Lay out 64 features of z; `turn` counts the pieces that are sent together.
__device__ __forceinline__ void stage_z(const float (&d)[SUMS], uint32_t stage, int turn) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int high = 0; high < 2; ++high) {
        const float* from = d + 2 * high;
        store_matrices(stage + z_staged((high * 8 + lane % 8) * TOGETHER + turn, lane / 8),
                       {pack(from[0], from[1]), pack(from[4], from[5]), pack(from[8], from[9]),
                        pack(from[12], from[13])});
    }
    __syncwarp();
}

// Which of the l a line of a warp is of.
__device__ __forceinline__ int l_of(int line) { return (threadIdx.x / 32 % 4 * 16 * TOGETHER + line) / SENT_K; }

// Send what was laid out, of the k from `first` on, to the owners of the l.
__device__ __forceinline__ void send_z(uint32_t stage, const uint32_t (&owner)[2], int first, int buffer) {
    const int lane = threadIdx.x % 32;
    asm volatile("" : "+r"(first));  // or else the addresses of all pieces are kept in registers
#pragma unroll
    for (int part = 0; part < 2 * TOGETHER; ++part) {
        const int line = part * 8 + lane / 4, chunk = lane % 4, k = first + line % SENT_K;
        const uint4 v = read_16_bytes(stage + z_staged(line, chunk));
        const uint32_t to = owner[part / TOGETHER];
        store_there(to + AT_Z + buffer * Z_BYTES + (l_of(line) % OWN_L * SECOND_K + k) * Z_LINE + swizzled(k, chunk),
                    v, to + AT_Z_FULL + 8 * buffer);
    }
    __syncwarp();
}

__device__ __forceinline__ void run_first(const Place& at, const TensorMap& x, const uint4* __restrict__ packed) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / WARPGROUP;
    const int first = (at.rank * 2 + group) * FIRST_M;
    uint4 w[FIRST_M][FIRST_K / 16];
    read_weights(w, packed, first);
    uint32_t owner[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
        owner[half] = in_block(at.shared, l_of(half * 8 * TOGETHER + lane / 4) / OWN_L);
    const uint32_t stage = at.shared + AT_Z_STAGE + threadIdx.x / 32 * Z_STAGE;

    const Ring ring{at.shared + group * STAGES * X_BYTES, at.shared + AT_X_FULL + 8 * group * STAGES, x, first};
    const bool loads = threadIdx.x % WARPGROUP == 0;
    Ahead ahead{at.tile, 0};
#pragma unroll 1
    for (int slot = 0; slot < STAGES; ++slot, ahead.advance(at.step))
        if (loads && ahead.tile < at.tiles) ring.load(slot, ahead.m, ahead.tile);

    int slot = 0, parity = 0, buffer = 0, z_parity = 1;
    int read = -1, read_parity = 0;  // the slot read before this one: it is loaded again once all warps have read it
#pragma unroll 1
    for (int tile = at.tile; tile < at.tiles; tile += at.step) {
#pragma unroll
        for (int m = 0; m < FIRST_M; ++m) {
            float d[SUMS];
            if (m % BATCH == 0) barrier_wait(ring.full + 8 * slot, parity);
            const uint64_t rows = operand(ring.slots + slot * X_BYTES + m % BATCH * X_PIECE);
            products_begin();
#pragma unroll
            for (int k = 0; k < FIRST_K / 16; ++k)
                multiply_add<0>(d, w[m][k], rows + (k / 4 * X_PLANE + k % 4 * 32) / 16, k, Element());
            products_commit();
            if (m % BATCH == 0 && read >= 0) {
                if (loads && ahead.tile < at.tiles) {
                    barrier_wait(ring.empty(read), read_parity);
                    ring.load(read, ahead.m, ahead.tile);
                }
                ahead.advance(at.step);
            }
            __syncwarp();
            finish_products(d);
            if (m % BATCH == BATCH - 1) {
                if (lane == 0) barrier_arrive(ring.empty(slot));
                read = slot, read_parity = parity;
                if (++slot == STAGES) slot = 0, parity ^= 1;
            }
            stage_z(d, stage, m % TOGETHER);
            if (m == TOGETHER - 1) barrier_wait(at.shared + AT_Z_EMPTY + 8 * buffer, z_parity);
            if (m % TOGETHER == TOGETHER - 1)
                send_z(stage, owner, (first + m - (TOGETHER - 1)) * PIECE_K, buffer);
        }
        buffer ^= 1;
        if (buffer == 0) z_parity ^= 1;
    }
}

// ---- the second factor ----
// Where chunk `chunk` of a line of y lies, for run `run` of 8 neighbouring l: lanes that read together, other banks.
__device__ __forceinline__ int y_chunk(int chunk, int row, int run) {
    return (chunk ^ row & 7 ^ run * (64 / SHARED_L)) * 16;
}

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

// Finish the sums of 64 columns j of one l, and send the rows to the blocks that write them.
__device__ __forceinline__ void send_y(const Place& at, float (&d)[SUMS], uint32_t stage, const Epilogue& e, int l,
                                       int part, int buffer) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, group = threadIdx.x / WARPGROUP;
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
#pragma unroll
    for (int i = 0; i < TILE / 16; ++i) {
        const float* from = d + 8 * i;
        const int row = 16 * i + lane / 16 * 8 + lane % 8, chunk = 2 * warp + lane / 8 % 2;
        store_turned(stage + row * 128 + (chunk ^ row & 7) * 16,
                     {pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]),
                      pack(from[6], from[7])});
    }
    barrier_of_warpgroup(1 + group);  // also: the other stage has been read
    const int shared_l = at.rank % SHARE * OWN_L + l;
#pragma unroll
    for (int i = 0; i < TILE / 16; ++i) {
        const int row = 16 * i + threadIdx.x % WARPGROUP / 8, chunk = threadIdx.x % 8;
        const uint4 v = read_16_bytes(stage + row * 128 + (chunk ^ row & 7) * 16);
        const uint32_t owner = in_block(at.shared, at.rank / SHARE * SHARE + row / SHARED_ROWS);
        const uint32_t plane = owner + AT_Y + buffer * Y_BYTES + (shared_l * PARTS + part) * Y_PLANE;
        store_there(plane + row % SHARED_ROWS * 128 + y_chunk(chunk, row, shared_l / 8), v,
                    owner + AT_Y_FULL + 8 * buffer);
    }
}

// Add the residual to rounded sums, 4 columns j by 8 neighbouring l, and activate; in turn, as above.
__device__ __forceinline__ void add_residuals(uint32_t (&pairs)[4][4], const Epilogue& e, Index at) {
#pragma unroll 1
    for (int turn = 0; turn < 4; ++turn, at += WIDTH_L) {
        const uint4 added = *reinterpret_cast<const uint4*>(e.residual + at);
        const uint32_t words[4] = {added.x, added.y, added.z, added.w};
        float sums[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = unpack(pairs[0][i / 2], i % 2) + unpack(words[i / 2], i % 2);
        if (e.activation != ACTIVATION_NONE) activate_all(sums, e);
#pragma unroll
        for (int p = 0; p < 4; ++p) {
            pairs[0][p] = pairs[1][p], pairs[1][p] = pairs[2][p], pairs[2][p] = pairs[3][p];
            pairs[3][p] = pack(sums[2 * p], sums[2 * p + 1]);
        }
    }
}

// A thread that writes: of the block's rows every LINES_APART-th from `line` on, 4 columns j by 8 neighbouring l.
constexpr int ACROSS = SHARED_L / 8, LINES_APART = 2 * WARPGROUP / (ACROSS * 16 * PARTS);
constexpr int LINES_EACH = SHARED_ROWS > LINES_APART ? SHARED_ROWS / LINES_APART : 1;
static_assert(LINES_EACH == 1 || SHARED_ROWS % 8 == 0, "rows of a thread lie alike");
struct Writer {
    const Place& at;
    const Epilogue& e;
    int rows, line, column;
    uint32_t from;  // in the first buffer

    __device__ __forceinline__ Writer(const Place& at, const Epilogue& e, int rows) : at(at), e(e), rows(rows) {
        const int thread = threadIdx.x % (2 * WARPGROUP), rank = at.rank % SHARE;
        const int run = thread % ACROSS, four = thread / ACROSS % 16, part = thread / ACROSS / 16 % PARTS;
        const int first = thread / (ACROSS * 16 * PARTS);
        line = rank * SHARED_ROWS + first;
        column = (part * 64 + four * 4) * WIDTH_L + (at.rank - rank) * OWN_L + run * 8;
        from = at.shared + AT_Y + (run * 8 * PARTS + part) * Y_PLANE + first * 128 + y_chunk(four / 2, line, run) +
               four % 2 * 8;
        if (first >= SHARED_ROWS) line = TILE;  // nothing is left to do
    }

    // Interleave the l of a tile's rows, and write them.
    __device__ __forceinline__ void write(int tile, int buffer) const {
        if (line >= TILE) return;
        const int first = tile * TILE + line;
        const Index start = Index(first) * WIDTH_OUT + column;
#pragma unroll
        for (int n = 0; n < LINES_EACH; ++n) {
            if (first + n * LINES_APART >= rows) return;
            write(start + n * LINES_APART * WIDTH_OUT,
                  (from ^ n * LINES_APART % 8 * 16) + buffer * Y_BYTES + n * LINES_APART * 128);
        }
    }

    __device__ __forceinline__ void write(Index start, uint32_t from) const {
        uint2 planes[8];
#pragma unroll
        for (int l = 0; l < 8; ++l) planes[l] = read_8_bytes(from + l * PARTS * Y_PLANE);
        uint32_t pairs[4][4];
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const int j = i / 4, l = i % 4 * 2;
            pairs[j][l / 2] = __byte_perm(j < 2 ? planes[l].x : planes[l].y, j < 2 ? planes[l + 1].x : planes[l + 1].y,
                                          j % 2 ? 0x7632 : 0x5410);
        }
        if (e.residual) add_residuals(pairs, e, start);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            write_out(e.y + start + j * WIDTH_L, make_uint4(pairs[j][0], pairs[j][1], pairs[j][2], pairs[j][3]));
    }
};

// Write what the block got in a turn of its team.
__device__ __forceinline__ void write_turn(const Place& at, const Writer& writer, int turn) {
    const int buffer = turn & 1, lane = threadIdx.x % 32;
    const uint32_t full = at.shared + AT_Y_FULL + 8 * buffer, empty = at.shared + AT_Y_EMPTY + 8 * buffer;
    barrier_wait(full, turn >> 1 & 1);
    if (threadIdx.x == 2 * WARPGROUP) barrier_expect(full, Y_BYTES);
    writer.write(at.tile + turn * at.step, buffer);
    __syncwarp();
    if (lane < SHARE) arrive_there(in_block(empty, at.rank / SHARE * SHARE + lane));
}

__device__ __forceinline__ void run_second(const Place& at, const uint4* __restrict__ packed, const Epilogue& e,
                                           int rows) {
    const int lane = threadIdx.x % 32, group = threadIdx.x / WARPGROUP - 2;
    uint4 w[SECOND_M][SECOND_K / 16];
    read_weights(w, packed, (at.rank * 2 + group) * SECOND_M);
    const uint32_t stage = at.shared + AT_Y_STAGE + group * 2 * Y_STAGE;
    const Writer writer(at, e, rows);
#pragma unroll 1
    for (int turn = 0, tile = at.tile;; ++turn, tile += at.step) {
        if (tile < at.tiles) {
            const int buffer = turn & 1, parity = turn >> 1 & 1;
            const uint32_t full = at.shared + AT_Z_FULL + 8 * buffer;
            barrier_wait(full, parity);
            if (threadIdx.x == 2 * WARPGROUP) barrier_expect(full, Z_BYTES);
            publish_shared();
#pragma unroll
            for (int m = 0; m < SECOND_M; ++m) {
                float d[SUMS];
                const int l = (group * SECOND_M + m) / PARTS, part = (group * SECOND_M + m) % PARTS;
                const uint64_t z = z_operand(at.shared + AT_Z + buffer * Z_BYTES + l * SECOND_K * Z_LINE);
                products_begin();
#pragma unroll
                for (int k = 0; k < SECOND_K / 16; ++k) multiply_add<1>(d, w[m][k], z + k * Z_LINE, k, Element());
                products_commit();
                finish_products(d);
                if (m == SECOND_M - 1 && lane < TEAM) arrive_there(in_block(at.shared + AT_Z_EMPTY + 8 * buffer, lane));
                if (m == 0) barrier_wait(at.shared + AT_Y_EMPTY + 8 * buffer, parity ^ 1);
                send_y(at, d, stage + (turn * SECOND_M + m) % 2 * Y_STAGE, e, l, part, buffer);
            }
        }
        if (turn > 0) write_turn(at, writer, turn - 1);  // a turn late, so that there is no wait for the others
        if (tile >= at.tiles) break;
    }
}

__device__ __forceinline__ void init_barriers(uint32_t shared) {
    for (int slot = 0; slot < 2 * STAGES; ++slot) {
        barrier_init(shared + AT_X_FULL + 8 * slot, 1);
        barrier_init(shared + AT_X_EMPTY + 8 * slot, WARPGROUP / 32);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
        barrier_init(shared + AT_Z_FULL + 8 * buffer, 1);
        barrier_init(shared + AT_Z_EMPTY + 8 * buffer, TEAM * 8);
        barrier_init(shared + AT_Y_FULL + 8 * buffer, 1);
        barrier_init(shared + AT_Y_EMPTY + 8 * buffer, SHARE * 8);
    }
    barriers_are_ready();
    for (int buffer = 0; buffer < 2; ++buffer) {
        barrier_expect(shared + AT_Z_FULL + 8 * buffer, Z_BYTES);
        barrier_expect(shared + AT_Y_FULL + 8 * buffer, Y_BYTES);
    }
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
    if (threadIdx.x < 2 * WARPGROUP)
        run_first(at, x, first);
    else
        run_second(at, second, epilogue, rows);
    __syncwarp();
    meet_team();  // nobody leaves while others still store or arrive here
}
