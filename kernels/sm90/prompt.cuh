/*
** prompt.cuh - attention of prompts over expanded keys and values; Hopper only.
*/
#ifndef FM_KERNELS_SM90_PROMPT_CUH
#define FM_KERNELS_SM90_PROMPT_CUH

#include "cuda.cuh"

/* n queries of one sequence, the first at index `index`; keys 0 .. keys - 1, of which a query sees first_key .. its own. */
struct fm_prompt {
  const bf16 *q; int64_t ldq;            /* (n, ldq): head h at h * 192, unscaled */
  const bf16 *kx; int64_t ldk;           /* (keys, ldk): head h at h * 256: 128 of the key, 128 values; finite everywhere */
  const bf16 *pe;                        /* (keys, 64): the rotary part, common to the heads */
  float *out; int64_t ldo;               /* (n, ldo): head h at h * 128 */
  int64_t n, keys, index, first_key;
  int heads;
  float scale;
};

bool      fm_prompt_can(fm_ctx *c);
fm_status fm_prompt_run(fm_ctx *c, const fm_prompt *p);

#endif
