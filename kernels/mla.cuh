/*
** mla.cuh - the parts of absorbed MLA on mma.sync; latent 512 + 64 in bf16 or f8.
*/
#ifndef FM_KERNELS_MLA_CUH
#define FM_KERNELS_MLA_CUH

#include "attention.cuh"

/* Whether the cache has these sizes, and a block room for it. */
bool      fm_mla_tiles_can(fm_ctx *c, const fm_cache *k);
/* Fills x->part and x->part_ms from x->qa16 and the cache. */
fm_status fm_mla_tiles_run(fm_ctx *c, const attn *x);

#endif
