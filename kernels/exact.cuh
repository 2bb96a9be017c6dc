/*
** exact.cuh - products in f32 arithmetic: what one is about, and the form for many rows.
*/
#ifndef FM_KERNELS_EXACT_CUH
#define FM_KERNELS_EXACT_CUH

#include "cuda.cuh"

struct plain_job {
  fm_dmat w;
  const float *x, *norm, *up, *bias;
  float *out;
  int64_t ldx, ldo, n;
  float eps;
  bool add;
};

/* Many rows (the router of a prompt): f32 weights of cols % 128 == 0, x and w in whole vectors; no up, bias, add. */
void fm_exact_many(fm_ctx *c, const plain_job *j);

#endif
