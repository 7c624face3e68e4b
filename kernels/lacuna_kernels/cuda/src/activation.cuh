// Activations of the epilogues, in fp32. The codes are those of cuda/activation.py; NaN stays NaN.
#pragma once

#include "reciprocal.cuh"

enum Activation : int {
    ACTIVATION_NONE = 0,
    ACTIVATION_RELU = 1,
    ACTIVATION_LEAKY_RELU = 2,
    ACTIVATION_GELU = 3,  // exact: x * Phi(x)
    ACTIVATION_GELU_TANH = 4,
    ACTIVATION_SILU = 5,
    ACTIVATION_SIGMOID = 6,
    ACTIVATION_TANH = 7,
};

// Within 2 units in the last place of the quotient; 0 where the exponential overflows.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

// Phi(x), the normal distribution, to 3e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
__device__ __forceinline__ float normal_below(float x) {
    const float t = reciprocal(1.0f + 0.23164189f * fabsf(x));
    const float p = 0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f);
    const float tail = exp2f(-0.72134752044448170f * x * x);
    const float below = t * (0.127414796f + t * (-0.142248368f + t * p)) * tail;  // that of -|x|
    return x < 0.0f ? below : 1.0f - below;
}

// negative_slope counts for leaky_relu only. All threads of a warp take the same branch.
__device__ __forceinline__ float activate(float x, int activation, float negative_slope) {
    switch (activation) {
        case ACTIVATION_RELU:
            return x < 0.0f ? 0.0f : x;
        case ACTIVATION_LEAKY_RELU:
            return x < 0.0f ? x * negative_slope : x;
        case ACTIVATION_GELU:
            return x * normal_below(x);
        case ACTIVATION_GELU_TANH:
            // (1 + tanh u) / 2 is the sigmoid of 2 u
            return x * sigmoid(1.59576912160573071f * (x + 0.044715f * x * x * x));
        case ACTIVATION_SILU:
            return x * sigmoid(x);
        case ACTIVATION_SIGMOID:
            return sigmoid(x);
        case ACTIVATION_TANH:
            return tanhf(x);
        default:
            return x;
    }
}
