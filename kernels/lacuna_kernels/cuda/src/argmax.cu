// labels[r] = index of the largest of x[r, :], the first of equals, for the rows in use; 0 if any is NaN.
// One thread a row: rows are short, and neighbouring threads share the lines that they read.
#include "element.cuh"

using Element = ELEMENT;

extern "C" __global__ void __launch_bounds__(256)
argmax(const Element* __restrict__ x, int pitch, int channels, const int* __restrict__ count,
       int* __restrict__ labels) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= *count) return;
    const Element* from = x + (size_t)row * pitch;
    float best = to_float(from[0]);
    int label = 0;
    bool strange = best != best;
    for (int c = 1; c < channels; ++c) {
        const float value = to_float(from[c]);
        strange = strange || value != value;
        if (value > best) best = value, label = c;
    }
    labels[row] = strange ? 0 : label;
}
