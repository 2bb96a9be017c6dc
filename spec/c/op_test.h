/*
** op_test.h - what the specs of the CPU's operations share: checks, random inputs, weights in a stored dtype, a paged cache,
** made-up sequences and experts, and the run over this machine's loops. Every function is static: each spec is a program.
*/
#ifndef OP_TEST_H
#define OP_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "op/load.h"
#include "op/op.h"

/* Inputs are of the order of one, sums have at most some hundred terms: rounding, 6e-8 a step, stays below 1e-5. */
#define TOL 1e-5

static int failures;
static const char *simd_name = "";

static inline void check(bool good, const char *fmt, const char *detail) {
  printf("%s - ", good ? "ok" : "not ok");
  printf(fmt, simd_name);
  printf("%s%s\n", *detail ? ": " : "", detail);
  failures += !good;
}

#define OK(cond, sentence) check(cond, "%s: " sentence, "")
#define RUN(c, call) do { if ((call) != FM_OK) check(false, "%s: " #call, (c)->err.message); } while (0)

/* ---- random inputs ---- */

static uint64_t state = 1;

static inline uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}
static inline int64_t between(int64_t lo, int64_t hi) { return lo + draw() % (hi - lo + 1); }
static inline float unit(void) { return (float)draw() / 1073741824.0f - 1.0f; }   /* -1 .. 1 */

static inline void *need(size_t size) {
  void *p = malloc(size ? size : 1);
  if (!p) exit(2);
  return p;
}
static inline float *floats(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = unit();
  return p;
}
static inline float *poison(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = NAN;
  return p;
}
static inline bool same(const float *a, const float *b, int64_t n) { return memcmp(a, b, (size_t)n * sizeof *a) == 0; }

/* A weight in a stored dtype, and its values in f32. */
typedef struct weight { fm_mat m; float *value, *scale; void *data; } weight;

static inline weight new_weight(int64_t rows, int64_t cols, fm_dtype t) {
  weight w = { .value = floats(rows * cols), .data = need((size_t)(rows * cols * 4)) };
  int64_t across = (cols + 127) / 128, blocks = (rows + 127) / 128 * across;
  w.scale = need((size_t)blocks * sizeof *w.scale);
  for (int64_t i = 0; i < blocks; i++) w.scale[i] = 0.5f + 0.25f * unit();
  for (int64_t i = 0; i < rows * cols; i++) {
    float s = t == FM_F8_E4M3 ? w.scale[i / cols / 128 * across + i % cols / 128] : 1, v = w.value[i];
    if (t == FM_F32) ((float *)w.data)[i] = v;
    if (t == FM_BF16) ((uint16_t *)w.data)[i] = fm_f32_to_bf16(v), w.value[i] = fm_bf16_to_f32(fm_f32_to_bf16(v));
    if (t == FM_F16) ((uint16_t *)w.data)[i] = fm_f32_to_f16(v), w.value[i] = fm_f16_to_f32(fm_f32_to_f16(v));
    if (t == FM_F8_E4M3) ((uint8_t *)w.data)[i] = fm_f32_to_f8(v), w.value[i] = s * fm_f8_to_f32(fm_f32_to_f8(v));
  }
  w.m = (fm_mat){ .data = w.data, .scale = t == FM_F8_E4M3 ? w.scale : NULL, .dtype = t, .rows = rows, .cols = cols };
  return w;
}
static inline void drop_weight(weight *w) { free(w->value), free(w->scale), free(w->data); }

/* ---- a paged cache: `len` rows stored, every other byte NaN ---- */

typedef struct paged { fm_cache k; int32_t *page; int64_t n_pages, len; float *rows; } paged;

/* latent: of an f8 cache. */
static inline paged new_cache(int64_t len, int64_t width, fm_dtype t, int64_t latent) {
  paged c = { .len = len, .n_pages = (len + FM_PAGE - 1) / FM_PAGE, .rows = floats(len * width) };
  int64_t gap = 64;                      // pages of all layers stand side by side: there is a stride
  c.k = (fm_cache){ .width = width, .dtype = t, .latent = latent, .page_stride = FM_PAGE * fm_cache_row_size(t, width, latent) + gap };
  c.k.base = need((size_t)(c.k.page_stride * (c.n_pages + 1)));
  memset(c.k.base, 0xff, (size_t)(c.k.page_stride * (c.n_pages + 1)));
  c.page = need((size_t)c.n_pages * sizeof *c.page);
  for (int64_t i = 0; i < c.n_pages; i++) c.page[i] = (int32_t)(c.n_pages - i);
  return c;
}

/* What an f8 cache keeps of a row: the latent by tiles of 128, the rest in bf16. */
static inline void round8(float *x, int64_t width, int64_t latent) {
  for (int64_t at = 0; at < latent; at += 128) {
    int64_t end = at + 128 < latent ? at + 128 : latent;
    double big = 0, scale = 0x1p-126;
    for (int64_t i = at; i < end; i++) big = fmax(big, fabs((double)x[i]));
    while (big > 448 * scale) scale *= 2;
    for (int64_t i = at; i < end; i++) x[i] = (float)(fm_f8_to_f32(fm_f32_to_f8((float)(x[i] / scale))) * scale);
  }
  for (int64_t i = latent; i < width; i++) x[i] = fm_bf16_to_f32(fm_f32_to_bf16(x[i]));
}

/* Stores rows from..len-1; what a bf16 or f8 cache rounds off is rounded in c->rows too. */
static inline void fill(fm_ctx *x, paged *c, int64_t from) {
  fm_span s = { .row = from, .n = c->len - from, .index = from, .pages = c->page };
  RUN(x, fm_op_cache_store(x, &c->k, &s, 1, c->rows, c->k.width));
  for (int64_t i = 0; c->k.dtype == FM_BF16 && i < c->len * c->k.width; i++)
    c->rows[i] = fm_bf16_to_f32(fm_f32_to_bf16(c->rows[i]));
  for (int64_t j = 0; c->k.dtype == FM_F8_E4M3 && j < c->len; j++) round8(c->rows + j * c->k.width, c->k.width, c->k.latent);
}
static inline void drop_cache(paged *c) { free(c->k.base), free(c->page), free(c->rows); }

/* ---- one made-up sequence ---- */

/* One made-up sequence: n rows at index, seeing keys from first_key on. */
typedef struct scene { fm_attn a; fm_span span; weight w; paged c; float *q; bool mla; } scene;

static inline void new_scene(fm_ctx *x, scene *s, bool mla, int64_t index, int64_t n, int64_t first_key) {
  static const fm_dtype types[4] = { FM_F32, FM_BF16, FM_F16, FM_F8_E4M3 };
  fm_dtype cache = mla && draw() % 3 == 0 ? FM_F8_E4M3 : draw() % 2 ? FM_BF16 : FM_F32;
  fm_attn *a = &s->a;
  memset(s, 0, sizeof *s);
  s->mla = mla;
  a->n_kv_heads = between(1, 3);
  a->n_heads = mla ? between(1, 11) : a->n_kv_heads * between(1, 5);
  a->nope = between(1, 70);
  a->rope = mla ? 2 * between(1, 9) : 0;
  a->v_head_dim = mla ? between(1, 80) : 0;
  a->rank = mla ? between(1, 150) : 0;
  a->scale = 1 / sqrtf((float)(a->nope + a->rope));
  s->c = new_cache(index + n, mla ? a->rank + a->rope : 2 * a->n_kv_heads * a->nope, cache, a->rank);
  fill(x, &s->c, first_key);
  s->w = new_weight(mla ? a->n_heads * (a->nope + a->v_head_dim) : 1, mla ? a->rank : 1, types[draw() % 4]);
  a->ldq = a->n_heads * (a->nope + a->rope) + between(0, 3);
  a->ldo = a->n_heads * (mla ? a->v_head_dim : a->nope) + between(0, 3);
  s->q = floats(n * a->ldq);
  s->span = (fm_span){ .n = n, .index = index, .first_key = first_key, .pages = s->c.page };
  a->cache = &s->c.k, a->span = &s->span, a->n_spans = 1, a->q = s->q, a->kv_b = &s->w.m;
}
static inline void drop_scene(scene *s) { drop_weight(&s->w), drop_cache(&s->c), free(s->q); }

/* ---- made-up experts ---- */

typedef struct mixture { fm_experts e; weight *w; fm_mat *m; } mixture;

static inline mixture new_mixture(int64_t n, int64_t top_k, int64_t d, int64_t width, fm_dtype t) {
  mixture x = { .w = need((size_t)(3 * n) * sizeof(weight)), .m = need((size_t)(3 * n) * sizeof(fm_mat)) };
  for (int64_t i = 0; i < 3 * n; i++) {
    x.w[i] = i < 2 * n ? new_weight(width, d, t) : new_weight(d, width, t);
    x.m[i] = x.w[i].m;
  }
  x.e = (fm_experts){ .n_experts = n, .top_k = top_k, .hidden_size = d, .moe_intermediate_size = width,
                      .gate = x.m, .up = x.m + n, .down = x.m + 2 * n };
  return x;
}
static inline void drop_mixture(mixture *x) {
  for (int64_t i = 0; i < 3 * x->e.n_experts; i++) drop_weight(&x->w[i]);
  free(x->w), free(x->m);
}

/* ---- the run ---- */

/* Calls test with contexts of one and of three threads, first with the plain loops, then with the widest of this machine. */
static inline int run_op_test(void (*test)(fm_ctx *one, fm_ctx *three, bool plain)) {
  for (int plain = 1; plain >= 0; plain--) {
    fm_ctx one, three;
    fm_error err;
    if (plain) setenv("FATHOM_SIMD", "plain", 1);
    if (fm_ctx_open(&one, "cpu", 1, &err) != FM_OK || fm_ctx_open(&three, "cpu", 3, &err) != FM_OK) exit(2);
    simd_name = ((fm_cpu *)one.dev)->simd->name;
    state = 20240607;
    test(&one, &three, plain);
    fm_ctx_close(&one);
    fm_ctx_close(&three);
    if (plain) unsetenv("FATHOM_SIMD");
  }
  return failures != 0;
}

#endif
