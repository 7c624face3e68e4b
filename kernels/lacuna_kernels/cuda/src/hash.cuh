// Sites and open-addressed tables. Full coordinates are compared, so any int32 values work: nothing is packed and
// nothing can overflow.
// While sites are made, a slot holds the first of the candidates that are equal. The table of a finished level finds
// blocks of 2 x 2 x 2 sites instead, since whoever looks for neighbours finds them in few blocks: a slot holds the row
// of the block's head, any one of its sites, and cells int32 [sites, 8] say, by the row of a head, which row each cell
// of its block is, -1 for none.
#pragma once

#define FREE (-1)

// Tables are at most half full: then no run of slots comes near this limit, whatever their number.
#define MAX_PROBES 1024

struct __align__(16) Site {
    int item, x, y, z;
};

__device__ inline bool same_site(Site a, Site b) {
    return a.x == b.x && a.y == b.y && a.z == b.z && a.item == b.item;
}

// One that another block may have written in this launch: not from the first-level cache.
__device__ inline Site read_shared_site(const Site* site) {
    const int4 v = __ldcg(reinterpret_cast<const int4*>(site));
    return {v.x, v.y, v.z, v.w};
}

__device__ inline unsigned hash_mix(unsigned hash, unsigned value) {  // MurmurHash3's body, by Austin Appleby
    value *= 0xcc9e2d51u;
    value = __funnelshift_l(value, value, 15) * 0x1b873593u;
    hash ^= value;
    return __funnelshift_l(hash, hash, 13) * 5u + 0xe6546b64u;
}

__device__ inline unsigned hash_site(Site site) {
    unsigned hash = hash_mix(hash_mix(hash_mix(hash_mix(0u, site.item), site.x), site.y), site.z);
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

// Write a new site down, and put it into its block, by launches that do so for all sites; cells are all -1 before.
// Returns false if the table is full.
__device__ inline bool add_site(int* heads, unsigned mask, int* cells, Site* sites, Site site, int row) {
    sites[row] = site;
    __threadfence();  // before others find the row
    const Site block = block_of(site);
    unsigned slot = hash_site(block) & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, slot = (slot + 1) & mask) {
        int head = atomicCAS(heads + slot, FREE, row);
        if (head == FREE) head = row;
        if (head != row) {
            __threadfence();  // before the head's site is read
            if (!same_site(block_of(read_shared_site(sites + head)), block)) continue;
        }
        cells[8 * (size_t)head + cell_of(site)] = row;
        return true;
    }
    return false;
}

// The head of a block in a finished table, -1 if no site lies in it.
__device__ inline int find_block(const int* __restrict__ heads, unsigned mask, const Site* __restrict__ sites,
                                 Site block) {
    unsigned slot = hash_site(block) & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, slot = (slot + 1) & mask) {
        const int head = heads[slot];
        if (head == FREE || same_site(block_of(sites[head]), block)) return head;
    }
    return FREE;
}

// The row of a site, -1 if it is not there.
__device__ inline int find_site(const int* __restrict__ heads, unsigned mask, const int* __restrict__ cells,
                                const Site* __restrict__ sites, Site site) {
    const int head = find_block(heads, mask, sites, block_of(site));
    return head < 0 ? -1 : cells[8 * (size_t)head + cell_of(site)];
}
