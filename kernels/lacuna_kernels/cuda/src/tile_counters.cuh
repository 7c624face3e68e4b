// How many tiles the blocks of a launch have taken, by the counter that the host gave it; launches that may run at once
// have different ones. All are 0 before a launch and after it.
#pragma once

#ifndef COUNTERS
#define COUNTERS 65536
#endif

__device__ unsigned tiles_taken[COUNTERS];
