// Sites and open-addressed tables. Full coordinates are compared, so any int32 values work: nothing is packed and
// nothing can overflow.
// While sites are made, a slot holds the first of the candidates that are equal. The table of a finished level finds
// blocks of 2 x 2 x 2 sites instead, since whoever looks for neighbours finds them in few blocks: an entry holds the row
// of the block's head, any one of its sites, and the block's hash; cells int32 [sites, 8] say, by the row of a head,
// which row each cell of its block is, -1 for none. Entries are in buckets of BUCKET, filled in order, that are read at
// once, so that hardly ever a second place has to be looked at.
#pragma once
#include "read_if.cuh"

#define FREE (-1)

// Tables are at most half full: then no run of slots comes near this limit, whatever their number.
#define MAX_PROBES 1024

#define BUCKET 4

struct __align__(16) Site {
    int item, x, y, z;
};

struct Entry {
    int head;  // FREE: there are no more in this bucket
    unsigned hash;
};

struct __align__(16) Bucket {
    Entry entries[BUCKET];
};

__device__ inline bool same_site(Site a, Site b) {
    return a.x == b.x && a.y == b.y && a.z == b.z && a.item == b.item;
}

// Odd factors, then the end of MurmurHash3, by Austin Appleby.
__device__ inline unsigned hash_site(Site site) {
    unsigned hash = (unsigned)site.item * 0x9e3779b1u + (unsigned)site.x * 0x85ebca77u + (unsigned)site.y * 0xc2b2ae3du +
                    (unsigned)site.z * 0x27d4eb2fu;
    hash = (hash ^ (hash >> 16)) * 0x85ebca6bu;
    hash = (hash ^ (hash >> 13)) * 0xc2b2ae35u;
    return hash ^ (hash >> 16);
}

// Leaves the smallest row of equal sites in the table, whatever the order of arrival; returns the slot, -1 if full.
// site_of(row) gives the site of any row that is inserted by the same launch or an earlier one.
template <class SiteOf>
__device__ inline int insert_site(int* table, unsigned mask, Site site, int row, SiteOf site_of) {
    unsigned slot = hash_site(site) & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, slot = (slot + 1) & mask) {
        int found = table[slot];
        if (found == FREE) found = atomicCAS(table + slot, FREE, row);
        if (found == FREE) return (int)slot;
        if (!same_site(site_of(found), site)) continue;
        if (found > row) atomicMin(table + slot, row);
        return (int)slot;
    }
    return -1;
}

// The block that a site lies in, and where in it.
__device__ inline Site block_of(Site site) { return {site.item, site.x >> 1, site.y >> 1, site.z >> 1}; }
__device__ inline int cell_of(Site site) { return (site.x & 1) << 2 | (site.y & 1) << 1 | (site.z & 1); }

// Put a site of a list, whose cells are all -1 before, into its block; by a launch that does so for all of the list.
// Returns false if the table is full. mask: of buckets.
__device__ inline bool add_site(Bucket* buckets, unsigned mask, int* cells, const Site* sites, int row) {
    const Site site = sites[row], block = block_of(site);
    const unsigned hash = hash_site(block);
    const unsigned long long free = ~0ull, own = (unsigned long long)hash << 32 | (unsigned)row;
    unsigned at = hash & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, at = (at + 1) & mask) {
        auto* bucket = reinterpret_cast<unsigned long long*>(&buckets[at]);
        const ulonglong2 two[] = {reinterpret_cast<ulonglong2*>(bucket)[0], reinterpret_cast<ulonglong2*>(bucket)[1]};
        const unsigned long long seen[BUCKET] = {two[0].x, two[0].y, two[1].x, two[1].y};
#pragma unroll
        for (int i = 0; i < BUCKET; ++i) {
            unsigned long long entry = seen[i];
            if (entry == free) entry = atomicCAS(bucket + i, free, own);
            if (entry == free) entry = own;
            const int head = (int)(unsigned)entry;
            if (entry >> 32 != hash || !same_site(block_of(sites[head]), block)) continue;
            cells[8 * (size_t)head + cell_of(site)] = row;
            return true;
        }
    }
    return false;
}

// The head of a block in a finished table, -1 if no site lies in it: an entry after another.
__device__ inline int look_for_block(const Bucket* __restrict__ buckets, unsigned mask, const Site* __restrict__ sites,
                                     Site block, unsigned hash) {
    unsigned at = hash & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, at = (at + 1) & mask) {
        for (int i = 0; i < BUCKET; ++i) {
            const Entry entry = buckets[at].entries[i];
            if (entry.head == FREE) return FREE;
            if (entry.hash == hash && same_site(block_of(sites[entry.head]), block)) return entry.head;
        }
    }
    return FREE;
}

// The same step by step, so that several can be under way: mostly the block is in its first bucket or nowhere.
struct BlockSearch {
    Site block, found;
    unsigned hash;
    Bucket bucket;
    int head;

    __device__ void start(const Bucket* __restrict__ buckets, unsigned mask, Site wanted) {
        block = wanted, hash = hash_site(block), bucket = buckets[hash & mask];
    }
    __device__ void look(const Site* __restrict__ sites) {
        head = FREE;
#pragma unroll
        for (int i = BUCKET - 1; i >= 0; --i)  // the first is taken, as free ones have a hash, too
            if (bucket.entries[i].hash == hash) head = bucket.entries[i].head;
        uint4 words;  // else the compiler would read them after those of the search before have come
        read_row(words, head, sites + head);
        found = {int(words.x), int(words.y), int(words.z), int(words.w)};
    }
    __device__ int end(const Bucket* __restrict__ buckets, unsigned mask, const Site* __restrict__ sites) const {
        const bool sure = head == FREE ? bucket.entries[BUCKET - 1].head == FREE : same_site(block_of(found), block);
        return sure ? head : look_for_block(buckets, mask, sites, block, hash);
    }
};

__device__ inline int find_block(const Bucket* __restrict__ buckets, unsigned mask, const Site* __restrict__ sites,
                                 Site block) {
    BlockSearch search;
    search.start(buckets, mask, block);
    search.look(sites);
    return search.end(buckets, mask, sites);
}

// The row of a site, -1 if it is not there.
__device__ inline int find_site(const Bucket* __restrict__ buckets, unsigned mask, const int* __restrict__ cells,
                                const Site* __restrict__ sites, Site site) {
    const int head = find_block(buckets, mask, sites, block_of(site));
    return head < 0 ? -1 : cells[8 * (size_t)head + cell_of(site)];
}
