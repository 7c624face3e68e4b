// Sites and open-addressed tables of them. A slot holds the row of a site in some list, or FREE.
// Full coordinates are compared, so any int32 values work: nothing is packed and nothing can overflow.
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

// Returns the slot that holds an equal site, -1 if none does.
template <class SiteOf>
__device__ inline int find_slot(const int* table, unsigned mask, Site site, SiteOf site_of) {
    unsigned slot = hash_site(site) & mask;
    for (int probe = 0; probe < MAX_PROBES; ++probe, slot = (slot + 1) & mask) {
        const int found = table[slot];
        if (found == FREE) return -1;
        if (same_site(site_of(found), site)) return (int)slot;
    }
    return -1;
}

// Returns the row of a site in a finished table over a list of sites, -1 if it is not there.
__device__ inline int find_site(const int* __restrict__ table, unsigned mask, const Site* __restrict__ sites,
                                Site site) {
    const int slot = find_slot(table, mask, site, [=](int row) { return sites[row]; });
    return slot < 0 ? -1 : table[slot];
}
