// Activations of the epilogues, in fp32. The codes are those of cuda/activation.py; NaN stays NaN.
#pragma once

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

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

// negative_slope counts for leaky_relu only. All threads of a warp take the same branch.
__device__ __forceinline__ float activate(float x, int activation, float negative_slope) {
    switch (activation) {
        case ACTIVATION_RELU:
            return x < 0.0f ? 0.0f : x;
        case ACTIVATION_LEAKY_RELU:
            return x < 0.0f ? x * negative_slope : x;
        case ACTIVATION_GELU:
            return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case ACTIVATION_GELU_TANH:
            return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
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
