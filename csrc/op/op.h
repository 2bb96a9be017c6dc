/*
** op.h - the front door to a device: shapes and dtypes are checked here, then the device is called.
** Contracts are backend.h's. A check that fails is FM_EINVAL with the shape in c->err. With c->debug the first operation that
** makes a NaN or an infinity fails with FM_EFORMAT: "layer 3, experts: row 5 of 8 is not a number".
*/
#ifndef FM_OP_OP_H
#define FM_OP_OP_H

#include "op/backend.h"

/* "cpu", "cuda", "cuda:1", or "auto" (NULL too): $FATHOM_DEVICE, or the first GPU, or the cpu where there is none.
   Opens the device and an empty context on it, in debug mode if $FATHOM_DEBUG is "nan"; FM_EDEVICE says why not. */
fm_status fm_ctx_open(fm_ctx *c, const char *device, int threads, fm_error *err);
void      fm_ctx_close(fm_ctx *c);
/* Takes `size` bytes of the device's memory for scratch, where that is not the host's. */
fm_status fm_ctx_reserve(fm_ctx *c, int64_t size, fm_error *err);

/* Scratch of n floats (or ints) in the device's memory; FM_EMEMORY in c->err. Given back in the order it was taken. */
fm_status fm_scratch(fm_ctx *c, float **out, int64_t rows, int64_t cols);
fm_status fm_scratch_int(fm_ctx *c, int32_t **out, int64_t n);
fm_status fm_scratch_drawn(fm_ctx *c, fm_drawn **out, int64_t n);
typedef struct fm_scratch_mark { fm_mark host; int64_t slab; } fm_scratch_mark;
fm_scratch_mark fm_scratch_here(fm_ctx *c);
void      fm_scratch_back(fm_ctx *c, fm_scratch_mark m);

/* rows x cols floats of the device where the host can read them: x itself, or a copy in c->arena (waits for it). */
fm_status fm_to_host(fm_ctx *c, float **out, const float *x, int64_t rows, int64_t cols);
/* The other way: a copy in scratch, or x itself. */
fm_status fm_to_device(fm_ctx *c, float **out, const float *x, int64_t rows, int64_t cols);

fm_status fm_op_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n);
fm_status fm_op_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w,
                         int64_t n, int64_t dim, float eps);
fm_status fm_op_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm);
fm_status fm_op_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r);
fm_status fm_op_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans,
                            const float *x, int64_t ldx);
fm_status fm_op_turn(fm_ctx *c, const fm_turn *t);
fm_status fm_op_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                          const fm_rope *r);
fm_status fm_op_mla_prompt(fm_ctx *c, const fm_attn *a);
fm_status fm_op_mla_decode(fm_ctx *c, const fm_attn *a);
fm_status fm_op_gqa(fm_ctx *c, const fm_attn *a);
fm_status fm_op_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                      const fm_route *r, int64_t n);
fm_status fm_op_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                        const fm_experts *e, int64_t n);
fm_status fm_op_combine(fm_ctx *c, float *out, const float *y, const int32_t *slot, const float *topk_weight, int64_t n,
                        int64_t top_k, int64_t hidden_size);

#endif
