/*
** rope.c - rotary positions in both pair layouts, storing rows into the paged cache, turning those that are there.
*/
#include "cpu/cpu.h"

#include <string.h>

#define SMALL 16384     /* elements below which waking the pool costs more than the work */

typedef struct rope_job {
  float *x; int64_t ldx, n_heads, stride, half;
  const int32_t *pos;
  const float *cos, *sin;
  bool interleaved;
} rope_job;

static void turn_pairs(float *x, const float *cos, const float *sin, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = a * sin[i] + b * cos[i];
  }
}

static void turn_halves(float *x, const float *cos, const float *sin, int64_t half) {
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = a * sin[i] + b * cos[i];
  }
}

static void rope_row(void *arg, int64_t item, int worker) {
  const rope_job *j = arg;
  const float *cos = j->cos + j->pos[item] * j->half, *sin = j->sin + j->pos[item] * j->half;
  (void)worker;
  for (int64_t h = 0; h < j->n_heads; h++) {
    float *x = j->x + item * j->ldx + h * j->stride;
    if (j->interleaved) turn_pairs(x, cos, sin, j->half);
    else turn_halves(x, cos, sin, j->half);
  }
}

fm_status fm_cpu_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r) {
  rope_job j = { x, ldx, n_heads, stride, r->dim / 2, r->pos, r->cos, r->sin, r->interleaved };
  if (n * n_heads * r->dim >= SMALL) fm_pool_for(((fm_cpu *)c->dev)->pool, n, rope_row, &j);
  else for (int64_t i = 0; i < n; i++) rope_row(&j, i, 0);
  return FM_OK;
}

typedef struct store_job {
  const fm_cache *cache;
  const fm_span *span;
  const float *x; int64_t ldx;
} store_job;

static void store_row(void *arg, int64_t item, int worker) {
  const store_job *j = arg;
  const fm_cache *k = j->cache;
  int64_t at = j->span->index + item;
  const float *x = j->x + (j->span->row + item) * j->ldx;
  char *to = k->base + j->span->pages[at / FM_PAGE] * k->page_stride +
             (at % FM_PAGE) * fm_cache_row_size(k->dtype, k->width, k->latent);
  (void)worker;
  if (k->dtype == FM_F32) {
    memcpy(to, x, (size_t)k->width * sizeof *x);
  } else if (k->dtype == FM_F8_E4M3) {
    fm_cpu_pack8(to, k, x);
  } else {
    uint16_t *h = (uint16_t *)(void *)to;
    for (int64_t i = 0; i < k->width; i++) h[i] = fm_f32_to_bf16(x[i]);
  }
}

fm_status fm_cpu_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans,
                             const float *x, int64_t ldx) {
  for (int64_t s = 0; s < n_spans; s++) {
    store_job j = { cache, span + s, x, ldx };
    if (span[s].n * cache->width >= SMALL) fm_pool_for(((fm_cpu *)c->dev)->pool, span[s].n, store_row, &j);
    else for (int64_t i = 0; i < span[s].n; i++) store_row(&j, i, 0);
  }
  return FM_OK;
}

fm_status fm_cpu_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                           const fm_rope *r) {
  int64_t width = a->rank + a->rope, qk = a->nope + a->rope;
  // the key part behind the latent is neither normed nor scaled
  TRY(fm_cpu_rms_norm(c, kv, width, kv, width, norm, n, a->rank, eps));
  if (a->rope) {
    TRY(fm_cpu_rope(c, q + a->nope, a->ldq, a->n_heads, qk, n, r));
    TRY(fm_cpu_rope(c, kv + a->rank, width, 1, a->rope, n, r));
  }
  return fm_cpu_cache_store(c, a->cache, a->span, a->n_spans, kv, width);
}

static double element(const char *p, fm_dtype t, int64_t i) {
  return t == FM_F32 ? (double)((const float *)(const void *)p)[i] : (double)fm_bf16_to_f32(((const uint16_t *)(const void *)p)[i]);
}

/* To bf16 by way of f32: what a device rounds twice is rounded twice here. */
static void set_element(char *p, fm_dtype t, int64_t i, double v) {
  if (t == FM_F32) ((float *)(void *)p)[i] = (float)v;
  else ((uint16_t *)(void *)p)[i] = fm_f32_to_bf16((float)v);
}

static void turn_row(void *arg, int64_t item, int worker) {
  const fm_turn *t = arg;
  const fm_cache *k = t->cache;
  int64_t size = fm_cache_row_size(k->dtype, k->width, k->latent), at = t->index + item, half = t->dim / 2;
  const char *from = k->base + t->from[at / FM_PAGE] * k->page_stride + at % FM_PAGE * size;
  char *to = k->base + t->to[at / FM_PAGE] * k->page_stride + at % FM_PAGE * size;
  fm_dtype type;
  (void)worker;
  if (to != from) memcpy(to, from, (size_t)size);
  char *x = to + fm_cache_element(k->dtype, k->latent, t->at, &type);
  for (int64_t i = 0; i < t->n_heads * half; i++) {
    int64_t j = i % half, first = i / half * t->dim;
    int64_t u = first + (t->interleaved ? 2 * j : j), v = t->interleaved ? u + 1 : u + half;
    double a = element(x, type, u), b = element(x, type, v);
    set_element(x, type, u, a * t->cos[j] - b * t->sin[j]);
    set_element(x, type, v, a * t->sin[j] + b * t->cos[j]);
  }
}

fm_status fm_cpu_turn(fm_ctx *c, const fm_turn *t) {
  fm_turn job = *t;
  if (t->n * t->cache->width >= SMALL) fm_pool_for(((fm_cpu *)c->dev)->pool, t->n, turn_row, &job);
  else for (int64_t i = 0; i < t->n; i++) turn_row(&job, i, 0);
  return FM_OK;
}
