/*
** mla.cuh - the parts of absorbed MLA on Hopper; latent 512 + 64 in bf16.
*/
#ifndef FM_KERNELS_SM90_MLA_CUH
#define FM_KERNELS_SM90_MLA_CUH

#include "attention.cuh"

bool      fm_mla_can(fm_ctx *c);
/* Fills x->part and x->part_ms from x->qa16 and the cache. */
fm_status fm_mla_run(fm_ctx *c, const attn *x);

#endif
