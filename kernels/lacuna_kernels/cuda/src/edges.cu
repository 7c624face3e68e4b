// Edges by what they lead to. A pair is a node and a relation by which edges lead to it. Pairs are numbered by their
// node, then by their relation; the edges of a pair keep their order.
// edges int32 [capacity, 3] are (source, target, relation), nodes by their number within their item, whose edges and
// nodes begin at `offsets` and `node_offsets` [items + 1]. Edges past *count, and nodes past *nodes, are not read.
// Launched in this order: relation_keys, [sort.cu], target_keys, [sort.cu], place_edges, [scan.cu], number_pairs,
// node_keys, [sort.cu], map_pairs. Two sorts, since nodes times relations may be more than 32 bits can count.
#include "gray.cuh"
#include "map_places.cuh"
#include "search.cuh"

#define THREADS 256

__device__ inline int thread_index() { return blockIdx.x * THREADS + threadIdx.x; }

// The edge at a place of the order by relation; null for the order in which they came.
__device__ inline int edge_at(const int* by_relation, int place) { return by_relation ? by_relation[place] : place; }

extern "C" __global__ void __launch_bounds__(THREADS)
relation_keys(const int* __restrict__ edges, const int* __restrict__ count, int* __restrict__ keys) {
    const int edge = thread_index();
    if (edge < *count) keys[edge] = edges[(size_t)edge * 3 + 2];
}

// keys [capacity]: the rows of the targets, in the order by relation.
extern "C" __global__ void __launch_bounds__(THREADS)
target_keys(const int* __restrict__ edges, const int* __restrict__ count, const int* __restrict__ offsets, int items,
            const int* __restrict__ node_offsets, const int* __restrict__ by_relation, int* __restrict__ keys) {
    const int place = thread_index();
    if (place >= *count) return;
    const int edge = edge_at(by_relation, place);
    keys[place] = node_offsets[item_of_row(offsets, items, edge)] + edges[(size_t)edge * 3 + 1];
}

// targets [capacity]: the rows of the targets, sorted; by_target: where each was in the order by relation.
// sources, relations [capacity]: those of the edges in this order; is_first: whether a pair begins there.
extern "C" __global__ void __launch_bounds__(THREADS)
place_edges(const int* __restrict__ edges, const int* __restrict__ count, const int* __restrict__ offsets, int items,
            const int* __restrict__ node_offsets, const int* __restrict__ by_relation,
            const int* __restrict__ by_target, const int* __restrict__ targets, int* __restrict__ sources,
            int* __restrict__ relations, int* __restrict__ is_first) {
    const int place = thread_index();
    if (place >= *count) return;
    const int edge = edge_at(by_relation, by_target[place]), relation = edges[(size_t)edge * 3 + 2];
    sources[place] = node_offsets[item_of_row(offsets, items, edge)] + edges[(size_t)edge * 3];
    relations[place] = relation;
    const int before = place ? edge_at(by_relation, by_target[place - 1]) : edge;
    is_first[place] = !place || targets[place] != targets[place - 1] || relation != edges[(size_t)before * 3 + 2];
}

// starts [capacity + 1]: where the edges of each pair begin, and the last one's end; pair_relations [capacity].
// rank: how many pairs begin before each edge; *pairs: how many there are.
extern "C" __global__ void __launch_bounds__(THREADS)
number_pairs(const int* __restrict__ count, const int* __restrict__ is_first, const int* __restrict__ rank,
             const int* __restrict__ relations, const int* __restrict__ pairs, int* __restrict__ starts,
             int* __restrict__ pair_relations) {
    const int place = thread_index(), n = *count;
    if (place == n) starts[*pairs] = n;
    if (place >= n || !is_first[place]) return;
    starts[rank[place]] = place;
    pair_relations[rank[place]] = relations[place];
}

// The first pair of a node or of those after it.
__device__ inline int first_pair(int node, int n, const int* __restrict__ targets, const int* __restrict__ rank,
                                 int pairs) {
    const int place = first_at_least(n, node, [=](int i) { return targets[i]; });
    return place < n ? rank[place] : pairs;
}

// node_starts [nodes + 1]: the first pair of each node. keys [nodes] are what nodes are sorted by: where the word of
// their relations comes in the Gray code, neighbouring relations sharing one of `bits` bits if there are more.
extern "C" __global__ void __launch_bounds__(THREADS)
node_keys(const int* __restrict__ count, const int* __restrict__ targets, const int* __restrict__ rank,
          const int* __restrict__ pairs, const int* __restrict__ pair_relations, const int* __restrict__ nodes,
          int relations, int bits, int* __restrict__ node_starts, int* __restrict__ keys) {
    const int node = thread_index();
    if (node > *nodes) return;
    const int start = first_pair(node, *count, targets, rank, *pairs);
    node_starts[node] = start;
    if (node == *nodes) return;
    const int stop = first_pair(node + 1, *count, targets, rank, *pairs);
    unsigned word = 0;
    for (int pair = start; pair < stop; ++pair) word |= 1u << pair_relations[pair] * bits / relations;
    keys[node] = gray_rank(word);
}

// The kernel map of a convolution that reads pairs, as kernel_map.cu has it: sorted [nodes] becomes `order`; map int32
// [relations, capacity] is the pair of each relation and place, or -1; present uint32 [capacity / GROUP, words], zeros
// before, has a bit for every relation that any of GROUP places has. A thread has a place and 32 relations: `tiles`
// blocks a word.
extern "C" __global__ void __launch_bounds__(THREADS)
map_pairs(const int* __restrict__ nodes, const int* __restrict__ sorted, const int* __restrict__ node_starts,
          const int* __restrict__ pair_relations, int relations, int words, int tiles, int* __restrict__ order,
          int* __restrict__ map, int capacity, unsigned* __restrict__ present) {
    const int word = blockIdx.x / tiles, place = blockIdx.x % tiles * THREADS + threadIdx.x, first = word * 32;
    if (place >= *nodes) return;
    const int node = sorted[place], stop = node_starts[node + 1];
    if (!word) order[place] = node;
    int pair = node_starts[node];
    pair += first_at_least(stop - pair, first, [=](int i) { return pair_relations[pair + i]; });
    int next = pair < stop ? pair_relations[pair] : relations;
    unsigned found = 0;
    for (int k = 0; k < 32 && first + k < relations; ++k) {
        const bool here = next == first + k;
        map[(size_t)(first + k) * capacity + place] = here ? pair : -1;
        if (!here) continue;
        found |= 1u << k;
        ++pair;
        next = pair < stop ? pair_relations[pair] : relations;
    }
    if (found) atomicOr(&present[(size_t)(place / GROUP) * words + word], found);
}
