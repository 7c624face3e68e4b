// labels[r] = index of the largest of x[r, :], the first of equals, for the rows in use; 0 if any is NaN. If there are
// `rows`, labels[r] is that of row rows[r] of x, and 0 if that is -1.
// One thread a row: rows are short, and neighbouring threads share the lines that they read.
#include "element.cuh"

using Element = ELEMENT;

extern "C" __global__ void __launch_bounds__(256)
argmax(const Element* __restrict__ x, int pitch, int channels, const int* __restrict__ count,
       const int* __restrict__ rows, int* __restrict__ labels) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= *count) return;
    const int row = rows ? rows[r] : r;
    if (row < 0) {
        labels[r] = 0;
        return;
    }
    const Element* from = x + (size_t)row * pitch;
    float best = to_float(from[0]);
    int label = 0;
    bool strange = best != best;
    for (int c = 1; c < channels; ++c) {
        const float value = to_float(from[c]);
        strange = strange || value != value;
        if (value > best) best = value, label = c;
    }
    labels[r] = strange ? 0 : label;
}
