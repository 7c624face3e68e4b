// Kernel maps that are put in order together, by launches with a row of blocks for each.
#pragma once

#define MOST_ORDERINGS 12

// An offset, those of a part side by side, and the bit of a row's key that it sets, -1 for none.
struct Slot {
    int offset, bit;
};

// As cuda/key_order.py packs it; what it is about is said where it is used, in key_order.cu and for a map in kernel_map.cu.
struct Ordering {
    const int *keys, *count;
    int *counts, *starts, *ranks, *order, *ones;
    const int* rows;
    const unsigned* masks;
    const Slot* slots;
    int* map;
    unsigned* present;
    int parts, length, bins, pitch, volume, close;
};

static_assert(sizeof(Ordering) == 120, "as it is packed");

struct Orderings {
    Ordering of[MOST_ORDERINGS];
};
