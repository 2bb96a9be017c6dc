/*
** plain_attention.cuh - attention of any sizes and dtypes, in f32: absorb, parts, combine as attention.cu has them. A row's bits
** hang on the row alone.
*/
#ifndef FM_KERNELS_PLAIN_ATTENTION_CUH
#define FM_KERNELS_PLAIN_ATTENTION_CUH

#include "attention.cuh"

/* x->out of rows x->row0 .. + x->n; takes absorbed queries and parts. */
fm_status fm_plain_mla(fm_ctx *c, attn *x);
/* The same of grouped queries: cache rows are n_kv_heads keys, then as many values, of x->v elements each. */
fm_status fm_plain_gqa(fm_ctx *c, attn *x);
/* Takes room for parts of `dim` values; joins those of grouped queries. */
fm_status fm_parts_take(fm_ctx *c, attn *x, int dim);
fm_status fm_combine_gqa(fm_ctx *c, const attn *x);

#endif
