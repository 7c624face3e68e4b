// y[r, c] = f((x0[r, c] + x1[r, c]) * scale[c] + shift[c]) for the rows in use, in fp32, rounded once.
// Activations, sums, batch norm, conversion of types, and the copies of a concatenation, whose y is some columns of a
// wider matrix (a pitch is the distance between rows, in elements). x1, scale and shift may be null.
// Channel of an element: (element of the row / inner) % channels, so that images [channels, inner] work too.
#include "activation.cuh"
#include "element.cuh"

#ifndef ELEMENT_IN
#define ELEMENT_IN float
#define ELEMENT_OUT float
#endif

extern "C" __global__ void __launch_bounds__(256) elementwise(
    const ELEMENT_IN* __restrict__ x0, const ELEMENT_IN* __restrict__ x1, const float* __restrict__ scale,
    const float* __restrict__ shift, ELEMENT_OUT* __restrict__ y, const int* __restrict__ rows, int width, int inner,
    int channels, int x0_pitch, int x1_pitch, int y_pitch, int activation, float negative_slope) {
    const unsigned first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x, count = *rows;
    const unsigned rows_on = step / width, columns_on = step - rows_on * width;  // else each element would be divided anew
    unsigned row = first / width;
    int column = first - row * width;
#pragma unroll 4
    while (row < count) {
        float value = to_float(x0[(size_t)row * x0_pitch + column]);
        if (x1) value += to_float(x1[(size_t)row * x1_pitch + column]);
        if (scale) {
            const int channel = column / inner % channels;
            value = value * scale[channel] + shift[channel];
        }
        y[(size_t)row * y_pitch + column] = from_float<ELEMENT_OUT>(activate(value, activation, negative_slope));
        row += rows_on, column += columns_on;
        if (column >= width) column -= width, ++row;
    }
}
