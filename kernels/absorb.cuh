/*
** absorb.cuh - into the latent space and out of it: what absorbed MLA does before and after its parts. nope 128, latent 512 + 64,
** v_head_dim a multiple of 32, weights bf16 or f8; tensor cores. A row's bits hang on the row alone.
*/
#ifndef FM_KERNELS_ABSORB_CUH
#define FM_KERNELS_ABSORB_CUH

#include "attention.cuh"

/* x->qa16 (n, heads, 576) = { q_nope W_UK, q_pe }: queries rounded to bf16, sums in f32, rounded. */
fm_status fm_absorb_run(fm_ctx *c, const attn *x);
/* x->out = W_UV (the parts' sum), which is rounded to bf16 before. Rows that stand in no span are left alone. */
fm_status fm_combine_run(fm_ctx *c, const attn *x);

#endif
