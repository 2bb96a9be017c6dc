/*
** prompt.cuh - attention of prompts over keys and values that stand side by side; Hopper only.
*/
#ifndef FM_KERNELS_SM90_PROMPT_CUH
#define FM_KERNELS_SM90_PROMPT_CUH

#include "cuda.cuh"

/* Columns of a head's key and values: heads go by `per` to one key; that of group g at g * step, its values at v_at + g * step. */
struct fm_where { int per, step, v_at; };

/* n queries of one sequence, the first at index `index`; keys 0 .. keys - 1, of which a query sees first_key .. its own. */
struct fm_prompt {
  const bf16 *q; int64_t ldq;            /* (n, ldq): head h at h * (128 + 64), with no pe h * 128; unscaled */
  const bf16 *kx; int64_t ldk;           /* (keys, ldk): 128 of a head's key and its 128 values, where `where` says; finite everywhere */
  const bf16 *pe;                        /* (keys, 64): the rotary part, common to the heads; NULL: keys are whole in kx */
  float *out; int64_t ldo;               /* (n, ldo): head h at h * 128 */
  int64_t n, keys, index, first_key;
  int heads;
  fm_where where;
  float scale;
};

bool      fm_prompt_can(fm_ctx *c);
fm_status fm_prompt_run(fm_ctx *c, const fm_prompt *p);

#endif
