/*
** comm.cuh - collectives of ranks with a GPU each: threads of one process, or processes.
*/
#ifndef FM_KERNELS_COMM_CUH
#define FM_KERNELS_COMM_CUH

#include "cuda.cuh"

extern "C" {
#include "op/comm.h"
}

extern const fm_collectives fm_cuda_collectives;

/* Waits for the device's stream. With ranks beside it no longer than the hub allows, nor past an abort: then what waits on the
   device is ended, and the result is FM_EDEVICE. */
fm_status fm_cuda_sync(fm_cuda *d, fm_error *err, const char *what);
/* *done: the stream is empty; the same errors. */
fm_status fm_cuda_look(fm_cuda *d, fm_error *err, const char *what, bool *done);

#endif
