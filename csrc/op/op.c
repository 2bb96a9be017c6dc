/*
** op.c - the front door to a device.
*/
#include "op/op.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "op/load.h"

/* ---- contexts -------------------------------------------------------------------------------- */

fm_status fm_ctx_open(fm_ctx *c, const char *device, int threads, fm_error *err) {
  const fm_backend *ops = NULL;
  int index = 0;
  const char *debug = getenv("FATHOM_DEBUG");
  *c = (fm_ctx){ .arithmetic = FM_F32, .debug = debug && strcmp(debug, "nan") == 0 };
  if (!device || strcmp(device, "auto") == 0) device = getenv("FATHOM_DEVICE");
  if (!device || !*device || strcmp(device, "auto") == 0) {    // the GPU when there is one that works
    fm_error why;
    if (fm_backend_find(&ops, &index, "cuda", &why) == FM_OK && ops->open(&c->dev, 0, threads, &why) == FM_OK) {
      c->ops = ops;
      return FM_OK;
    }
    fm_log(FM_LOG_INFO, "device \"auto\" is the cpu: %s", why.message);
    device = "cpu";
  }
  if (strcmp(device, "cpu") == 0) ops = fm_cpu_backend();
  else TRY(fm_backend_find(&ops, &index, device, err));
  TRY(ops->open(&c->dev, index, threads, err));
  c->ops = ops;
  return FM_OK;
}

void fm_ctx_close(fm_ctx *c) {
  fm_arena_free(&c->arena);
  if (c->slab) c->ops->release(c->dev, c->slab);
  if (c->dev) c->ops->close(c->dev);
  *c = (fm_ctx){ 0 };
}

fm_status fm_ctx_reserve(fm_ctx *c, int64_t size, fm_error *err) {
  if (!c->ops->upload) return FM_OK;
  TRY(c->ops->alloc(c->dev, (void **)&c->slab, size, err));
  c->slab_size = size;
  return FM_OK;
}

static fm_status scratch(fm_ctx *c, void **out, int64_t n, int64_t m, int64_t elem) {
  int64_t size;
  if (!fm_mul(n, m, &size) || !fm_mul(size, elem, &size))
    return fm_fail(&c->err, FM_EOVERFLOW, "scratch of %lld x %lld is too large", (long long)n, (long long)m);
  if (!c->ops->upload) {
    *out = fm_arena_alloc(&c->arena, size);
    return *out ? FM_OK : fm_no_memory(&c->err, size);
  }
  int64_t at = (c->slab_used + 255) / 256 * 256;
  if (size > c->slab_size - at)
    return fm_fail(&c->err, FM_EMEMORY, "device scratch: %lld bytes wanted, %lld of %lld taken", (long long)size,
                   (long long)at, (long long)c->slab_size);
  *out = c->slab + at;
  c->slab_used = at + size;
  return FM_OK;
}

fm_scratch_mark fm_scratch_here(fm_ctx *c) {
  return (fm_scratch_mark){ fm_arena_mark(&c->arena), c->slab_used };
}

void fm_scratch_back(fm_ctx *c, fm_scratch_mark m) {
  fm_arena_release(&c->arena, m.host);
  c->slab_used = m.slab;
}

fm_status fm_to_host(fm_ctx *c, float **out, const float *x, int64_t rows, int64_t cols) {
  int64_t size = rows * cols * (int64_t)sizeof *x;
  *out = (float *)(uintptr_t)x;
  if (!c->ops->download) return FM_OK;
  *out = fm_arena_alloc(&c->arena, size);
  if (!*out) return fm_no_memory(&c->err, size);
  return c->ops->download(c, *out, x, size);
}

fm_status fm_to_device(fm_ctx *c, float **out, const float *x, int64_t rows, int64_t cols) {
  *out = (float *)(uintptr_t)x;
  if (!c->ops->upload) return FM_OK;
  TRY(fm_scratch(c, out, rows, cols));
  return c->ops->upload(c, *out, x, rows * cols * (int64_t)sizeof *x);
}

fm_status fm_scratch(fm_ctx *c, float **out, int64_t rows, int64_t cols) {
  void *p = NULL;
  TRY(scratch(c, &p, rows, cols, sizeof **out));
  *out = p;
  return FM_OK;
}

fm_status fm_scratch_int(fm_ctx *c, int32_t **out, int64_t n) {
  void *p = NULL;
  TRY(scratch(c, &p, n, 1, sizeof **out));
  *out = p;
  return FM_OK;
}

fm_status fm_scratch_drawn(fm_ctx *c, fm_drawn **out, int64_t n) {
  void *p = NULL;
  TRY(scratch(c, &p, n, 1, sizeof **out));
  *out = p;
  return FM_OK;
}

/* ---- operations --------------------------------------------------------------------------------- */

#define CHECK(cond, ...) do { if (!(cond)) return fm_fail(&c->err, FM_EINVAL, __VA_ARGS__); } while (0)
#define LL(x) ((long long)(x))

/* Debug: the first of the rows (n, dim), ld apart, with something in it that is no number. They start at row `first` of the pass. */
static fm_status look(fm_ctx *c, const char *op, const float *x, int64_t ld, int64_t first, int64_t n, int64_t dim) {
  float *host;
  if (!c->debug || n == 0) return FM_OK;
  fm_mark mark = fm_arena_mark(&c->arena);
  TRY(fm_to_host(c, &host, x, 1, (n - 1) * ld + dim));
  int64_t i = 0;
  while (i < n * dim && isfinite(host[i / dim * ld + i % dim])) i++;
  bool none = i < n * dim && isnan(host[i / dim * ld + i % dim]);
  fm_arena_release(&c->arena, mark);
  if (i == n * dim) return FM_OK;
  fm_fail(&c->err, FM_EFORMAT, "%s%s%s: row %lld is %s, from element %lld of %lld on", c->where, c->where[0] ? ", " : "", op,
          LL(first + i / dim), none ? "not a number" : "infinite", LL(i % dim), LL(dim));
  return fm_hint(&c->err, FM_EFORMAT, "verify = true reads every weight for NaN and infinity");
}

/* The same for the rows of all spans. */
static fm_status look_spans(fm_ctx *c, const char *op, const fm_attn *a, int64_t dim) {
  for (int64_t i = 0; c->debug && i < a->n_spans; i++)
    TRY(look(c, op, a->out + a->span[i].row * a->ldo, a->ldo, a->span[i].row, a->span[i].n, dim));
  return FM_OK;
}

static fm_status check_mat(fm_ctx *c, const char *op, const fm_mat *m) {
  CHECK(m && m->data && m->rows >= 0 && m->cols > 0, "%s: no weight", op);
  CHECK(m->dtype <= FM_F8_E4M3, "%s: weights of dtype %s", op, fm_dtype_name(m->dtype));
  CHECK(m->dtype != FM_F8_E4M3 || m->scale, "%s: F8_E4M3 weights without scales", op);
  return FM_OK;
}

fm_status fm_op_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n) {
  TRY(check_mat(c, "embed", table));
  CHECK(n >= 0 && (n == 0 || (out && id)), "embed: %lld ids", LL(n));
  for (int64_t i = 0; i < n; i++)
    CHECK(id[i] >= 0 && id[i] < table->rows, "embed: id %d of %lld", id[i], LL(table->rows));
  TRY(c->ops->embed(c, out, table, id, n));
  return look(c, "embed", out, table->cols, 0, n, table->cols);
}

fm_status fm_op_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t n,
                         int64_t dim, float eps) {
  CHECK(n >= 0 && dim > 0 && ldo >= dim && ldx >= dim && out && x && w,
        "rms_norm: (%lld, %lld), ld %lld, %lld", LL(n), LL(dim), LL(ldo), LL(ldx));
  TRY(c->ops->rms_norm(c, out, ldo, x, ldx, w, n, dim, eps));
  return look(c, "rms_norm", out, ldo, 0, n, dim);
}

fm_status fm_op_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm) {
  for (int64_t i = 0; i < n_mm; i++) {
    TRY(check_mat(c, "matmul", mm[i].w));
    CHECK(mm[i].n >= 0 && (mm[i].n == 0 || (mm[i].x && mm[i].out)) && mm[i].ldx >= mm[i].w->cols &&
          mm[i].ldo >= mm[i].w->rows,
          "matmul: x (%lld, ld %lld), weight (%lld, %lld), out ld %lld", LL(mm[i].n), LL(mm[i].ldx),
          LL(mm[i].w->rows), LL(mm[i].w->cols), LL(mm[i].ldo));
  }
  TRY(c->ops->matmul(c, mm, n_mm));
  for (int64_t i = 0; c->debug && i < n_mm; i++) {
    char name[64];
    snprintf(name, sizeof name, "matmul of (%lld, %lld)", LL(mm[i].w->rows), LL(mm[i].w->cols));
    TRY(look(c, name, mm[i].out, mm[i].ldo, 0, mm[i].n, mm[i].w->rows));
  }
  return FM_OK;
}

static fm_status check_rope(fm_ctx *c, const fm_rope *r) {
  CHECK(r && r->dim >= 0 && r->dim % 2 == 0 && r->pos && r->cos && r->sin, "rope: dim %lld, or a NULL",
        LL(r ? r->dim : 0));
  return FM_OK;
}

fm_status fm_op_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r) {
  TRY(check_rope(c, r));
  CHECK(n >= 0 && r->dim > 0 && stride >= r->dim && n_heads > 0 && ldx >= (n_heads - 1) * stride + r->dim && x,
        "rope: %lld x %lld heads of dim %lld, stride %lld, ld %lld", LL(n), LL(n_heads), LL(r->dim), LL(stride),
        LL(ldx));
  TRY(c->ops->rope(c, x, ldx, n_heads, stride, n, r));
  return look(c, "rope", x, ldx, 0, n, (n_heads - 1) * stride + r->dim);
}

static fm_status check_spans(fm_ctx *c, const char *op, const fm_cache *k, const fm_span *span, int64_t n) {
  CHECK(k && k->base && k->width > 0 && (k->dtype == FM_F32 || k->dtype == FM_BF16 || k->dtype == FM_F8_E4M3),
        "%s: no cache of F32, BF16 or F8_E4M3", op);
  CHECK(k->dtype != FM_F8_E4M3 || (k->latent > 0 && k->latent <= k->width), "%s: %lld f8 elements of %lld in a cache row", op,
        LL(k->latent), LL(k->width));
  CHECK(n >= 0 && (n == 0 || span), "%s: %lld spans", op, LL(n));
  for (int64_t i = 0; i < n; i++)
    CHECK(span[i].n >= 0 && span[i].row >= 0 && span[i].index >= 0 && span[i].first_key >= 0 && span[i].pages,
          "%s: span %lld is %lld rows from row %lld at index %lld", op, LL(i), LL(span[i].n), LL(span[i].row),
          LL(span[i].index));
  return FM_OK;
}

fm_status fm_op_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans, const float *x,
                            int64_t ldx) {
  TRY(check_spans(c, "cache_store", cache, span, n_spans));
  CHECK(x && ldx >= cache->width, "cache_store: rows of %lld, cache width %lld", LL(ldx), LL(cache->width));
  return c->ops->cache_store(c, cache, span, n_spans, x, ldx);
}

fm_status fm_op_turn(fm_ctx *c, const fm_turn *t) {
  fm_span span = { .n = t->n, .index = t->index, .pages = t->from };
  TRY(check_spans(c, "turn", t->cache, &span, 1));
  CHECK(t->to && t->cos && t->sin && t->dim > 0 && t->dim % 2 == 0 && t->n_heads > 0 && t->at >= 0 &&
        t->at + t->n_heads * t->dim <= t->cache->width && (t->cache->dtype != FM_F8_E4M3 || t->at >= t->cache->latent),
        "turn: %lld x %lld elements from %lld on, cache width %lld", LL(t->n_heads), LL(t->dim), LL(t->at),
        LL(t->cache->width));
  return c->ops->turn(c, t);
}

/* An f8 cache is cut where the latent ends. */
static bool is_latent(const fm_attn *a) { return a->cache->dtype != FM_F8_E4M3 || a->cache->latent == a->rank; }

static fm_status check_mla(fm_ctx *c, const char *op, const fm_attn *a) {
  TRY(check_mat(c, op, a->kv_b));
  TRY(check_spans(c, op, a->cache, a->span, a->n_spans));
  CHECK(a->q && a->out && a->n_heads > 0 && a->nope > 0 && a->rope >= 0 && a->v_head_dim > 0 &&
        a->cache->width == a->rank + a->rope && is_latent(a) && a->kv_b->cols == a->rank &&
        a->kv_b->rows == a->n_heads * (a->nope + a->v_head_dim) && a->ldq >= a->n_heads * (a->nope + a->rope) &&
        a->ldo >= a->n_heads * a->v_head_dim, "%s: %lld heads of %lld + %lld, %lld do not fit kv_b (%lld, %lld)", op,
        LL(a->n_heads), LL(a->nope), LL(a->rope), LL(a->v_head_dim), LL(a->kv_b->rows), LL(a->kv_b->cols));
  return FM_OK;
}

fm_status fm_op_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                          const fm_rope *r) {
  TRY(check_rope(c, r));
  TRY(check_spans(c, "mla_store", a->cache, a->span, a->n_spans));
  CHECK(n >= 0 && q && kv && norm && a->n_heads > 0 && a->nope > 0 && r->dim == a->rope &&
        a->cache->width == a->rank + a->rope && is_latent(a) && a->ldq >= a->n_heads * (a->nope + a->rope),
        "mla_store: %lld heads of %lld + %lld, cache width %lld", LL(a->n_heads), LL(a->nope), LL(a->rope),
        LL(a->cache->width));
  TRY(c->ops->mla_store(c, a, q, kv, norm, eps, n, r));
  TRY(look(c, "mla_store, latent", kv, a->rank + a->rope, 0, n, a->rank + a->rope));
  return look(c, "mla_store, queries", q, a->ldq, 0, n, a->n_heads * (a->nope + a->rope));
}

fm_status fm_op_mla_prompt(fm_ctx *c, const fm_attn *a) {
  TRY(check_mla(c, "mla_prompt", a));
  TRY(c->ops->mla_prompt(c, a));
  return look_spans(c, "mla_prompt", a, a->n_heads * a->v_head_dim);
}

fm_status fm_op_mla_decode(fm_ctx *c, const fm_attn *a) {
  const fm_fresh *f = a->fresh;
  fm_attn stored = *a;
  TRY(check_mla(c, "mla_decode", a));
  if (f && c->debug) {                   // one by one, so that each can be named
    TRY(fm_op_mla_store(c, a, f->q, f->kv, f->norm, f->eps, f->n, f->turn));
    stored.fresh = NULL;
  } else if (f) {
    TRY(check_rope(c, f->turn));
    CHECK(f->q == a->q && f->kv && f->norm && f->n >= 0 && f->turn->dim == a->rope, "mla_decode: %lld rows to store, or a NULL", LL(f->n));
  }
  TRY(c->ops->mla_decode(c, &stored));
  return look_spans(c, "mla_decode", a, a->n_heads * a->v_head_dim);
}

fm_status fm_op_gqa(fm_ctx *c, const fm_attn *a) {
  TRY(check_spans(c, "gqa", a->cache, a->span, a->n_spans));
  CHECK(a->cache->dtype != FM_F8_E4M3, "gqa: its cache has no latent to keep in f8");
  CHECK(a->q && a->out && a->nope > 0 && a->ldq >= a->n_heads * a->nope && a->ldo >= a->n_heads * a->nope &&
        a->n_heads > 0 && a->n_kv_heads > 0 && a->n_heads % a->n_kv_heads == 0 &&
        a->cache->width == 2 * a->n_kv_heads * a->nope,
        "gqa: %lld heads, %lld of keys, head_dim %lld, cache width %lld", LL(a->n_heads), LL(a->n_kv_heads),
        LL(a->nope), LL(a->cache->width));
  TRY(c->ops->gqa(c, a));
  return look_spans(c, "gqa", a, a->n_heads * a->nope);
}

static fm_status check_route(fm_ctx *c, const fm_route *r) {
  CHECK(r->top_k > 0 && r->top_k <= r->n_experts &&
        (r->n_group <= 1 || (r->n_experts % r->n_group == 0 && r->topk_group > 0)),
        "route: %lld of %lld experts in %lld groups", LL(r->top_k), LL(r->n_experts), LL(r->n_group));
  return FM_OK;
}

fm_status fm_op_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                      const fm_route *r, int64_t n) {
  CHECK(n >= 0 && (n == 0 || (topk_id && topk_weight && logits)), "route: %lld rows, or a NULL", LL(n));
  TRY(check_route(c, r));
  TRY(c->ops->route(c, topk_id, topk_weight, logits, bias, r, n));
  return look(c, "route", topk_weight, r->top_k, 0, n, r->top_k);
}

fm_status fm_op_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                        const fm_experts *e, int64_t n) {
  CHECK(n >= 0 && e->n_experts > 0 && e->top_k > 0 && e->hidden_size > 0 && e->moe_intermediate_size > 0 &&
        (out != x || e->norm),
        "experts: %lld rows, %lld of %lld experts", LL(n), LL(e->top_k), LL(e->n_experts));
  CHECK(n == 0 || (out && x && topk_id && topk_weight && e->gate && e->up && e->down), "experts: a NULL");
  const fm_gate *g = e->choose;
  fm_experts chosen = *e;
  if (g && c->debug) {                   // one by one, so that each can be named
    TRY(fm_op_route(c, g->topk_id, g->topk_weight, g->logits, g->bias, g->rule, n));
    chosen.choose = NULL;
  } else if (g) {
    TRY(check_route(c, g->rule));
    CHECK(g->topk_id == topk_id && g->topk_weight == topk_weight && g->logits && g->rule->n_experts == e->n_experts && g->rule->top_k == e->top_k,
          "experts: a choice of %lld of %lld for %lld of %lld, or elsewhere", LL(g->rule->top_k), LL(g->rule->n_experts), LL(e->top_k), LL(e->n_experts));
  }
  TRY(c->ops->experts(c, out, x, topk_id, topk_weight, &chosen, n));
  return look(c, "experts", out, e->hidden_size, 0, n, e->hidden_size);
}

fm_status fm_op_combine(fm_ctx *c, float *out, const float *y, const int32_t *slot, const float *topk_weight, int64_t n,
                        int64_t top_k, int64_t hidden_size) {
  CHECK(n >= 0 && top_k > 0 && hidden_size > 0 && (n == 0 || (out && y && slot && topk_weight)), "combine: %lld rows of %lld, or a NULL",
        LL(n), LL(hidden_size));
  if (n) TRY(c->ops->combine(c, out, y, slot, topk_weight, n, top_k, hidden_size));
  return look(c, "combine", out, hidden_size, 0, n, hidden_size);
}
