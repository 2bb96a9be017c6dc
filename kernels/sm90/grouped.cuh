/*
** grouped.cuh - products of all chosen experts with their rows in one launch; Hopper only.
*/
#ifndef FM_KERNELS_SM90_GROUPED_CUH
#define FM_KERNELS_SM90_GROUPED_CUH

#include "cuda.cuh"

struct fm_grouped {
  bool f8;
  const void *x; const float *xs;        /* (slots, k) bf16, or f8 with scales (slots, k / 128) */
  const void *w, *up;                    /* expert e's (n, k) at w + e * w_step bytes; up: NULL, or the second of a pair */
  int64_t w_step, up_step;
  const float *ws, *us; int64_t ws_step, us_step;     /* f8: scales (n / 128, k / 128), steps in floats */
  const int32_t *start;                  /* (experts + 1) first place of each */
  int experts;
  int64_t slots, n, k;
  void *out;                             /* (slots, n): f32; of a pair bf16 */
};

bool      fm_grouped_can(fm_ctx *c, const fm_grouped *g);
fm_status fm_grouped_run(fm_ctx *c, const fm_grouped *g);

#endif
