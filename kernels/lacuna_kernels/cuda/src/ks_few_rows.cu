// A chain of Kronecker-sparse factors for few rows, fp16 or bf16 with fp32 sums: a team of blocks carries 8 * TILES
// rows from the first factor to the last, and what is between factors stays in the shared memory of the team.
//
// A factor is a*d units (i, l), each a dense b x c matrix. 16 columns j of a unit are an item: a warp computes it by
// mma.m16n8k16, the values being the 16-row operand and 8 rows of x the other, over k upwards. A block owns whole
// units, or several blocks share one. The values come packed as fragments, 16 bytes a lane, in the order of the items;
// each lane copies its own into a ring of shared memory, across the ends of items and factors, so that values are there
// before x.
//
// Shared memory holds x as atoms: 8 rows of one feature, 16 bytes; a block keeps the features that its items read, each
// factor's in a buffer of its own. Who computes a feature sends it to the blocks that read it, which wait until all
// bytes have come. The team of a chain is a cluster; that of a single factor need not be.
//
// WIDE, x may be, and the y of a chain may be written, in fp32: so a network's ends need no launches of their own.
//
// What bounds it is the number of instructions, cold in the instruction cache: rare things stand behind branches.
#include <cstdint>

#include "activation.cuh"
#include "element.cuh"
#include "hopper.cuh"
#include "team.cuh"

#ifndef TILES
#undef ELEMENT
#define ELEMENT __nv_bfloat16
#define TILES 1
#define WIDE 0  // whether x and y may be fp32
#endif
#ifndef BLOCKS
#define BLOCKS (TILES == 1 && !WIDE ? 2 : 1)
#endif
#ifndef STAGES
#define STAGES 3
#endif
static_assert(STAGES >= 3, "one slot is read, one may still be, and one arrives");

using Element = ELEMENT;
using Index = long long;

constexpr int BATCH = 4;  // fragments of one slot of a ring
constexpr int SLOT_BYTES = BATCH * 512;
constexpr int ATOM = 16;
constexpr int LONGEST = 16;   // factors of a program, with the one that gathers y
constexpr int WARPS = 16;     // of a block, at most
constexpr int RANK_BIT = 20;  // a place: the block's rank, and below this bit that of the atom in its buffer
constexpr int ACTIVATION_MASK = 0xff, HAS_BIAS = 0x100, HAS_RESIDUAL = 0x200, HAS_Y = 0x400;

// x / by, for x * by < 2^32.
struct Divisor {
    unsigned by, magic;
    __device__ __forceinline__ int operator()(int x) const { return magic ? __umulhi(x, magic) : x; }
};

struct Factor {
    const char* values;       // [items][k_tiles][32 lanes][16 bytes]
    const int2* routes;       // [items][16] (column of y or -1, where the next factor reads it)
    const float* bias;        // [width_out] or null
    const Element* residual;  // [rows, width_out] or null
    Element* y;               // [rows, width_out], or null if only the next factor reads it
    int items, share, warp_items, k_tiles;   // in all, of a block, of a warp; steps of 16 over c
    int units, block_units, spread, buffer;  // in all; of a block; blocks that share one; where its atoms are
    int c, d, pitch, unused;                 // pitch: bytes from one tile of rows to the next
    int width_in, width_out, options;        // options: an activation, and what is not null
    float negative_slope;
    Divisor by_d, by_strips, by_inner;       // strips: items of a unit
};

struct Program {
    int factors, unused, drain, warps;
    int staging, atoms, barriers, padded;    // places in shared memory
    Factor of[LONGEST];
};

__device__ __forceinline__ int swizzled(int atom) { return (atom ^ (atom >> 3 & 7)) * ATOM; }

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
__device__ __noinline__ float activate_any(float x, int activation, float slope) {
    return activate(x, activation, slope);
}

__device__ __forceinline__ int items_here(const Factor& f, int rank) {
    return max(0, min(f.share, f.items - rank * f.share));
}
__device__ __forceinline__ int units_here(const Factor& f, int rank) {
    return f.spread > 1 ? rank * f.share < f.items : max(0, min(f.block_units, f.units - rank * f.block_units));
}

// The values of all items of a warp, factor after factor. A lane copies and reads its own 16 bytes of every fragment,
// so that nobody else need be asked.
struct Ring {
    const Program& p;
    const char* from;  // this lane's bytes of the next fragment
    uint32_t slots;    // this lane's bytes of the first slot
    int factor, items, k, slot;  // slot: the next to be filled

    __device__ __forceinline__ uint32_t oldest() const {
        return slots + (slot + 1 == STAGES ? 0 : slot + 1) * SLOT_BYTES;
    }

    __device__ __forceinline__ void fill(int rank, int warp) {
        while (items == 0 && factor + 1 < p.factors) {
            const Factor& f = p.of[++factor];
            const int first = warp * f.warp_items;
            items = max(0, min(f.warp_items, items_here(f, rank) - first));
            k = f.k_tiles;
            from = f.values + (Index(rank) * f.share + first) * (k * 512) + threadIdx.x % 32 * 16;
        }
        if (items) {
#pragma unroll
            for (int t = 0; t < BATCH; ++t)
                if (t < k)
                    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                                 ::"r"(slots + slot * SLOT_BYTES + t * 512), "l"(from + t * 512)
                                 : "memory");
            from += min(k, BATCH) * 512;
            if ((k -= BATCH) <= 0) k = p.of[factor].k_tiles, --items;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (++slot == STAGES) slot = 0;
    }
};

// What is known of an item before its sums: fetched while the item before it is computed, whatever its factor.
struct Ahead {
    int column, place;  // of y, or -1; where the next factor reads it: feature lane % 16
    float bias[2];      // of features lane / 4 and 8 further

    __device__ __forceinline__ void load(const Factor& f, int rank, int q) {
        const int item = rank * f.share + q;
        const int2 route = item < f.items ? __ldg(f.routes + item * 16 + threadIdx.x % 16) : make_int2(-1, 0);
        column = route.x, place = route.y;
    }
    __device__ __forceinline__ void load_bias(const Factor& f) {
        if (!(f.options & HAS_BIAS)) return;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int own = __shfl_sync(0xffffffff, column, threadIdx.x % 32 / 4 + 8 * h);
            bias[h] = own >= 0 ? __ldg(f.bias + own) : 0.0f;
        }
    }
};

// 8 neighbouring elements, of x's own type or of fp32, rounded.
__device__ __forceinline__ uint4 eight(const Element* from) { return *reinterpret_cast<const uint4*>(from); }
__device__ __forceinline__ uint4 eight(const float* from) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    return make_uint4(pack(low.x, low.y, Element()), pack(low.z, low.w, Element()),
                      pack(high.x, high.y, Element()), pack(high.z, high.w, Element()));
}

// Bring in the features that this block's items of the first factor read: a thread makes whole atoms.
template <class Source>
__device__ __forceinline__ void load_x(const Factor& f, const Source* x, int rows, int rank, int threads,
                                       char* atoms) {
    const int units = units_here(f, rank), first = f.spread > 1 ? f.by_strips(rank * f.share) : rank * f.block_units;
    const Index width = f.width_in;
    if (f.d == 1 && f.c % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0) {  // 8 rows of 8 features
        const int runs = units * f.c / 8;
        const Source* start = x + Index(first) * f.c;
#pragma unroll 1
        for (int task = threadIdx.x; task < runs * TILES; task += threads) {
            const int n = task % TILES, run = task / TILES;
            const int unit = f.by_inner(run * 8), atom = run * 8 + unit * (f.k_tiles * 16 - f.c);
            uint32_t row[8][4];
            const Source* from = start + n * 8 * width + run * 8;
#pragma unroll
            for (int r = 0; r < 8; ++r) {
                uint4 v = make_uint4(0, 0, 0, 0);
                if (n * 8 + r < rows) v = eight(from);
                from += width;
                row[r][0] = v.x, row[r][1] = v.y, row[r][2] = v.z, row[r][3] = v.w;
            }
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                uint32_t w[4];
#pragma unroll
                for (int r = 0; r < 4; ++r)
                    w[r] = __byte_perm(row[2 * r][k / 2], row[2 * r + 1][k / 2], k % 2 ? 0x7632 : 0x5410);
                *reinterpret_cast<uint4*>(atoms + n * f.pitch + swizzled(atom + k)) =
                    make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
        return;
    }
#pragma unroll 1
    for (int task = threadIdx.x; task < f.block_units * f.c; task += threads) {
        const int outer = f.by_inner(task), inner = task - outer * int(f.by_inner.by);
        const int unit = f.d == 1 ? outer : inner, k = f.d == 1 ? inner : outer;
        if (unit >= units) continue;
        const int i = f.by_d(first + unit);
        const Source* from = x + (Index(i) * f.c + k) * f.d + first + unit - i * f.d;
        char* to = atoms + swizzled(unit * (f.k_tiles * 16) + k);
#pragma unroll 1
        for (int n = 0; n < TILES; ++n, from += 8 * width, to += f.pitch) {
            __align__(16) Element atom[8];
#pragma unroll
            for (int r = 0; r < 8; ++r)
                atom[r] = from_float<Element>(n * 8 + r < rows ? to_float(from[r * width]) : 0.0f);
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(atom);
        }
    }
}

// Zeros where c is not a multiple of 16: nobody sends features there.
__device__ __forceinline__ void clear_padding(const Program& p, int threads, char* shared) {
#pragma unroll 1
    for (int factor = 0; factor < p.factors; ++factor) {
        const Factor& f = p.of[factor];
        const int padding = f.k_tiles * 16 - f.c;
#pragma unroll 1
        for (int task = threadIdx.x; task < f.block_units * padding; task += threads) {
            const int atom = task / padding * (f.k_tiles * 16) + f.c + task % padding;
            for (int n = 0; n < TILES; ++n)
                *reinterpret_cast<uint4*>(shared + p.atoms + f.buffer + n * f.pitch + swizzled(atom)) =
                    make_uint4(0, 0, 0, 0);
        }
    }
}

__device__ __forceinline__ void write_eight(Element* to, const Element (&v)[8]) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(v);
}
__device__ __forceinline__ void write_eight(float* to, const Element (&v)[8]) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
        reinterpret_cast<float4*>(to)[h] = make_float4(to_float(v[4 * h]), to_float(v[4 * h + 1]),
                                                       to_float(v[4 * h + 2]), to_float(v[4 * h + 3]));
}

// Write the run of features of y that this block gathered, of y's own type or widened to fp32.
template <class Target>
__device__ __forceinline__ void drain(const Factor& g, Target* y, int rows, int rank, int threads, const char* atoms) {
    const int begin = rank * g.c, features = min(g.c, g.width_out - begin);
    const bool vectors = g.width_out % 8 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
#pragma unroll 1
    for (int task = threadIdx.x; task < (features + 7) / 8 * (8 * TILES); task += threads) {
        const int row = task % (8 * TILES), run = task / (8 * TILES) * 8;
        if (row >= rows) continue;
        __align__(16) Element v[8];
        const char* from = atoms + row / 8 * g.pitch + row % 8 * 2;
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = *reinterpret_cast<const Element*>(from + swizzled(run + e));
        Target* to = y + Index(row) * g.width_out + begin + run;
        if (vectors) {
            write_eight(to, v);
        } else {
#pragma unroll 1
            for (int e = 0; e < 8 && run + e < features; ++e)
                to[e] = from_float<Target>(to_float(*reinterpret_cast<const Element*>(from + swizzled(run + e))));
        }
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
ks_few_rows(const __grid_constant__ Program p, const void* x, void* y, const int* count, int rows, int wide_x,
            int wide_y) {
    extern __shared__ __align__(128) char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rank = blockIdx.x;
    const uint32_t base = shared_address(shared), barriers = base + p.barriers;
    asm volatile("griddepcontrol.launch_dependents;");
    Ring ring{p, nullptr, base + warp * (STAGES * SLOT_BYTES) + lane * 16, -1, 0, 0, 0};
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) ring.fill(rank, warp);
#pragma unroll 1
    for (int factor = 1 + warp; factor < p.factors + p.drain; factor += p.warps) {  // how much comes from the team
        if (lane) continue;
        const Factor& f = p.of[factor];
        const int features =
            factor < p.factors ? units_here(f, rank) * f.c : max(0, min(f.c, f.width_out - rank * f.c));
        barrier_init(barriers + factor * 8, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        barrier_expect(barriers + factor * 8, features * (ATOM * TILES));
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    Ahead ahead;
    ahead.load(p.of[0], rank, warp * p.of[0].warp_items);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const int start = blockIdx.y * (8 * TILES);
    const int used = min(8 * TILES, max(0, (count ? min(*count, rows) : rows) - start));
    const Index skipped = Index(start) * p.of[0].width_in;
    char* const atoms = shared + p.atoms + p.of[0].buffer;
    if (WIDE && wide_x)
        load_x(p.of[0], static_cast<const float*>(x) + skipped, used, rank, p.warps * 32, atoms);
    else
        load_x(p.of[0], static_cast<const Element*>(x) + skipped, used, rank, p.warps * 32, atoms);
    if (p.padded) clear_padding(p, p.warps * 32, shared);
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");  // all barriers of the team are there
    __syncthreads();

    const uint32_t staging = base + p.staging + warp * (TILES * 16 * ATOM) + lane % 16 * ATOM;
    ahead.load_bias(p.of[0]);
#pragma unroll 1
    for (int factor = 0; factor < p.factors; ++factor) {
        const Factor& f = p.of[factor];
        const Factor& g = p.of[factor + 1];
        const int end = min((warp + 1) * f.warp_items, items_here(f, rank)), options = f.options, k_tiles = f.k_tiles;
        const bool send = factor + 1 < p.factors + p.drain;
        const uint32_t from = base + p.atoms + f.buffer, to_base = base + p.atoms + g.buffer;
        int q = warp * f.warp_items;
        if (factor && q < end) barrier_wait(barriers + factor * 8, 0);
        if (q >= end && factor + 1 < p.factors) {
            ahead.load(g, rank, warp * g.warp_items);
            ahead.load_bias(g);
        }
#pragma unroll 1
        for (; q < end; ++q) {
            const Ahead item = ahead;
            const bool last = q + 1 == end;
            if (!last)
                ahead.load(f, rank, q + 1);
            else if (factor + 1 < p.factors)
                ahead.load(g, rank, warp * g.warp_items);

            float sums[TILES][4] = {};
            int atom = f.by_strips(q) * (k_tiles * 16) + lane;
#pragma unroll 1
            for (int k = 0; k < k_tiles; k += BATCH) {
                asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
                uint4 a[BATCH];
#pragma unroll
                for (int t = 0; t < BATCH; ++t) a[t] = read_16_bytes(ring.oldest() + t * 512);
#pragma unroll
                for (int t = 0; t < BATCH; t += 2, atom += 32) {
                    if (k + t >= k_tiles) break;
                    uint32_t b[TILES][4];
#pragma unroll
                    for (int n = 0; n < TILES; ++n)
                        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                                     : "=r"(b[n][0]), "=r"(b[n][1]), "=r"(b[n][2]), "=r"(b[n][3])
                                     : "r"(from + n * f.pitch + swizzled(atom)) : "memory");
#pragma unroll
                    for (int n = 0; n < TILES; ++n) multiply_add(sums[n], a[t], b[n][0], b[n][1], Element());
                    if (k + t + 1 < k_tiles) {
#pragma unroll
                        for (int n = 0; n < TILES; ++n) multiply_add(sums[n], a[t + 1], b[n][2], b[n][3], Element());
                    }
                }
                ring.fill(rank, warp);  // the slot that was read before this one
            }

            if (!last)
                ahead.load_bias(f);
            else if (factor + 1 < p.factors)
                ahead.load_bias(g);
            if (options & HAS_BIAS) {
#pragma unroll
                for (int n = 0; n < TILES; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[n][e] += item.bias[e / 2];
            }
            if (options & HAS_RESIDUAL) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int own = __shfl_sync(0xffffffff, item.column, lane / 4 + 8 * h);
#pragma unroll
                    for (int n = 0; n < TILES; ++n)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            const int row = n * 8 + lane % 4 * 2 + e;
                            if (row < used && own >= 0)
                                sums[n][2 * h + e] += to_float(f.residual[Index(start + row) * f.width_out + own]);
                        }
                }
            }
            const int activation = options & ACTIVATION_MASK;
            if (activation == ACTIVATION_RELU) {
#pragma unroll
                for (int n = 0; n < TILES; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[n][e] = sums[n][e] < 0.0f ? 0.0f : sums[n][e];
            } else if (activation != ACTIVATION_NONE) {
#pragma unroll
                for (int n = 0; n < TILES; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[n][e] = activate_any(sums[n][e], activation, f.negative_slope);
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n)
                asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};"
                             ::"r"(staging + n * 16 * ATOM), "r"(pack(sums[n][0], sums[n][1], Element())),
                             "r"(pack(sums[n][2], sums[n][3], Element()))
                             : "memory");
            __syncwarp();
#pragma unroll
            for (int n = lane / 16; n < TILES; n += 2) {
                if (item.column < 0) continue;
                const uint4 v = read_16_bytes(staging + n * 16 * ATOM);
                if (send) {
                    const uint32_t to = to_base + n * g.pitch + (item.place & ((1 << RANK_BIT) - 1));
                    int to_rank = item.place >> RANK_BIT;
                    const int last = to_rank + g.spread;
                    do {
                        store_there(in_block(to, to_rank), v, in_block(barriers + (factor + 1) * 8, to_rank));
                    } while (++to_rank < last);
                }
                if (options & HAS_Y) {
                    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
                    Element* to = f.y + Index(start + n * 8) * f.width_out + item.column;
#pragma unroll
                    for (int r = 0; r < 8; ++r, to += f.width_out)
                        if (n * 8 + r < used) *to = reinterpret_cast<const Element*>(words)[r];
                }
            }
            __syncwarp();  // the next item's sums come to the same place
        }
    }
    if (p.drain) {
        const Factor& g = p.of[p.factors];
        if (rank * g.c < g.width_out) {
            barrier_wait(barriers + p.factors * 8, 0);
            const Index at = Index(start) * g.width_out;
            const char* const made = shared + p.atoms + g.buffer;
            if (WIDE && wide_y)
                drain(g, static_cast<float*>(y) + at, used, rank, p.warps * 32, made);
            else
                drain(g, static_cast<Element*>(y) + at, used, rank, p.warps * 32, made);
        }
    }
}
