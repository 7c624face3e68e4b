// Binary search in rising lists.
#pragma once

// Index of the first i of n with at(i) at least `value`, n if there is none.
template <class Value, class At>
__device__ inline int first_at_least(int n, Value value, At at) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (at(middle) < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// The item that owns a row: the last i with offsets[i] <= row, for offsets [items + 1] that start at 0.
__device__ inline int item_of_row(const int* __restrict__ offsets, int items, int row) {
    return first_at_least(items, row + 1, [=](int item) { return offsets[item + 1]; });
}
