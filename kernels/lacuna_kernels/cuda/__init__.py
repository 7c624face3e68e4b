"""The CUDA backend: hand-written kernels, compiled and launched through PyCUDA, over memory that torch owns."""
