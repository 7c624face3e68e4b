// Turning the small matrices that rows are made of, so that a factor with d > 1 becomes one with d = 1:
//   ks_turn_in    t[n, i, l, k] = x[n, i, k, l]                                  for x of rows [a, c, d]
//   ks_turn_out   y[n, i, j, l] = f(t[n, i, l, j] + bias[i, j, l] + residual[n, i, j, l])    for t of rows [a, d, b]
// A block turns `group` whole matrices, or CHUNK of k (or j) by all l of one, in shared memory: global reads and writes
// are runs of whole vectors of 16 bytes, and elements are picked on the way out of shared memory, two neighbours at
// once where they lie at whole words.
// x and y are those of the whole batch, t of its rows from `first` on. Threads step from place to place without a
// division.
#include <cstdint>

#include "ks_matmul.cuh"

constexpr int VECTOR = 16 / sizeof(Element);
constexpr int THREADS = 256;
constexpr int RUN = 8;  // vectors side by side that neighbouring threads write: whole lines of memory

struct __align__(16) Vector { Element of[VECTOR]; };

// A place among `size` by ... that goes on by a fixed step: low < size, and high.
struct Place {
    int size, low, high, step_low, step_high;

    __device__ Place(int at, int step, int size)
        : size(size), low(at % size), high(at / size), step_low(step % size), step_high(step / size) {}

    // Whether there was a carry.
    __device__ bool next() {
        low += step_low, high += step_high;
        const bool carry = low >= size;
        if (carry) low -= size, ++high;
        return carry;
    }
};

// Rows of this part of the batch that are in use.
__device__ __forceinline__ int rows_here(const int* count, int first, int rows) {
    return max(0, min(rows, rows_in_use(count, first + rows) - first));
}

// What a block turns: rows `start` to start + size of `matrices` matrices of [length, d] from number `matrix` on.
struct Unit {
    Index matrix;
    int matrices, start, size;

    __device__ Unit(Index total, int length, int group, int chunk) {
        const int chunks = (length + chunk - 1) / chunk;
        matrix = Index(blockIdx.x / chunks) * group;
        matrices = int(min(Index(group), total - matrix));
        start = int(blockIdx.x % chunks) * chunk;
        size = min(chunk, length - start);
    }
};

// Neighbouring elements that a thread picks at once: two, where they lie at whole words.
template <int WIDTH>
struct alignas(WIDTH * sizeof(Element)) Some { Element of[WIDTH]; };

// Write what ks_turn_in has in shared memory: WIDTH l of VECTOR k a thread, of RUN neighbouring VECTOR k in turn.
template <int WIDTH>
__device__ __forceinline__ void write_in(const Element* tile, Element* to, const Unit& unit, int c, int d, int gap) {
    const int vectors = unit.size / VECTOR, runs = (vectors + RUN - 1) / RUN, pitch = (d + gap) * VECTOR;
    const int r = threadIdx.x % RUN;
    Place line(threadIdx.x / RUN, THREADS / RUN, d / WIDTH);  // WIDTH l, and runs of all matrices
    Place run(line.high, line.step_high, runs);               // runs of one, and matrices
    while (run.high < unit.matrices) {
        const int k = run.low * RUN + r, l = line.low * WIDTH;  // k in vectors
        if (k < vectors) {
            const Element* picked = tile + (run.high * vectors + k) * pitch + l;
            Vector out[WIDTH];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                const auto some = *reinterpret_cast<const Some<WIDTH>*>(picked + e * d);
#pragma unroll
                for (int w = 0; w < WIDTH; ++w) out[w].of[e] = some.of[w];
            }
#pragma unroll
            for (int w = 0; w < WIDTH; ++w)
                *reinterpret_cast<Vector*>(to + (Index(run.high) * d + l + w) * c + k * VECTOR) = out[w];
        }
        if (line.next()) ++run.low;
        run.next();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
ks_turn_in(const Element* __restrict__ x, Element* __restrict__ t, const int* __restrict__ count,
           int* __restrict__ count_here, int first, int rows, int a, int c, int d, int group, int chunk) {
    // [matrix][VECTOR k][VECTOR][l], as x has it, but for a gap after each VECTOR k if threads would meet in a bank.
    extern __shared__ __align__(16) Element tile[];
    const int used = rows_here(count, first, rows);
    if (blockIdx.x == 0 && threadIdx.x == 0) *count_here = used;
    const Unit unit(Index(used) * a, c, group, chunk);
    if (unit.matrices <= 0) return;
    const Index start = (Index(first) * a + unit.matrix) * c * d + Index(unit.start) * d;
    const Vector* from = reinterpret_cast<const Vector*>(x + start);
    const int gap = d % 2 == 0 ? 1 : 0, vectors = unit.size / VECTOR;  // vectors; of a line of t
    Place in(threadIdx.x, THREADS, d);
#pragma unroll 4
    for (int v = threadIdx.x; v < unit.matrices * vectors * d; v += THREADS, in.next())
        reinterpret_cast<Vector*>(tile)[v + in.high * gap] = from[v];
    __syncthreads();

    Element* to = t + unit.matrix * c * d + unit.start;
    if (d % 2 == 0)
        write_in<2>(tile, to, unit, c, d, gap);
    else
        write_in<1>(tile, to, unit, c, d, gap);
}

// Write what ks_turn_out has in shared memory: vectors of y of WIDTH neighbouring j a thread. WITHIN: no vector goes
// past d, into the next j.
template <int WIDTH, bool WITHIN>
__device__ __forceinline__ void write_out(const Element* tile, const Epilogue& epilogue, const Unit& unit, Index first,
                                          int a, int b, int d, int pitch) {
    static_assert(WIDTH == 1 || WITHIN, "else j would differ within a vector");
    const bool plain = !epilogue.bias && !epilogue.residual && epilogue.activation == ACTIVATION_NONE;
    Place element(threadIdx.x * VECTOR, THREADS * VECTOR, d);       // l, and WIDTH j of all matrices
    Place line(element.high, element.step_high, unit.size / WIDTH);  // WIDTH j of one, and matrices
    while (line.high < unit.matrices) {
        const int matrix = line.high, j = line.low * WIDTH;
        int l = element.low;
        const Index whole = first * a + unit.matrix + matrix;  // counted over the batch's rows and i
        const Index offset = Index(unit.start + j) * d + l;
        const Element* picked = tile + (matrix * d + l) * pitch + j;
        Vector out[WIDTH];
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            const auto some = *reinterpret_cast<const Some<WIDTH>*>(picked);
#pragma unroll
            for (int w = 0; w < WIDTH; ++w) out[w].of[e] = some.of[w];
            picked += pitch;
            if (!WITHIN && ++l == d) l = 0, picked += 1 - d * pitch;  // the next j
        }
#pragma unroll
        for (int w = 0; w < WIDTH; ++w) {
            const Index place = offset + w * d, to = whole * b * d + place;
            if (!plain) {
                float sums[VECTOR];
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) sums[e] = to_float(out[w].of[e]);
                epilogue.finish(sums, (whole % a) * b * d + place, to);
#pragma unroll
                for (int e = 0; e < VECTOR; ++e) out[w].of[e] = from_float<Element>(sums[e]);
            }
            *reinterpret_cast<Vector*>(epilogue.y + to) = out[w];
        }
        if (element.next()) ++line.low;
        line.next();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
ks_turn_out(const Element* __restrict__ t, const float* __restrict__ bias, const Element* residual, Element* y,
            const int* __restrict__ count, int first, int rows, int a, int b, int d, int group, int chunk,
            int activation, float negative_slope) {
    extern __shared__ __align__(16) Element tile[];  // [matrix][l][j], rows of `pitch`: an odd number of words
    const Unit unit(Index(rows_here(count, first, rows)) * a, b, group, chunk);
    if (unit.matrices <= 0) return;
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const int pitch = chunk + 4 / int(sizeof(Element)), vectors = unit.size / VECTOR;
    const Element* from = t + unit.matrix * b * d + unit.start;
    Place at(threadIdx.x, THREADS, vectors);  // vectors of a line, and lines
    const int turn = threadIdx.x / 8 % 4;     // the first word to write, so that 32 threads have 32 banks
#pragma unroll 4
    for (int v = threadIdx.x; v < unit.matrices * d * vectors; v += THREADS, at.next()) {
        uint4 in = *reinterpret_cast<const uint4*>(from + Index(at.high) * b + at.low * VECTOR);
        if (turn & 1) in = make_uint4(in.y, in.z, in.w, in.x);
        if (turn & 2) in = make_uint4(in.z, in.w, in.x, in.y);
        uint32_t* to = reinterpret_cast<uint32_t*>(tile + at.high * pitch + at.low * VECTOR);
        to[turn] = in.x, to[(turn + 1) % 4] = in.y, to[(turn + 2) % 4] = in.z, to[(turn + 3) % 4] = in.w;
    }
    __syncthreads();

    constexpr int WORD = 4 / sizeof(Element);
    if (d % VECTOR == 0)
        write_out<WORD, true>(tile, epilogue, unit, first, a, b, d, pitch);
    else
        write_out<1, false>(tile, epilogue, unit, first, a, b, d, pitch);
}
