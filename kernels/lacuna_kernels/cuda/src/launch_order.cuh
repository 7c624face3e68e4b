// How a kernel and those before and after it on a stream follow one another, if they may overlap: launch.py (sm_90).
// All blocks wait before they end, those that have nothing to do, too: whoever waits for this kernel then waits for all
// before it. They wait, some thread of each, before they let the next one begin: what that reads before it waits itself
// has to be complete before this one began. So the launch before the one before has ended when a kernel begins.
#pragma once

// Wait until all kernels before this one have ended, and what they wrote is visible: for the calling thread.
__device__ __forceinline__ void wait_for_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Once a thread of every block has called this, or the block has ended, the next kernel may begin.
__device__ __forceinline__ void let_next_kernel_begin() { asm volatile("griddepcontrol.launch_dependents;"); }
