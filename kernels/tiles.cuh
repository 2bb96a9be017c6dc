/*
** tiles.cuh - the parts of attention on mma.sync: absorbed MLA (latent 512 + 64 in bf16 or f8), grouped queries (heads of 128 in bf16).
*/
#ifndef FM_KERNELS_TILES_CUH
#define FM_KERNELS_TILES_CUH

#include "attention.cuh"

/* Whether the cache has these sizes, and a block room for it. */
bool      fm_tiles_can(fm_ctx *c, const fm_cache *k);
bool      fm_tiles_can_gqa(fm_ctx *c, const fm_attn *a);
/* Fills x->part and x->part_ms from the cache and x->qa16; of grouped queries from x->q. */
fm_status fm_tiles_run(fm_ctx *c, const attn *x);
fm_status fm_tiles_run_gqa(fm_ctx *c, const attn *x);

#endif
