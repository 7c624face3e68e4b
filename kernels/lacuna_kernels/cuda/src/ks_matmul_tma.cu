// A Kronecker-sparse factor on Hopper's tensor cores, fp16 or bf16 with fp32 sums (see ks_matmul.cuh), where the bulk
// tensor copies bring perfect tiles: batch-size-last with any d, and batch-size-first with d = 1.
//
// For each of a * d planes p = (i, l) blocks make tiles of a matrix whose rows lie as they do in y:
//   LAST   y[j, n] = sum over k of w[j, k] x[k, n]      rows j, columns n; the rows of x lie across k
//   FIRST  y[n, j] = sum over k of x[n, k] w[j, k]      rows n, columns j
//   SPARSE FIRST again, rows j, columns n, for a factor with a small d as if d were 1: its j are (j, l) and its k are
//          (k, l), and w is 0 where their l differ. Of every 4 neighbours along k at most two are not, and only those
//          are stored and multiplied (2:4 structured sparsity)
// One thread keeps STAGES steps of 64 k under way; two warpgroups multiply, finish their sums by panels of 64 x 64 in
// shared memory, and copy these out. Blocks stay and take tile after tile, so that copies in and out never pause.
//
// LAST with PAIR blocks (a cluster): each takes other rows of the same columns. Their steps come together: a block
// brings its rows, and its share of the columns to all: the products of tiles of 128 x 256 want more than
// multiprocessors that read different places get from the second-level cache (bench/limits.cu).
#ifndef TILES_ROWS
#define ELEMENT __half
#define LAST 1         // layout
#define SPARSE 0       // or 1, with LAST 0
#define GROUPS_ROWS 2  // warpgroups along the rows of a tile; the others lie along its columns
#define TILES_ROWS 1   // runs of 64 rows of a warpgroup
#define WIDTH 256      // columns of a warpgroup
#define STAGES 4
#define BATCH 2        // panels that a warpgroup finishes before it writes them
#define KEPT 2         // batches in shared memory: one is written while the next is finished
#define PAIR 1         // blocks that share columns: 1, or 2 with LAST
#endif

#include "tma.cuh"

// Sums of a thread of a quarter of a panel, 16 columns: rows `row` and row + 8 (the last two of every four), columns
// column + 2 v (+ 1).
using Part = float[8];

struct Sums {
    float of[TILES_ROWS][WIDTH / 2];

    __device__ __forceinline__ Part& part(int panel, int q) {
        return *reinterpret_cast<Part*>(of[panel / ACROSS] + panel % ACROSS * 32 + q * 8);
    }

    // Copy a quarter of a panel out; registers have no addresses, so that candidates are passed one by one.
    __device__ __forceinline__ void select(Part& part, int panel, int quarter) const {
#pragma unroll
        for (int p = 0; p < PANELS_OF_TILE; ++p) {
            if (p != panel) continue;
            asm volatile("");  // a branch, not a choice value by value
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                if (q != quarter) continue;
                asm volatile("");
#pragma unroll
                for (int v = 0; v < 8; ++v) part[v] = of[p / ACROSS][p % ACROSS * 32 + q * 8 + v];
            }
        }
    }
};

// This warp has read a stage, with all its lanes: all blocks that fill it are told.
__device__ __forceinline__ void release(uint32_t empty) {
    __syncwarp();
    if (PAIR > 1 && threadIdx.x % 32 < PAIR) arrive_there(in_block(empty, threadIdx.x % 32));
    if (PAIR == 1 && threadIdx.x % 32 == 0) barrier_arrive(empty);
}

// SPARSE: where the values of a thread's rows lie among each 4 neighbours along k. Row (j, l) has those at k = l,
// l + d, l + 2 d, ...; so places 64 rows on are those 64 k back, and after 96 k they come again, as d is 2, 3, 4 or 6.
struct Places {
    uint32_t words[3];  // for the first 64 j and 32 k; for the next 32 k; for those after them

    __device__ __forceinline__ Places(int thread, int d) {
        const int row = thread / 32 * 16 + thread % 32 / 4, half = thread % 2 * 16;
        for (int step = 0; step < 3; ++step) {
            words[step] = 0;
            for (int four = 0; four < 8; ++four) {
                const int k = step * 32 + half + four % 4 * 4;
                // The first k from here on with a value, counted from here; 192 is a multiple of d.
                const int first = (row + four / 4 * 8 - k + 192) % d, second = first + d;
                // The places of two values, or of one and any other, whose value is stored as 0.
                const int low = first < 3 ? first : 0, high = first < 3 && second < 4 ? second : 3;
                words[step] |= (low | high << 2) << 4 * four;
            }
        }
    }

    // Those of a tile whose first row is so many times 64 further on.
    __device__ __forceinline__ Places at(int blocks) const {
        Places turned(*this);
        for (int turns = blocks % 3; turns > 0; --turns) {
            const uint32_t first = turned.words[0];
            turned.words[0] = turned.words[1], turned.words[1] = turned.words[2], turned.words[2] = first;
        }
        return turned;
    }

    // Products read these registers for as long as they run, which the compiler does not know.
    __device__ __forceinline__ void stay() const { asm volatile("" ::"r"(words[0]), "r"(words[1]), "r"(words[2])); }
};
constexpr int TURNS = SPARSE ? 3 : 1;  // stages after which places are alike again

// Sum over all k; `rows` and `columns` of a stage's tiles belong to this warpgroup.
__device__ __forceinline__ void multiply(Sums& sums, Ring& ring, int steps, int rows, int columns,
                                         const Places& places) {
    uint32_t before = 0;
    int step = 0;
#pragma unroll 1
    while (step < steps) {
#pragma unroll
        for (int turn = 0; turn < TURNS; ++turn) {
            if (turn > 0 && step == steps) break;
            barrier_wait(ring.full(), ring.parity);
            const uint64_t left = SPARSE ? operand(ring.left() + rows / 64 * SPARSE_BYTES, 1024, 128)
                                         : operand(ring.left() + rows * STEP * 2);
            const uint64_t right = operand(ring.right() + columns * STEP * 2, LAST ? SQUARE_BYTES : 16);
            products_begin();
#pragma unroll
            for (int k = 0; k < STEP / (SPARSE ? 32 : 16); ++k)
#pragma unroll
                for (int m = 0; m < TILES_ROWS; ++m)
                    if constexpr (SPARSE)
                        multiply_add_sparse<WIDTH>(sums.of[m], left + (m * SPARSE_BYTES + k * 2048) / 16, right + k * 4,
                                                   places.words[(2 * turn + k + m) % 3], step > 0 || k > 0, Element());
                    else
                        multiply_add<WIDTH, LAST>(sums.of[m], left + (m * SQUARE_BYTES + k * 32) / 16,
                                                  right + k * (LAST ? 2048 : 32) / 16, step > 0 || k > 0, Element());
            products_commit();
            products_wait<1>();
            if (step > 0) release(before);
            before = ring.empty();
            ring.advance();
            ++step;
        }
    }
    products_wait<0>();
    if (SPARSE) places.stay();
    release(before);
}

// Bytes from the start of a swizzled panel to a run of 8 elements.
__device__ __forceinline__ int swizzled(int row, int run) { return row * 128 + (run ^ row % 8) * 16; }

// Write what is in use of a panel, element by element.
__device__ __forceinline__ void write_part(const unsigned char* panel, Element* y, const Shape& shape, const Corner& at,
                                           int thread) {
#pragma unroll 1
    for (int unit = thread; unit < 64 * 64; unit += WARPGROUP) {
        const int row = unit / 64, column = unit % 64;
        const int n = at.n + (LAST ? column : row), j = at.j + (LAST ? row : column);
        if (n >= shape.rows || j >= shape.b) continue;
        const Index to = LAST ? shape.feature(at.l, at.i, j) * shape.pitch + n
                              : Index(n) * shape.pitch + Index(at.i) * shape.plane + j;
        y[to] = *reinterpret_cast<const Element*>(panel + swizzled(row, column / 8) + column % 8 * 2);
    }
}

// How a warpgroup finishes its sums and writes them, batch by batch of panels.
struct Outlet {
    const TensorMap &map, &residuals;
    const float* bias;
    const Element* residual;
    Element* y;
    int activation;
    float negative_slope;
    unsigned char* panels;
    float* biases;       // of the tile's j that are this warpgroup's
    uint32_t arrived;    // barrier of residuals
    int id, thread;      // of the warpgroup, in the warpgroup
    bool parts, direct;  // rows may end before y does; rows of y are not aligned
    int batch = 0;       // where in shared memory
    uint32_t parity = 0;

    __device__ unsigned char* panel(int index) const { return panels + (batch * BATCH + index) * SQUARE_BYTES; }

    // Where a panel of this warpgroup starts, given where the tile does.
    __device__ static Corner corner(const Corner& tile, int index, int first_row, int first_column) {
        const int row = first_row + index / ACROSS * 64, column = first_column + index % ACROSS * 64;
        return {tile.n + (ROWS_J ? column : row), tile.j + (ROWS_J ? row : column), tile.l, tile.i};
    }

    __device__ static bool exists(const Shape& shape, const Corner& at) { return at.j < shape.b && at.n < shape.rows; }

    template <typename At>
    __device__ __forceinline__ static bool any(const Shape& shape, At at) {
        bool found = false;
#pragma unroll
        for (int p = 0; p < BATCH; ++p) found |= exists(shape, at(p));
        return found;
    }

    // Bring the bias for j from `first` on to shared memory, where all see it from the next `open` on.
    __device__ __forceinline__ void bring_bias(const Shape& shape, const Corner& tile, int first) const {
#pragma unroll
        for (int index = thread; index < BIASED; index += WARPGROUP) {
            const int j = tile.j + first + index;
            biases[index] = j < shape.b ? bias[shape.feature(tile.l, tile.i, j)] : 0.0f;
        }
    }

    // Wait for the memory of a batch, and start bringing the residual into it, if there is one.
    template <typename At>
    __device__ __forceinline__ void open(const Shape& shape, At at) {
        if (thread == 0) copies_out_have_read<KEPT - 1>();
        barrier_of_warpgroup(id);
        if (residual && thread == 0) {
            barrier_expect(arrived, BATCH * SQUARE_BYTES);
            for (int p = 0; p < BATCH; ++p)
                copy_in(shared_address(panel(p)), residuals, at(p).in_map(at(p).j), arrived);
        }
    }

    __device__ __forceinline__ void await_residual() {
        if (!residual) return;
        barrier_wait(arrived, parity);
        parity ^= 1;
    }

    // Where stmatrix and ldmatrix look for the lane's row of 16 bytes, of columns 16 q to 16 q + 15 of a panel of sums.
    __device__ uint32_t row_of(int index, int q) const {
        const int lane = thread % 32, row = thread / 32 * 16 + lane % 16;  // matrices 0 and 1 lie one above the other
        if (SPARSE)  // turned: rows n, columns j
            return shared_address(panel(index)) + swizzled(16 * q + lane / 16 * 8 + lane % 8, row / 8);
        return shared_address(panel(index)) + swizzled(row, 2 * q + lane / 16);
    }

    __device__ static void store(const float* sums, uint32_t row) {
        uint32_t pairs[4];
#pragma unroll
        for (int part = 0; part < 4; ++part) pairs[part] = pack(sums[2 * part], sums[2 * part + 1], Element());
        SPARSE ? store_turned(row, pairs) : store_matrices(row, pairs);
    }

    // Finish the sums of quarter q of a panel, which is in place `index` of the batch and is the tile's panel `which`.
    // Activations that take many instructions are SLOW.
    template <bool SLOW>
    __device__ __forceinline__ void finish(Part& sums, int index, int which, int q) const {
        const int lane = thread % 32;
        if (bias && ROWS_J) {
            const float* low = biases + which / ACROSS * 64 + thread / 32 * 16 + lane / 4;
#pragma unroll
            for (int v = 0; v < 8; ++v) sums[v] += low[v % 4 / 2 * 8];
        } else if (bias) {
            const float* from = biases + which % ACROSS * 64 + q * 16 + lane % 4 * 2;
#pragma unroll
            for (int v = 0; v < 8; ++v) sums[v] += from[v / 4 * 8 + v % 2];
        }
        if (residual) {
            uint32_t pairs[4];
            SPARSE ? load_turned(pairs, row_of(index, q)) : load_matrices(pairs, row_of(index, q));
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const float2 two = unpack(pairs[part], Element());
                sums[2 * part] += two.x, sums[2 * part + 1] += two.y;
            }
        }
        if (SLOW) {
#pragma unroll
            for (int v = 0; v < 8; ++v) sums[v] = activate(sums[v], activation, negative_slope);
        } else if (activation == ACTIVATION_RELU) {
#pragma unroll
            for (int v = 0; v < 8; ++v) sums[v] = activate(sums[v], ACTIVATION_RELU, negative_slope);
        }
        store(sums, row_of(index, q));
    }

    // Start writing a batch.
    template <typename At>
    __device__ __forceinline__ void close(const Shape& shape, At at) {
        publish_shared();
        barrier_of_warpgroup(id);
#pragma unroll
        for (int p = 0; p < BATCH; ++p) {
            const Corner to = at(p);
            if (!exists(shape, to)) continue;
            if (direct || (parts && to.n + 64 > shape.rows))
                write_part(panel(p), y, shape, to, thread);
            else if (thread == 0)
                copy_out(map, to.in_map(to.j), shared_address(panel(p)));
        }
        if (thread == 0) copies_out_commit();
        batch = batch + 1 == KEPT ? 0 : batch + 1;
    }
};

// Finish and write a tile whose epilogue takes few instructions: all in registers that are known beforehand.
enum Finish { PLAIN, QUICK };
template <Finish FINISH, typename Panel>
__device__ __forceinline__ void write_tile(Outlet& outlet, Sums& sums, const Shape& shape, Panel panel) {
#pragma unroll
    for (int first = 0; first < PANELS_OF_TILE; first += BATCH) {
        auto at = [&](int index) { return panel(first + index); };
        if (!outlet.any(shape, at)) continue;
        if (FINISH == PLAIN || !outlet.residual || first > 0) outlet.open(shape, at);
        if (FINISH == QUICK) outlet.await_residual();
#pragma unroll
        for (int index = 0; index < BATCH; ++index)
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                Part& part = sums.part(first + index, q);
                if (FINISH == QUICK)
                    outlet.finish<false>(part, index, first + index, q);
                else
                    Outlet::store(part, outlet.row_of(index, q));
            }
        outlet.close(shape, at);
    }
}

#if PAIR > 1
#define CLUSTER __cluster_dims__(PAIR, 1, 1)
#else
#define CLUSTER
#endif
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1)
ks_matmul_tma(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
              const __grid_constant__ TensorMap y_map, const __grid_constant__ TensorMap residual_map,
              const float* __restrict__ bias, const Element* residual, Element* y, const int* __restrict__ count,
              int counter, int rows, int a, int b, int c, int d, int together, int pitch, int plane, int direct,
              int activation, float negative_slope) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Shape shape{rows_in_use(count, rows), a, b, c, SPARSE ? 1 : d, pitch, plane};
    const uint32_t memory = shared_address(shared), arrived = memory + Ring::empty_at(STAGES);
    Ring ring{memory};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            barrier_init(memory + Ring::full_at(stage), 1);
            barrier_init(memory + Ring::empty_at(stage), PAIR * GROUPS * 4);
        }
        for (int group = 0; group < GROUPS; ++group) barrier_init(arrived + 8 * group, 1);
        for (int letter = 0; PAIR > 1 && letter < LETTERS; ++letter)
            barrier_init(memory + Letters::arrived_at(letter), 1);
        barriers_are_ready();
    }
    __syncthreads();
    if (PAIR > 1) meet_team();

    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");  // 24 + 2 * 240 is what three warpgroups have: 3 * 168
        if (threadIdx.x == 0) load_tiles(x_map, w_map, shape, together, counter, ring);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        const int group = threadIdx.x / WARPGROUP - 1, thread = threadIdx.x % WARPGROUP;
        const int row = (GROUPS_ROWS == 2 ? group : 0) * TILES_ROWS * 64;
        const int column = (GROUPS_ROWS == 2 ? 0 : group) * WIDTH;
        Outlet outlet{y_map, residual_map, bias, residual, y, activation, negative_slope,
                      shared + PANELS_AT + group * KEPT * BATCH * SQUARE_BYTES,
                      reinterpret_cast<float*>(shared + BIAS_AT) + group * BIASED,
                      arrived + 8 * group, 1 + group, thread, shape.rows < rows, direct != 0};
        const bool plain = !bias && !residual && activation == ACTIVATION_NONE;
        const bool slow = activation != ACTIVATION_NONE && activation != ACTIVATION_RELU;
        const Places places(SPARSE ? thread : 0, SPARSE ? d : 2);
        while (true) {
            barrier_wait(ring.full(), ring.parity);
            const Corner tile = ring.corner();
            if (tile.n < 0) break;
            auto panel = [&](int index) { return Outlet::corner(tile, index, row, column); };
            Sums sums;
            if (bias) outlet.bring_bias(shape, tile, ROWS_J ? row : column);
            // The first batch's residual comes while the products are summed.
            if (residual && outlet.any(shape, panel)) outlet.open(shape, panel);
            multiply(sums, ring, (c + STEP - 1) / STEP, row, column, SPARSE ? places.at((tile.j + row) / 64) : places);
            if (plain) {
                write_tile<PLAIN>(outlet, sums, shape, panel);
            } else if (!slow) {
                write_tile<QUICK>(outlet, sums, shape, panel);
            } else {
#pragma unroll 1
                for (int first = 0; first < PANELS_OF_TILE; first += BATCH) {
                    auto at = [&](int index) { return panel(first + index); };
                    if (!outlet.any(shape, at)) continue;
                    if (!residual || first > 0) outlet.open(shape, at);
                    outlet.await_residual();
#pragma unroll 1
                    for (int quarter = 0; quarter < 4 * BATCH; ++quarter) {
                        Part part;
                        sums.select(part, first + quarter / 4, quarter % 4);
                        outlet.finish<true>(part, quarter / 4, first + quarter / 4, quarter % 4);
                    }
                    outlet.close(shape, at);
                }
            }
        }
        if (thread == 0) copies_out_have_read<0>();
    }
    if (PAIR > 1) __syncwarp(), meet_team();  // nobody leaves while the other still brings, arrives or writes here
}
