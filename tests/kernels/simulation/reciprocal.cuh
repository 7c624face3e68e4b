// Stands in for src/reciprocal.cuh where kernels run on a CPU.
#pragma once

inline float reciprocal(float x) { return 1.0f / x; }
