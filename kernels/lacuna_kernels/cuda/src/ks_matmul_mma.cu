// A Kronecker-sparse factor on the tensor cores, fp16 or bf16 with fp32 sums (see ks_matmul.cuh): one block makes a
// tile of y of TILE_N rows, TILE_B columns j and TILE_D neighbouring l, for one i.
//
// Both operands are matrices of rows [k][l] (x by n, the values by j), so both are brought in by the same copy, as they
// lie: STAGES steps over k are under way. What a lane reads for (k, k + 1) and all TILE_D l is contiguous, and byte
// permutes turn it into the pairs (k, k + 1) by l that mma.m16n8k16 takes. The pitch keeps the rows that are read
// together in different banks.
#include <cstdint>

#include "ks_matmul.cuh"

#ifndef TILE_N
#undef ELEMENT
#define ELEMENT __half
#define TILE_N 64
#define TILE_B 32
#define TILE_D 8
#define WARPS_N 4
#define WARPS_B 2
#endif
#ifndef STAGES
#define STAGES 3
#endif

constexpr int L = TILE_D;
constexpr int TILE_K = L > 2 ? 16 : 32;  // at least 64 bytes a row
constexpr int WARP_N = TILE_N / WARPS_N;
constexpr int WARP_B = TILE_B / WARPS_B;
constexpr int THREADS = 32 * WARPS_N * WARPS_B;
constexpr int PITCH = TILE_K * L / 2 + (L > 4 ? 4 : 4 * L);  // 32-bit words a row
constexpr int X_WORDS = TILE_N * PITCH;
constexpr int STAGE_WORDS = X_WORDS + TILE_B * PITCH;
constexpr int PITCH_Y = TILE_B * L + 4;  // floats a row, for the sums of a tile: [row][j][l], in place of the stages
constexpr int VECTOR = 8;                // elements in 16 bytes
static_assert(WARP_N % 16 == 0 && WARP_B % 8 == 0, "warps own whole fragments");
static_assert(VECTOR % L == 0, "vectors own whole runs");
#ifdef SHARED_BYTES
static_assert(SHARED_BYTES >= 4 * STAGES * STAGE_WORDS && SHARED_BYTES >= 4 * TILE_N * PITCH_Y, "too little memory");
#endif

// Whether the runs of l that a tile takes start at multiples of 16 bytes, given that the rows do.
__device__ __forceinline__ bool whole_vectors(const void* data, Index row, int d) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && row % VECTOR == 0 && (L < VECTOR ? d == L : d % VECTOR == 0);
}

__device__ __forceinline__ void copy_16_bytes(uint32_t* to, const Element* from, bool there) {
    const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const int bytes = there ? 16 : 0;  // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes));
}

// What is left of a matrix of rows [k][l] from where a tile starts, and how far its rows are apart.
struct Rest {
    Index pitch;
    int rows, k, l;
};

// Start copying ROWS rows of [TILE_K][L], at `from`; zeros past the end.
// A thread stays at one place (k, l) of the row and goes from row to row.
template <int ROWS>
__device__ __forceinline__ void load(uint32_t* tile, const Element* from, const Rest& rest, int d, bool vectors) {
    if (vectors) {
        constexpr int IN_ROW = TILE_K * L / VECTOR, AT_ONCE = THREADS / IN_ROW;
        static_assert(THREADS % IN_ROW == 0, "threads share rows evenly");
        const int first = threadIdx.x / IN_ROW, k = threadIdx.x % IN_ROW * VECTOR / L;
        const bool there = k < rest.k;
        const Element* source = from + first * rest.pitch + Index(k) * d;
        uint32_t* to = tile + first * PITCH + k * L / 2;
#pragma unroll
        for (int row = 0; row < ROWS; row += AT_ONCE, source += AT_ONCE * rest.pitch) {
            const bool wanted = there && row + first < rest.rows;
            if (row + AT_ONCE <= ROWS || row + first < ROWS)
                copy_16_bytes(to + row * PITCH, wanted ? source : from, wanted);
        }
    } else {
        constexpr int IN_ROW = TILE_K * L;
#pragma unroll 2
        for (int unit = threadIdx.x; unit < ROWS * IN_ROW; unit += THREADS) {
            const int row = unit / IN_ROW, k = unit % IN_ROW / L, l = unit % L;
            const bool there = row < rest.rows && k < rest.k && l < rest.l;
            Element* to = reinterpret_cast<Element*>(tile + row * PITCH) + k * L + l;
            *to = there ? from[row * rest.pitch + Index(k) * d + l] : from_float<Element>(0.0f);
        }
    }
}

// Read (k, k + 1) of L neighbouring l at `from` and pair them up: pairs[l] = (k, k + 1).
__device__ __forceinline__ void read_pairs(uint32_t (&pairs)[L], const uint32_t* from) {
    uint32_t words[L];
    if constexpr (L == 1) {
        pairs[0] = *from;
    } else {
        if constexpr (L == 2) {
            *reinterpret_cast<uint2*>(words) = *reinterpret_cast<const uint2*>(from);
        } else {
#pragma unroll
            for (int w = 0; w < L; w += 4) {
                const uint4 four = *reinterpret_cast<const uint4*>(from + w);
                words[w] = four.x, words[w + 1] = four.y, words[w + 2] = four.z, words[w + 3] = four.w;
            }
        }
#pragma unroll
        for (int w = 0; w < L / 2; ++w) {
            pairs[2 * w] = __byte_perm(words[w], words[L / 2 + w], 0x5410);
            pairs[2 * w + 1] = __byte_perm(words[w], words[L / 2 + w], 0x7632);
        }
    }
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], __half) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                             __nv_bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Sums of a warp, as mma.m16n8k16 hands them out: row lane / 4 (+ 8 for the last two), column lane % 4 * 2 (+ 1).
struct Sums {
    float of[L][WARP_N / 16][WARP_B / 8][4];
};

// Add the products of one stage; `x` and `w` are where this lane's rows start.
__device__ __forceinline__ void accumulate(Sums& sums, const uint32_t* x, const uint32_t* w) {
#pragma unroll
    for (int k = 0; k < TILE_K * L / 2; k += 8 * L) {
        uint32_t a[L][WARP_N / 16][4];
#pragma unroll
        for (int m = 0; m < WARP_N / 16; ++m)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                uint32_t pairs[L];
                read_pairs(pairs, x + (m * 16 + part % 2 * 8) * PITCH + k + part / 2 * 4 * L);
#pragma unroll
                for (int l = 0; l < L; ++l) a[l][m][part] = pairs[l];
            }
#pragma unroll
        for (int n = 0; n < WARP_B / 8; ++n) {
            uint32_t first[L], second[L];
            read_pairs(first, w + n * 8 * PITCH + k);
            read_pairs(second, w + n * 8 * PITCH + k + 4 * L);
#pragma unroll
            for (int l = 0; l < L; ++l)
#pragma unroll
                for (int m = 0; m < WARP_N / 16; ++m) {
                    const uint32_t b[2] = {first[l], second[l]};
                    multiply_add(sums.of[l][m][n], a[l][m], b, Element());
                }
        }
    }
}

// Lay the sums of the warp out as [row][j, l], `tile` being where this lane's first one belongs.
__device__ __forceinline__ void spread(const Sums& sums, float* tile) {
#pragma unroll
    for (int m = 0; m < WARP_N / 16; ++m)
#pragma unroll
        for (int n = 0; n < WARP_B / 8; ++n)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                float* to = tile + (m * 16 + part / 2 * 8) * PITCH_Y + (n * 8 + part % 2) * L;
                if constexpr (L >= 4) {
#pragma unroll
                    for (int l = 0; l < L; l += 4)
                        *reinterpret_cast<float4*>(to + l) =
                            make_float4(sums.of[l][m][n][part], sums.of[l + 1][m][n][part], sums.of[l + 2][m][n][part],
                                        sums.of[l + 3][m][n][part]);
                } else {
#pragma unroll
                    for (int l = 0; l < L; ++l) to[l] = sums.of[l][m][n][part];
                }
            }
}

// Where the tile starts in y, and how far the rows of y are apart.
struct Place {
    Index pitch, row, column;
};

// Finish a tile of sums and write it, VECTOR elements at once, which lie side by side in y.
__device__ __forceinline__ void write_vectors(const float* sums, const Epilogue& epilogue, const Place& to,
                                              const Rest& rest, int d) {
    constexpr int IN_ROW = TILE_B * L / VECTOR, AT_ONCE = THREADS / IN_ROW;
    static_assert(THREADS % IN_ROW == 0, "threads share rows evenly");
    const int first = threadIdx.x / IN_ROW, e = threadIdx.x % IN_ROW * VECTOR, j = e / L, l = e % L;
    if (j >= rest.k || l >= rest.l) return;
    const Index column = to.column + Index(j) * d + l;
    const float* from = sums + first * PITCH_Y + e;
    Index at = (to.row + first) * to.pitch + column;
#pragma unroll 1
    for (int row = first; row < TILE_N && row < rest.rows; row += AT_ONCE) {
        const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
        float finished[VECTOR] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        epilogue.finish(finished, column, at);
        __align__(16) Element out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = from_float<Element>(finished[v]);
        *reinterpret_cast<uint4*>(epilogue.y + at) = *reinterpret_cast<const uint4*>(out);
        from += AT_ONCE * PITCH_Y;
        at += AT_ONCE * to.pitch;
    }
}

// The same one by one, for any d and any alignment.
__device__ __forceinline__ void write_elements(const float* sums, const Epilogue& epilogue, const Place& to,
                                               const Rest& rest, int d) {
    constexpr int IN_ROW = TILE_B * L;
#pragma unroll 1
    for (int unit = threadIdx.x; unit < TILE_N * IN_ROW; unit += THREADS) {
        const int row = unit / IN_ROW, e = unit % IN_ROW, j = e / L, l = e % L;
        if (row >= rest.rows || j >= rest.k || l >= rest.l) continue;
        const Index column = to.column + Index(j) * d + l;
        epilogue.write(sums[row * PITCH_Y + e], column, (to.row + row) * to.pitch + column);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_THREADS / THREADS)
ks_matmul_mma(const Element* __restrict__ x, const Element* __restrict__ values, const float* __restrict__ bias,
              const Element* residual, Element* y, const int* __restrict__ count, int rows, int a, int b, int c, int d,
              int activation, float negative_slope) {
    extern __shared__ __align__(16) uint32_t shared[];
    const Pattern p{a, b, c, d};
    const Epilogue epilogue{bias, residual, y, activation, negative_slope};
    const bool vectors_in = whole_vectors(x, Index(c) * d, d) && whole_vectors(values, Index(c) * d, d);
    const bool vectors_out = whole_vectors(y, Index(b) * d, d);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp % WARPS_N * WARP_N + lane / 4, column = warp / WARPS_N * WARP_B;
    const int x_lane = row * PITCH + lane % 4 * L;
    const int w_lane = X_WORDS + (column + lane / 4) * PITCH + lane % 4 * L;
    const int y_lane = row * PITCH_Y + (column + lane % 4 * 2) * L;
    const int steps = (c + TILE_K - 1) / TILE_K;
    rows = rows_in_use(count, rows);
    const Index tiles = TileIndex::tiles(rows, p, TILE_N, TILE_B, TILE_D);

    for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const TileIndex at(tile, p, TILE_N, TILE_B, TILE_D);
        const Element* x_from = x + at.row * p.width_in() + Index(at.i) * c * d + at.l;
        const Element* w_from = values + (Index(at.i) * b + at.j) * c * d + at.l;

        auto start = [&](int step) {
            if (step < steps) {
                uint32_t* stage = shared + step % STAGES * STAGE_WORDS;
                const int k = step * TILE_K;
                const Rest x_rest{p.width_in(), rows - at.row, c - k, d - at.l};
                const Rest w_rest{Index(c) * d, b - at.j, c - k, d - at.l};
                load<TILE_N>(stage, x_from + Index(k) * d, x_rest, d, vectors_in);
                load<TILE_B>(stage + X_WORDS, w_from + Index(k) * d, w_rest, d, vectors_in);
            }
            asm volatile("cp.async.commit_group;");
        };

        Sums sums = {};
#pragma unroll 1
        for (int step = 0; step < STAGES - 1; ++step) start(step);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2));
            __syncthreads();
            start(step + STAGES - 1);
            const uint32_t* stage = shared + step % STAGES * STAGE_WORDS;
            accumulate(sums, stage + x_lane, stage + w_lane);
        }
        __syncthreads();  // the stages have been read, and the copies still under way bring nothing

        float* y_tile = reinterpret_cast<float*>(shared);
        spread(sums, y_tile + y_lane);
        __syncthreads();
        const Place to{p.width_out(), at.row, (Index(at.i) * b + at.j) * d + at.l};
        const Rest rest{p.width_out(), rows - at.row, b - at.j, d - at.l};
        if (vectors_out)
            write_vectors(y_tile, epilogue, to, rest, d);
        else
            write_elements(y_tile, epilogue, to, rest, d);
        __syncthreads();
    }
}
