/*
** moe.cuh - what the files of the experts share.
*/
#ifndef FM_KERNELS_MOE_CUH
#define FM_KERNELS_MOE_CUH

#include "sm90/grouped.cuh"

/* Slots (row, k) by expert. */
struct sorted {
  int32_t *start;                        /* (experts + 1) first place of each expert */
  int32_t *row;                          /* (slots) place -> row */
  int32_t *place;                        /* (slots) slot -> place */
  int32_t *active, *n_active;            /* experts with rows */
};

struct stack { fm_dmat w; int64_t step, scale_step; };      /* expert e's matrix at data + e * step */

__device__ __forceinline__ fm_dmat fm_pick(const stack &s, int e) {
  fm_dmat w = s.w;
  w.data += e * s.step;
  if (w.scale) w.scale += e * s.scale_step;
  return w;
}

/* Answers that stay where they are, to be combined elsewhere: place (slots) slot -> row of y (slots, hidden). */
struct fm_kept { int32_t *place; float *y; };

/* Experts of one row, whose weights all fit the skinny kernels; whether they make e's choice themselves. */
bool      fm_moe_one_can(const fm_experts *e);
bool      fm_moe_one_chooses(const fm_experts *e);
fm_status fm_moe_one(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                     const stack *gate, const stack *up, const stack *down);

/* out[i] += sum over k of weight * y[place of slot], then the shared expert's; place NULL: slots stand in order. */
void fm_moe_combine(fm_ctx *c, float *out, const float *y, const float *weight, const int32_t *place, const float *shared,
                    const fm_experts *e, int64_t n);

/* Fills in what both products share; true when the device can. */
bool fm_moe_plan(fm_ctx *c, fm_grouped g[2], const fm_experts *e, const stack *gate, const stack *up, const stack *down, int64_t n);
/* Experts of many rows: sorted, gathered, multiplied by experts, combined. kept: not combined, ids of -1 are nobody's. */
fm_status fm_moe_grouped(fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e,
                         fm_grouped g[2], int64_t n, const fm_kept *kept);

#endif
