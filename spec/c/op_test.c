/*
** op_test.c - the CPU's operations against plain loops in double precision, and the rule that a row's bits
** depend on its own inputs alone: not on the cut into chunks, batch mates, threads, or on garbage in those parts
** of the cache that nobody may see.
*/
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

static void check(bool good, const char *fmt, const char *detail) {
  printf("%s - ", good ? "ok" : "not ok");
  printf(fmt, simd_name);
  printf("%s%s\n", *detail ? ": " : "", detail);
  failures += !good;
}

#define OK(cond, sentence) check(cond, "%s: " sentence, "")
#define RUN(c, call) do { if ((call) != FM_OK) check(false, "%s: " #call, (c)->err.message); } while (0)

/* ---- random inputs ---- */

static uint64_t state = 1;

static uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}
static int64_t between(int64_t lo, int64_t hi) { return lo + draw() % (hi - lo + 1); }
static float unit(void) { return (float)draw() / 1073741824.0f - 1.0f; }   /* -1 .. 1 */

static void *need(size_t size) {
  void *p = malloc(size ? size : 1);
  if (!p) exit(2);
  return p;
}
static float *floats(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = unit();
  return p;
}
static float *poison(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = NAN;
  return p;
}
static bool same(const float *a, const float *b, int64_t n) { return memcmp(a, b, (size_t)n * sizeof *a) == 0; }

/* A weight in a stored dtype, and its values in f32. */
typedef struct weight { fm_mat m; float *value, *scale; void *data; } weight;

static weight new_weight(int64_t rows, int64_t cols, fm_dtype t) {
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
static void drop_weight(weight *w) { free(w->value), free(w->scale), free(w->data); }

/* ---- a paged cache: `len` rows stored, every other byte NaN ---- */

typedef struct paged { fm_cache k; int32_t *page; int64_t n_pages, len; float *rows; } paged;

/* latent: of an f8 cache. */
static paged new_cache(int64_t len, int64_t width, fm_dtype t, int64_t latent) {
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
static void round8(float *x, int64_t width, int64_t latent) {
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
static void fill(fm_ctx *x, paged *c, int64_t from) {
  fm_span s = { .row = from, .n = c->len - from, .index = from, .pages = c->page };
  RUN(x, fm_op_cache_store(x, &c->k, &s, 1, c->rows, c->k.width));
  for (int64_t i = 0; c->k.dtype == FM_BF16 && i < c->len * c->k.width; i++)
    c->rows[i] = fm_bf16_to_f32(fm_f32_to_bf16(c->rows[i]));
  for (int64_t j = 0; c->k.dtype == FM_F8_E4M3 && j < c->len; j++) round8(c->rows + j * c->k.width, c->k.width, c->k.latent);
}
static void drop_cache(paged *c) { free(c->k.base), free(c->page), free(c->rows); }

/* ---- references in double ---- */

static void ref_softmax(double *s, int64_t n) {
  double max = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n; j++) max = s[j] > max ? s[j] : max;
  for (int64_t j = 0; j < n; j++) sum += s[j] = exp(s[j] - max);
  for (int64_t j = 0; j < n; j++) s[j] /= sum;
}

/* The expanded keys and values (len, n_heads, nope + v) of all rows. */
static double *ref_expand(const fm_attn *a, const weight *w, const paged *c) {
  int64_t out = w->m.rows;
  double *e = need((size_t)(c->len * out) * sizeof *e);
  for (int64_t j = 0; j < c->len; j++)
    for (int64_t r = 0; r < out; r++) {
      double sum = 0;
      for (int64_t i = 0; i < a->rank; i++)
        sum += (double)w->value[r * a->rank + i] * c->rows[j * c->k.width + i];
      e[j * out + r] = sum;
    }
  return e;
}

static double ref_mla(const fm_attn *a, const weight *w, const paged *c, const fm_span *s, const float *got) {
  int64_t each = a->nope + a->v_head_dim, qk = a->nope + a->rope;
  double *e = ref_expand(a, w, c), *p = need((size_t)c->len * sizeof *p), worst = 0;
  for (int64_t i = 0; i < s->n; i++)
    for (int64_t h = 0; h < a->n_heads; h++) {
      const float *q = a->q + (s->row + i) * a->ldq + h * qk;
      int64_t n = s->index + i + 1 - s->first_key;
      for (int64_t j = 0; j < n; j++) {
        const double *k = e + (s->first_key + j) * w->m.rows + h * each;
        const float *pe = c->rows + (s->first_key + j) * c->k.width + a->rank;
        p[j] = 0;
        for (int64_t d = 0; d < a->nope; d++) p[j] += q[d] * k[d];
        for (int64_t d = 0; d < a->rope; d++) p[j] += (double)q[a->nope + d] * pe[d];
        p[j] *= (double)a->scale;
      }
      ref_softmax(p, n);
      for (int64_t d = 0; d < a->v_head_dim; d++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += p[j] * e[(s->first_key + j) * w->m.rows + h * each + a->nope + d];
        double off = fabs(sum - got[(s->row + i) * a->ldo + h * a->v_head_dim + d]) / (1 + fabs(sum));
        worst = off <= worst ? worst : off;   // NaN counts
      }
    }
  free(e), free(p);
  return worst;
}

static double ref_gqa(const fm_attn *a, const paged *c, const fm_span *s, const float *got) {
  int64_t dim = a->nope, per = a->n_heads / a->n_kv_heads;
  double *p = need((size_t)c->len * sizeof *p), worst = 0;
  for (int64_t i = 0; i < s->n; i++)
    for (int64_t h = 0; h < a->n_heads; h++) {
      const float *q = a->q + (s->row + i) * a->ldq + h * dim, *row = c->rows + s->first_key * c->k.width;
      int64_t n = s->index + i + 1 - s->first_key;
      for (int64_t j = 0; j < n; j++) {
        p[j] = 0;
        for (int64_t d = 0; d < dim; d++) p[j] += (double)q[d] * row[j * c->k.width + h / per * dim + d];
        p[j] *= (double)a->scale;
      }
      ref_softmax(p, n);
      for (int64_t d = 0; d < dim; d++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) sum += p[j] * row[j * c->k.width + (a->n_kv_heads + h / per) * dim + d];
        double off = fabs(sum - got[(s->row + i) * a->ldo + h * dim + d]) / (1 + fabs(sum));
        worst = off <= worst ? worst : off;
      }
    }
  free(p);
  return worst;
}

/* ---- attention ---- */

typedef fm_status (*attn_fn)(fm_ctx *c, const fm_attn *a);

/* One made-up sequence: n rows at index, seeing keys from first_key on. */
typedef struct scene { fm_attn a; fm_span span; weight w; paged c; float *q; bool mla; } scene;

static void new_scene(fm_ctx *x, scene *s, bool mla, int64_t index, int64_t n, int64_t first_key) {
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
static void drop_scene(scene *s) { drop_weight(&s->w), drop_cache(&s->c), free(s->q); }

/* Runs fn over the scene's rows in cuts of at most `step` rows a call; NaN stood where the answer goes. */
static float *answer(fm_ctx *x, const scene *s, attn_fn fn, int64_t step) {
  float *out = poison(s->span.n * s->a.ldo);
  for (int64_t i = 0; i < s->span.n; i += step) {
    fm_attn a = s->a;
    fm_span part = s->span;
    part.n = s->span.n - i < step ? s->span.n - i : step;
    part.row = i, part.index += i;
    a.span = &part, a.out = out;
    RUN(x, fn(x, &a));
  }
  return out;
}

static double distance(const scene *s, const float *a, const float *b) {
  int64_t width = s->a.n_heads * (s->mla ? s->a.v_head_dim : s->a.nope);
  double worst = 0;
  for (int64_t i = 0; i < s->span.n; i++)
    for (int64_t d = 0; d < width; d++) {
      double off = fabs((double)a[i * s->a.ldo + d] - b[i * s->a.ldo + d]);
      worst = off <= worst ? worst : off;
    }
  return worst;
}

static bool same_rows(const scene *s, const float *a, const float *b) {
  int64_t width = s->a.n_heads * (s->mla ? s->a.v_head_dim : s->a.nope);
  for (int64_t i = 0; i < s->span.n; i++)
    if (!same(a + i * s->a.ldo, b + i * s->a.ldo, width)) return false;
  return true;
}

/* index, rows, first key: single rows, page borders, prefix + chunk, a first key inside and beyond the first page. */
static const int64_t shape[][3] = {
  { 0, 1, 0 }, { 0, 2, 0 }, { 0, 64, 0 }, { 0, 65, 0 }, { 0, 130, 0 }, { 63, 1, 0 }, { 64, 1, 0 }, { 200, 1, 0 },
  { 50, 40, 0 }, { 128, 70, 0 }, { 1, 30, 1 }, { 1, 1, 1 }, { 1, 70, 1 }, { 130, 20, 70 }, { 100, 37, 64 } };
enum { N_SHAPES = sizeof shape / sizeof *shape };

/* Value, chunks, rows alone and threads of one scene; each bit of the result names a claim that failed. */
static int try_scene(fm_ctx *one, fm_ctx *three, const scene *s, attn_fn fn) {
  float *whole = answer(one, s, fn, s->span.n), *threads = answer(three, s, fn, s->span.n);
  float *alone = answer(one, s, fn, s->span.n > 40 ? 13 : 1), *chunks = answer(three, s, fn, 37);
  double off = s->mla ? ref_mla(&s->a, &s->w, &s->c, &s->span, whole) : ref_gqa(&s->a, &s->c, &s->span, whole);
  int bad = off < TOL ? 0 : 1;
  bad |= same_rows(s, whole, alone) && same_rows(s, whole, chunks) ? 0 : 2;
  bad |= same_rows(s, whole, threads) ? 0 : 4;
  if (bad) printf("# index %d rows %d first %d: off %g, failed %d\n", (int)s->span.index, (int)s->span.n,
                  (int)s->span.first_key, off, bad);
  free(whole), free(threads), free(alone), free(chunks);
  return bad;
}

static void test_attention(fm_ctx *one, fm_ctx *three, int rounds, int64_t longest) {
  int bad[3] = { 0 };
  double apart = 0;
  static const attn_fn fn[3] = { fm_op_mla_prompt, fm_op_mla_decode, fm_op_gqa };
  for (int64_t i = 0; i < rounds * N_SHAPES; i++)
    for (int k = 0; k < 2; k++) {
      const int64_t *t = shape[i % N_SHAPES];
      scene s;
      if (t[1] > longest) continue;
      new_scene(one, &s, k == 0, t[0], t[1], t[2]);
      if (k == 1) bad[2] |= try_scene(one, three, &s, fn[2]);
      else {
        bad[0] |= try_scene(one, three, &s, fn[0]);
        bad[1] |= try_scene(one, three, &s, fn[1]);
        float *p = answer(one, &s, fn[0], t[1]), *d = answer(one, &s, fn[1], t[1]);
        double off = distance(&s, p, d);
        apart = off <= apart ? apart : off;
        free(p), free(d);
      }
      drop_scene(&s);
    }
  OK(!(bad[0] & 1), "mla_prompt equals the double-precision loops within 1e-5");
  OK(!(bad[1] & 1), "mla_decode equals the double-precision loops within 1e-5");
  OK(!(bad[2] & 1), "gqa equals the double-precision loops within 1e-5");
  OK(!(bad[0] & 2), "mla_prompt gives the same bits whole, in chunks and row by row");
  OK(!(bad[1] & 2), "mla_decode gives the same bits for rows together and alone");
  OK(!(bad[2] & 2), "gqa gives the same bits whole, in chunks and row by row");
  OK(!((bad[0] | bad[1] | bad[2]) & 4), "attention gives the same bits with one thread and three");
  // two orders of sums over at most some hundred terms
  OK(apart < 1e-4, "prompt and decode forms of MLA agree within 1e-4");
}

/* Sequences of different length in one call; one of them has NaN queries. */
static void test_batch(fm_ctx *one, fm_ctx *three, bool mla, attn_fn fn, const char *what) {
  enum { SPANS = 37 };
  fm_span span[SPANS];
  int64_t rows = 0, bad = 0;
  scene s;
  new_scene(one, &s, mla, 0, 200, 0);
  for (int64_t i = 0; i < SPANS; i++) {
    int64_t index = between(0, 190), n = between(i % 5 == 0 ? 0 : 1, 4);
    rows += i % 7 == 3;                  // spans need not stand side by side
    span[i] = (fm_span){ .row = rows, .n = n, .index = index, .first_key = index && i % 4 == 1, .pages = s.c.page };
    rows += n;
  }
  float *q = floats(rows * s.a.ldq), *out[2] = { poison(rows * s.a.ldo), poison(rows * s.a.ldo) };
  for (int64_t i = 0; i < span[6].n * s.a.ldq; i++) q[span[6].row * s.a.ldq + i] = NAN;
  int64_t width = s.a.n_heads * (mla ? s.a.v_head_dim : s.a.nope);
  fm_attn a = s.a;
  a.q = q, a.span = span, a.n_spans = SPANS, a.out = out[0];
  RUN(three, fn(three, &a));
  for (int64_t i = 0; i < SPANS; i++) {
    a.span = span + i, a.n_spans = 1, a.out = out[1];
    RUN(one, fn(one, &a));
    for (int64_t r = 0; r < span[i].n; r++) {
      const float *row = out[0] + (span[i].row + r) * s.a.ldo;
      bad += !same(row, out[1] + (span[i].row + r) * s.a.ldo, width) || isnan(row[0]) != (i == 6);
    }
  }
  check(bad == 0, "%s: a batch of 37 sequences equals each alone, a broken one harms no other", what);
  free(q), free(out[0]), free(out[1]);
  drop_scene(&s);
}

/* Big scores, equal scores, and a query that sees nothing. */
static void test_edges(fm_ctx *c) {
  scene s;
  new_scene(c, &s, false, 0, 150, 0);
  for (int64_t i = 0; i < s.span.n * s.a.ldq; i++) s.q[i] *= 3000;
  float *big = answer(c, &s, fm_op_gqa, s.span.n);
  // scores of some thousands have an absolute error of 1e-3 or so, and exp passes it on as a relative one
  OK(ref_gqa(&s.a, &s.c, &s.span, big) < 2e-2, "scores of thousands neither overflow nor lose their order");
  for (int64_t i = 0; i < s.span.n * s.a.ldq; i++) s.q[i] = 0;
  float *flat = answer(c, &s, fm_op_gqa, s.span.n);
  OK(ref_gqa(&s.a, &s.c, &s.span, flat) < TOL, "equal scores give the mean of the values");
  s.span.first_key = 149;
  float *none = answer(c, &s, fm_op_gqa, s.span.n);
  OK(none[0] == 0 && none[148 * s.a.ldo] == 0 && none[149 * s.a.ldo] != 0, "a query that sees no key gives zeros");
  free(big), free(flat), free(none);
  drop_scene(&s);
}

/* ---- norm, rope, elementwise, cache ---- */

static void test_norm(fm_ctx *one, fm_ctx *three) {
  double worst = 0;
  bool equal = true;
  for (int t = 0; t < 20; t++) {
    int64_t n = between(1, 60), dim = between(1, 700), ldx = dim + between(0, 5), ldo = dim + between(0, 5);
    float *x = floats(n * ldx), *w = floats(dim), *out = poison(n * ldo), *other = poison(n * ldo);
    RUN(one, fm_op_rms_norm(one, out, ldo, x, ldx, w, n, dim, 1e-6f));
    RUN(three, fm_op_rms_norm(three, other, ldo, x, ldx, w, n, dim, 1e-6f));
    for (int64_t i = 0; i < n; i++) {
      double sum = 0;
      equal = equal && same(out + i * ldo, other + i * ldo, dim);
      for (int64_t d = 0; d < dim; d++) sum += (double)x[i * ldx + d] * x[i * ldx + d];
      for (int64_t d = 0; d < dim; d++) {
        double want = w[d] * (x[i * ldx + d] / sqrt(sum / (double)dim + 1e-6));
        double off = fabs(want - out[i * ldo + d]) / (fabs(want) + 1e-3);
        worst = off <= worst ? worst : off;
      }
    }
    RUN(one, fm_op_rms_norm(one, x, ldx, x, ldx, w, n, dim, 1e-6f));
    for (int64_t i = 0; i < n; i++) equal = equal && same(x + i * ldx, out + i * ldo, dim);
    free(x), free(w), free(out), free(other);
  }
  // a mean of at most 700 squares of one sign, then four roundings
  OK(worst < 2e-6, "rms_norm equals the double-precision loop within 2e-6");
  OK(equal, "rms_norm gives the same bits in place and with three threads");
}

static double ref_rope(float *was, const float *x, int64_t dim, const float *cs, const float *sn, bool inter) {
  double worst = 0;
  for (int64_t i = 0; i < dim / 2; i++) {
    int64_t a = inter ? 2 * i : i, b = inter ? 2 * i + 1 : i + dim / 2;
    double ya = (double)was[a] * cs[i] - (double)was[b] * sn[i], yb = (double)was[a] * sn[i] + (double)was[b] * cs[i];
    double off = fmax(fabs(ya - x[a]), fabs(yb - x[b]));
    worst = off <= worst ? worst : off;
  }
  return worst;
}

static void test_rope(fm_ctx *c) {
  double worst = 0;
  bool kept = true;
  for (int t = 0; t < 20; t++) {
    int64_t n = between(1, 50), heads = between(1, 9), dim = 2 * between(1, 40), stride = dim + between(0, 9);
    int64_t ldx = heads * stride + between(0, 4);
    float *x = floats(n * ldx), *was = need((size_t)(n * ldx) * sizeof *was), *cs = floats(50 * dim / 2);
    float *sn = floats(50 * dim / 2);
    int32_t pos[50];
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)between(0, 49);
    memcpy(was, x, (size_t)(n * ldx) * sizeof *x);
    fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = dim, .interleaved = t % 2 };
    RUN(c, fm_op_rope(c, x, ldx, heads, stride, n, &turn));
    for (int64_t i = 0; i < n; i++)
      for (int64_t h = 0; h < heads; h++) {
        int64_t at = i * ldx + h * stride;
        worst = fmax(worst, ref_rope(was + at, x + at, dim, cs + pos[i] * (dim / 2), sn + pos[i] * (dim / 2), t % 2));
        kept = kept && same(x + at + dim, was + at + dim, stride - dim);
      }
    free(x), free(was), free(cs), free(sn);
  }
  OK(worst < 3e-7, "rope turns interleaved pairs and halves, within three roundings of values up to two");
  OK(kept, "rope leaves what stands between the heads alone");
}

static void test_silu(fm_ctx *one, fm_ctx *three) {
  double worst = 0;
  bool equal = true;
  static const float edge[] = { 0, -0.0f, 20, -20, 90, -90, 200, -200, 3e38f, -3e38f };
  for (int t = 0; t < 10; t++) {
    int64_t n = between(1, 40), dim = between(10, 900), ld = dim + between(0, 3);
    float *g = floats(n * ld), *u = floats(n * ld), *out = poison(n * dim);
    for (int64_t i = 0; i < n * ld; i++) g[i] *= 10;
    memcpy(g, edge, sizeof edge);
    RUN(three, fm_cpu_silu_mul(three, out, dim, g, u, ld, n, dim));
    for (int64_t i = 0; i < n * dim; i++) {
      double z = g[i / dim * ld + i % dim], want = z / (1 + exp(-z)) * u[i / dim * ld + i % dim];
      double off = fabs(want - out[i]) / (fabs(want) + 1e-30);
      worst = off <= worst ? worst : off;
    }
    for (int64_t i = 0; i < n; i++) {    // in place, row by row, as the feed-forward does
      RUN(one, fm_cpu_silu_mul(one, g + i * ld, ld, g + i * ld, u + i * ld, ld, 1, dim));
      equal = equal && same(g + i * ld, out + i * dim, dim);
    }
    free(g), free(u), free(out);
  }
  OK(worst < 6e-7, "silu_mul is within 6e-7 (exp to 2e-7, four roundings), at the far ends too");
  OK(equal, "silu_mul gives the same bits in place, row by row and with three threads");
}

static void test_store(fm_ctx *c) {
  bool good = true, clean = true;
  for (int t = 0; t < 8; t++) {
    int64_t width = between(1, 300), n = between(1, 150), index = between(0, 100);
    fm_dtype type = t % 2 ? FM_BF16 : FM_F32;
    paged p = new_cache(index + n, width, type, 0);
    fm_span s = { .row = 0, .n = n, .index = index, .pages = p.page };
    RUN(c, fm_op_cache_store(c, &p.k, &s, 1, p.rows, width));
    for (int64_t j = 0; j < p.n_pages * FM_PAGE; j++)
      for (int64_t i = 0; i < width; i++) {
        const char *at = p.k.base + p.page[j / FM_PAGE] * p.k.page_stride +
                         (j % FM_PAGE * width + i) * fm_dtype_size(type);
        float got, want = j < index || j >= index + n ? NAN : p.rows[(j - index) * width + i];
        fm_to_f32(&got, at, type, 1);
        if (isnan(want)) clean = clean && isnan(got);
        else good = good && got == (type == FM_F32 ? want : fm_bf16_to_f32(fm_f32_to_bf16(want)));
      }
    drop_cache(&p);
  }
  OK(good, "cache_store keeps f32 exactly and rounds to bf16");
  OK(clean, "cache_store writes nothing else");
}

/* f8 rows: the bytes stand where the published layout has them, a row is read back as round8 has it, nothing else is written,
   and what is not finite stays so. */
static void test_store8(fm_ctx *c) {
  bool good = true, clean = true, lost = false;
  OK(fm_cache_row_size(FM_F8_E4M3, 576, 512) == 656, "an f8 cache row of 512 + 64 is 656 bytes");
  for (int t = 0; t < 12; t++) {
    int64_t latent = t ? between(1, 300) : 512, width = latent + (t ? 2 * between(0, 40) : 64), n = between(1, 90), index = between(0, 100);
    int64_t scales = (latent + 3) / 4 * 4, rest = scales + (latent + 127) / 128 * 4, size = (rest + 2 * (width - latent) + 3) / 4 * 4;
    paged p = new_cache(index + n, width, FM_F8_E4M3, latent);
    for (int64_t i = 0; i < n * width; i++) p.rows[i] *= ldexpf(1, (int)between(-20, 9));
    if (t % 3 == 1) p.rows[between(0, latent - 1)] = t % 2 ? NAN : INFINITY;
    for (int64_t i = 0; t % 3 == 2 && i < latent; i++) p.rows[i] = 0;
    fm_span s = { .n = n, .index = index, .pages = p.page };
    RUN(c, fm_op_cache_store(c, &p.k, &s, 1, p.rows, width));
    bool odd = t % 3 == 1;
    for (int64_t j = 0; j < p.n_pages * FM_PAGE; j++) {
      const char *at = p.k.base + p.page[j / FM_PAGE] * p.k.page_stride + j % FM_PAGE * size;
      float *want = p.rows + (j - index) * width, got, by;
      bool mine = j >= index && j < index + n;
      for (int64_t i = 0; !mine && i < size; i++) clean = clean && at[i] == (char)0xff;
      if (!mine) continue;
      if (!(odd && j == index)) round8(want, width, latent);
      for (int64_t i = 0; i < width; i++) {
        memcpy(&by, at + scales + i / 128 * 4, 4);
        if (i < latent) got = fm_f8_to_f32((uint8_t)at[i]) * by;
        else fm_to_f32(&got, at + rest + 2 * (i - latent), FM_BF16, 1);
        if (odd && j == index) lost = lost || (!isfinite(want[i]) && isfinite(got));
        else good = good && got == want[i];
      }
    }
    drop_cache(&p);
  }
  OK(good, "cache_store keeps f8 tiles with the least power of two that reaches them");
  OK(clean, "cache_store writes nothing beside f8 rows");
  OK(!lost, "what is not finite is not finite in an f8 cache");
}

/* ---- router ---- */

/* Section 3.8 of the V3 routing with groups, computed by hand. */
static void test_router_golden(fm_ctx *c) {
  const float logits[8] = { 0.5f, -1, 2, 0.1f, -0.3f, 1.2f, 0, 0.9f };
  const float bias[8] = { 0, 0.4f, -0.2f, 0, 0.3f, -0.1f, 0, 0.05f };
  fm_route r = { .n_experts = 8, .top_k = 3, .n_group = 4, .topk_group = 2, .sigmoid = true, .group_top2 = true,
                 .norm_topk_prob = true, .routed_scaling_factor = 2.5f };
  int32_t id[3];
  float w[3];
  RUN(c, fm_op_route(c, id, w, logits, bias, &r, 1));
  OK(id[0] == 1 && id[1] == 4 && id[2] == 5, "the router's golden picks experts 1, 4, 5");
  OK(fabsf(w[0] - 0.459564f) < 1e-6f && fabsf(w[1] - 0.727188f) < 1e-6f && fabsf(w[2] - 1.313247f) < 2e-6f,
     "the router's golden weights are 0.459564, 0.727188, 1.313247");
}

typedef struct pick { float c; int32_t id; } pick;

static int best_first(const void *a, const void *b) {
  const pick *x = a, *y = b;
  if (x->c != y->c) return x->c < y->c ? 1 : -1;
  return x->id - y->id;
}
static int id_first(const void *a, const void *b) { return ((const pick *)a)->id - ((const pick *)b)->id; }

/* Scores in double rounded to f32 as the contract says, selection by sorting. */
static bool ref_route(const fm_route *r, const float *z, const float *bias, const int32_t *id, const float *w) {
  pick e[64], g[64], in[64];
  double sum = 0, max = -INFINITY, s[64], norm = 0;
  int64_t size = r->n_experts / r->n_group, n = 0;
  for (int64_t i = 0; i < r->n_experts; i++) max = fmax(max, z[i]);
  for (int64_t i = 0; i < r->n_experts; i++) sum += exp(z[i] - max);
  for (int64_t i = 0; i < r->n_experts; i++) {
    s[i] = (float)(r->sigmoid ? 1 / (1 + exp(-(double)z[i])) : exp(z[i] - max) / sum);
    e[i] = (pick){ (float)s[i] + (bias ? bias[i] : 0), (int32_t)i };
  }
  for (int64_t k = 0; k < r->n_group; k++) {
    memcpy(in, e + k * size, (size_t)size * sizeof *in);
    qsort(in, (size_t)size, sizeof *in, best_first);
    g[k] = (pick){ r->group_top2 && size > 1 ? in[0].c + in[1].c : in[0].c, (int32_t)k };
  }
  qsort(g, (size_t)r->n_group, sizeof *g, best_first);
  for (int64_t k = 0; k < (r->n_group > 1 ? r->topk_group : 1); k++)
    for (int64_t i = 0; i < size; i++) in[n++] = e[g[k].id * size + i];
  qsort(in, (size_t)n, sizeof *in, best_first);
  qsort(in, (size_t)r->top_k, sizeof *in, id_first);
  for (int64_t k = 0; k < r->top_k; k++) norm += s[in[k].id];
  for (int64_t k = 0; k < r->top_k; k++) {
    double want = s[in[k].id] / (r->norm_topk_prob ? norm + 1e-20 : 1) * (double)r->routed_scaling_factor;
    if (id[k] != in[k].id || !(fabs(want - w[k]) <= 1e-6 * fabs(want))) return false;
  }
  return true;
}

static void test_router(fm_ctx *one, fm_ctx *three) {
  bool good = true, equal = true;
  for (int t = 0; t < 200; t++) {
    int64_t n = between(1, 30), groups = between(1, 4), size = between(2, 12);
    fm_route r = { .n_experts = groups * size, .n_group = groups, .topk_group = between(1, groups),
                   .sigmoid = draw() % 2, .group_top2 = draw() % 2, .norm_topk_prob = draw() % 2,
                   .routed_scaling_factor = 1 + unit() / 2 };
    r.top_k = between(1, groups > 1 ? r.topk_group * size : size);
    float *z = floats(n * r.n_experts), *bias = floats(r.n_experts);
    float *w = poison(n * r.top_k), *v = poison(n * r.top_k);
    int32_t *id = need((size_t)(n * r.top_k) * sizeof *id), *other = need((size_t)(n * r.top_k) * sizeof *id);
    // few different logits: ties are common, and the bias is negative as often as not
    for (int64_t i = 0; t % 3 == 0 && i < n * r.n_experts; i++) z[i] = (float)between(-1, 1);
    for (int64_t i = 0; t % 3 == 0 && i < r.n_experts; i++) bias[i] = (float)between(-2, 2);
    const float *b = draw() % 2 ? bias : NULL;
    RUN(one, fm_op_route(one, id, w, z, b, &r, n));
    RUN(three, fm_op_route(three, other, v, z, b, &r, n));
    for (int64_t i = 0; i < n; i++)
      good = good && ref_route(&r, z + i * r.n_experts, b, id + i * r.top_k, w + i * r.top_k);
    equal = equal && same(w, v, n * r.top_k) && !memcmp(id, other, (size_t)(n * r.top_k) * sizeof *id);
    free(z), free(bias), free(w), free(v), free(id), free(other);
  }
  OK(good, "route picks what sorting picks: groups, ties to the lower id, increasing ids, weights within 1e-6");
  OK(equal, "route gives the same bits with three threads");
  float z[6] = { NAN, NAN, NAN, NAN, NAN, NAN }, w[3];
  int32_t id[3] = { -1, -1, -1 };
  fm_route r = { .n_experts = 6, .top_k = 3, .n_group = 3, .topk_group = 1, .routed_scaling_factor = 1 };
  RUN(one, fm_op_route(one, id, w, z, NULL, &r, 1));
  OK(id[0] >= 0 && id[0] < id[1] && id[1] < id[2] && id[2] < 6 && isnan(w[0]),
     "route names valid experts for a row of NaN, with weights of NaN");
}

/* ---- experts ---- */

typedef struct mixture { fm_experts e; weight *w; fm_mat *m; } mixture;

static mixture new_mixture(int64_t n, int64_t top_k, int64_t d, int64_t width, fm_dtype t) {
  mixture x = { .w = need((size_t)(3 * n) * sizeof(weight)), .m = need((size_t)(3 * n) * sizeof(fm_mat)) };
  for (int64_t i = 0; i < 3 * n; i++) {
    x.w[i] = i < 2 * n ? new_weight(width, d, t) : new_weight(d, width, t);
    x.m[i] = x.w[i].m;
  }
  x.e = (fm_experts){ .n_experts = n, .top_k = top_k, .hidden_size = d, .moe_intermediate_size = width,
                      .gate = x.m, .up = x.m + n, .down = x.m + 2 * n };
  return x;
}
static void drop_mixture(mixture *x) {
  for (int64_t i = 0; i < 3 * x->e.n_experts; i++) drop_weight(&x->w[i]);
  free(x->w), free(x->m);
}

static double ref_experts(const mixture *m, const float *x, const int32_t *id, const float *w, const float *was,
                          const float *got) {
  int64_t d = m->e.hidden_size, width = m->e.moe_intermediate_size;
  double *sum = need((size_t)d * sizeof *sum), *h = need((size_t)width * sizeof *h), worst = 0;
  for (int64_t i = 0; i < d; i++) sum[i] = was[i];
  for (int64_t k = 0; k < m->e.top_k; k++) {
    const float *gate = m->w[id[k]].value, *up = m->w[m->e.n_experts + id[k]].value;
    const float *down = m->w[2 * m->e.n_experts + id[k]].value;
    for (int64_t r = 0; r < width; r++) {
      double g = 0, u = 0;
      for (int64_t i = 0; i < d; i++) g += (double)gate[r * d + i] * x[i], u += (double)up[r * d + i] * x[i];
      h[r] = g / (1 + exp(-g)) * u;
    }
    for (int64_t i = 0; i < d; i++)
      for (int64_t r = 0; r < width; r++) sum[i] += w[k] * h[r] * down[i * width + r];
  }
  for (int64_t i = 0; i < d; i++) {
    // sums of products of sums: the terms grow to tens, so does what rounding leaves
    double off = fabs(sum[i] - got[i]) / (10 + fabs(sum[i]));
    worst = off <= worst ? worst : off;
  }
  free(sum), free(h);
  return worst;
}

static void choose_ids(int32_t *id, int64_t n, int64_t k, int64_t n_experts, bool crowd) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t s = 0, e = crowd ? 0 : between(0, n_experts - k); s < k; s++) id[i * k + s] = (int32_t)(e + s);
}

static void test_experts(fm_ctx *one, fm_ctx *three) {
  static const fm_dtype types[4] = { FM_F32, FM_BF16, FM_F16, FM_F8_E4M3 };
  double worst = 0;
  bool alone = true, threads = true;
  for (int t = 0; t < 24; t++) {
    int64_t n = t % 3 ? between(1, 40) : 1, n_experts = between(1, 9), k = between(1, n_experts);
    int64_t d = between(1, 150), width = between(1, 140);
    mixture m = new_mixture(n_experts, k, d, width, types[t % 4]);
    float *x = floats(n * d), *w = floats(n * k), *was = floats(n * d);
    float *a = poison(n * d), *b = poison(n * d), *c = poison(n * d);
    int32_t *id = need((size_t)(n * k) * sizeof *id);
    choose_ids(id, n, k, n_experts, t % 5 == 4);     // all tokens to the same experts; else some stay empty
    for (int64_t i = 0; i < n * d; i++) a[i] = b[i] = c[i] = was[i];
    RUN(one, fm_op_experts(one, a, x, id, w, &m.e, n));
    RUN(three, fm_op_experts(three, b, x, id, w, &m.e, n));
    for (int64_t i = 0; i < n; i++) {
      RUN(one, fm_op_experts(one, c + i * d, x + i * d, id + i * k, w + i * k, &m.e, 1));
      worst = fmax(worst, ref_experts(&m, x + i * d, id + i * k, w + i * k, was + i * d, a + i * d));
    }
    threads = threads && same(a, b, n * d);
    alone = alone && same(a, c, n * d);
    free(x), free(w), free(was), free(a), free(b), free(c), free(id);
    drop_mixture(&m);
  }
  OK(worst < TOL, "experts equal the double-precision loops within 1e-5 of their terms");
  OK(alone, "experts give the same bits for rows together and alone");
  OK(threads, "experts give the same bits with three threads");
}

/* More rows than the scratch of one piece holds. */
static void test_many_rows(fm_ctx *c) {
  int64_t n = 140000, k = 8, d = 8, width = 4;
  mixture m = new_mixture(8, k, d, width, FM_BF16);
  float *x = floats(n * d), *w = floats(n * k), *out = need((size_t)(n * d) * sizeof *out), row[8];
  int32_t *id = need((size_t)(n * k) * sizeof *id);
  bool good = true;
  for (int64_t i = 0; i < n * d; i++) out[i] = 1;
  choose_ids(id, n, k, 8, false);
  RUN(c, fm_op_experts(c, out, x, id, w, &m.e, n));
  for (int64_t i = 0; i < n; i += 997) {
    for (int64_t j = 0; j < d; j++) row[j] = 1;
    RUN(c, fm_op_experts(c, row, x + i * d, id + i * k, w + i * k, &m.e, 1));
    good = good && same(row, out + i * d, d);
  }
  OK(good, "experts give the same bits when the rows are done in pieces");
  OK(fm_arena_size(&c->arena) < (int64_t)96 << 20, "experts keep their scratch near 64 MiB");
  free(x), free(w), free(out), free(id);
  drop_mixture(&m);
}

/* What a product or a mixture takes along must be what its parts make one after the other, to the bit. */
static void test_fused(fm_ctx *c) {
  bool normed = true, gated = true, mixed = true, stored = true;
  for (int t = 0; t < 12; t++) {
    int64_t n = between(1, 20), k = between(1, 200), rows = between(1, 90), ld = k + between(0, 3);
    weight w = new_weight(rows, k, t % 2 ? FM_BF16 : FM_F32);
    float *x = floats(n * ld), *up = floats(n * ld), *norm = floats(k), *h = poison(n * k);
    float *a = poison(2 * n * rows), *b = poison(n * rows);
    fm_mm both[2] = { { .w = &w.m, .x = x, .ldx = ld, .norm = norm, .eps = 1e-6f, .out = a, .ldo = rows, .n = n },
                      { .w = &w.m, .x = x, .ldx = ld, .up = up, .out = a + n * rows, .ldo = rows, .n = n } };
    fm_mm plain = { .w = &w.m, .x = h, .ldx = k, .out = b, .ldo = rows, .n = n };
    RUN(c, fm_op_matmul(c, both, 2));
    RUN(c, fm_op_rms_norm(c, h, k, x, ld, norm, n, k, 1e-6f));
    RUN(c, fm_op_matmul(c, &plain, 1));
    normed = normed && same(a, b, n * rows);
    RUN(c, fm_cpu_silu_mul(c, h, k, x, up, ld, n, k));
    RUN(c, fm_op_matmul(c, &plain, 1));
    gated = gated && same(a + n * rows, b, n * rows);
    free(x), free(up), free(norm), free(h), free(a), free(b), drop_weight(&w);
  }
  for (int t = 0; t < 6; t++) {
    int64_t n = between(1, 20), d = between(1, 90), width = between(1, 70), wide = between(1, 150);
    mixture m = new_mixture(4, 2, d, width, FM_BF16);
    weight g = new_weight(wide, d, FM_BF16), u = new_weight(wide, d, FM_BF16), o = new_weight(d, wide, FM_BF16);
    float *x = floats(n * d), *norm = floats(d), *w = floats(2 * n), *h = poison(n * d);
    float *a = floats(n * d), *b = need((size_t)(n * d) * sizeof *b), *gu = poison(2 * n * wide);
    int32_t *id = need((size_t)(2 * n) * sizeof *id);
    choose_ids(id, n, 2, 4, false);
    memcpy(b, a, (size_t)(n * d) * sizeof *b);
    fm_experts whole = m.e;
    whole.norm = norm, whole.eps = 1e-6f;
    whole.shared_gate = &g.m, whole.shared_up = &u.m, whole.shared_down = &o.m;
    RUN(c, fm_op_experts(c, a, x, id, w, &whole, n));
    RUN(c, fm_op_rms_norm(c, h, d, x, d, norm, n, d, 1e-6f));
    RUN(c, fm_op_experts(c, b, h, id, w, &m.e, n));
    fm_mm in[2] = { { .w = &g.m, .x = h, .ldx = d, .out = gu, .ldo = wide, .n = n },
                    { .w = &u.m, .x = h, .ldx = d, .out = gu + n * wide, .ldo = wide, .n = n } };
    fm_mm down = { .w = &o.m, .x = gu, .ldx = wide, .up = gu + n * wide, .out = b, .ldo = d, .n = n, .add = true };
    RUN(c, fm_op_matmul(c, in, 2));
    RUN(c, fm_op_matmul(c, &down, 1));
    mixed = mixed && same(a, b, n * d);
    free(x), free(norm), free(w), free(h), free(a), free(b), free(gu), free(id);
    drop_mixture(&m), drop_weight(&g), drop_weight(&u), drop_weight(&o);
  }
  for (int t = 0; t < 6; t++) {
    int64_t n = between(1, 90), heads = between(1, 5), nope = between(1, 20), dim = 2 * between(1, 8), rank = between(1, 60);
    int64_t width = rank + dim, qk = nope + dim, index = between(0, 70), size = n * heads * qk;
    fm_dtype kept = t % 2 ? FM_F8_E4M3 : FM_F32;
    paged p = new_cache(index + n, width, kept, rank), z = new_cache(index + n, width, kept, rank);
    float *q = floats(size), *r = need((size_t)size * sizeof *r), *kv = floats(n * width), *norm = floats(rank);
    float *cs = floats(200 * dim / 2), *sn = floats(200 * dim / 2), *old = need((size_t)(n * width) * sizeof *old);
    int32_t pos[90];
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)(index + i);
    memcpy(r, q, (size_t)size * sizeof *q), memcpy(old, kv, (size_t)(n * width) * sizeof *kv);
    fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = dim, .interleaved = t % 2 };
    fm_span s = { .n = n, .index = index, .pages = p.page }, s2 = s;
    s2.pages = z.page;
    fm_attn a = { .cache = &p.k, .span = &s, .n_spans = 1, .ldq = heads * qk, .n_heads = heads, .nope = nope,
                  .rope = dim, .rank = rank };
    RUN(c, fm_op_mla_store(c, &a, q, kv, norm, 1e-6f, n, &turn));
    RUN(c, fm_op_rms_norm(c, old, width, old, width, norm, n, rank, 1e-6f));
    RUN(c, fm_op_rope(c, r + nope, heads * qk, heads, qk, n, &turn));
    RUN(c, fm_op_rope(c, old + rank, width, 1, dim, n, &turn));
    RUN(c, fm_op_cache_store(c, &z.k, &s2, 1, old, width));
    stored = stored && same(q, r, size) && !memcmp(p.k.base, z.k.base, (size_t)(p.k.page_stride * (p.n_pages + 1)));
    free(q), free(r), free(kv), free(norm), free(cs), free(sn), free(old), drop_cache(&p), drop_cache(&z);
  }
  OK(normed, "a product that norms its input equals the norm and the product after it, to the bit");
  OK(gated, "a product that gates its input equals silu_mul and the product after it, to the bit");
  OK(mixed, "experts with norm and shared expert equal their parts, to the bit");
  OK(stored, "mla_store equals norm, rope and cache_store, to the bit");
}

/* ---- failures ---- */

static int64_t left = -1, alive;         /* allocations until failure (-1: never), blocks held */

static void *stingy(void *user, void *p, size_t size) {
  (void)user;
  if (size == 0) {
    alive -= p != NULL;
    free(p);
    return NULL;
  }
  if (left == 0) return NULL;
  if (left > 0) left--;
  alive += p == NULL;
  return realloc(p, size);
}

/* Calls each operation that takes scratch, allocations failing after `allow`. True when all got what they wanted. */
static bool hungry_call(int op, const scene *mla, const scene *gqa, const mixture *m, int64_t allow, bool *good) {
  fm_ctx c;
  float x[4] = { 1, 2, 3, 4 }, out[4] = { 0 }, w[2] = { 1, 1 }, big[64 * 11 * 80];
  int32_t id[2] = { 0, 1 };
  fm_route r = { .n_experts = 4, .top_k = 2, .n_group = 1, .topk_group = 1, .routed_scaling_factor = 1 };
  fm_attn a = op == 2 ? gqa->a : mla->a;
  fm_error err = { 0 };
  left = op < 0 ? allow : -1;
  fm_status s = fm_ctx_open(&c, "cpu", 2, &err);
  left = allow;
  a.out = big;
  if (op == 0) s = fm_op_mla_prompt(&c, &a);
  if (op == 1) s = fm_op_mla_decode(&c, &a);
  if (op == 2) s = fm_op_gqa(&c, &a);
  if (op == 3) s = fm_op_route(&c, id, w, x, NULL, &r, 1);
  if (op == 4) s = fm_op_experts(&c, out, x, id, w, &m->e, 1);
  left = -1;
  if (s != FM_OK && s != FM_EMEMORY) *good = false;
  if (s == FM_EMEMORY && !(op < 0 ? err : c.err).message[0]) *good = false;
  if (op >= 0 || s == FM_OK) fm_ctx_close(&c);
  return s == FM_OK;
}

static void test_no_memory(fm_ctx *c) {
  scene mla, gqa;
  mixture m = new_mixture(2, 2, 4, 3, FM_F32);
  bool good = true, failed = true;
  new_scene(c, &mla, true, 3, 5, 0);
  new_scene(c, &gqa, false, 3, 5, 0);
  fm_set_allocator(stingy, NULL);
  for (int op = -1; op < 5; op++) {
    int64_t allow = 0;
    while (allow < 100 && !hungry_call(op, &mla, &gqa, &m, allow, &good)) allow++;
    failed = failed && allow > 0 && allow < 100;
  }
  fm_set_allocator(NULL, NULL);
  OK(good && failed, "every failing allocation gives FM_EMEMORY with a message");
  OK(alive == 0, "failing allocations leak nothing");
  drop_scene(&mla), drop_scene(&gqa), drop_mixture(&m);
}

static void test_refusals(fm_ctx *c) {
  scene s;
  fm_attn a;
  float x[8] = { 0 };
  int32_t id[2] = { 0, 7 };
  fm_route r = { .n_experts = 4, .top_k = 5, .n_group = 1 };
  mixture m = new_mixture(2, 2, 2, 2, FM_F32);
  weight w = new_weight(2, 2, FM_F8_E4M3);
  fm_mat no_scale = w.m, ids = w.m;
  no_scale.scale = NULL, ids.dtype = FM_I32;
  fm_mm mm[3] = { { .w = &no_scale, .x = x, .ldx = 2, .out = x + 4, .ldo = 2, .n = 1 },
                  { .w = &ids, .x = x, .ldx = 2, .out = x + 4, .ldo = 2, .n = 1 },
                  { .w = &w.m, .x = x, .ldx = 1, .out = x + 4, .ldo = 2, .n = 2 } };
  for (int i = 0; i < 3; i++) OK(fm_op_matmul(c, mm + i, 1) == FM_EINVAL, "matmul refuses weights that do not fit");
  OK(fm_op_embed(c, x, &w.m, id, 2) == FM_EINVAL, "embed refuses an id beyond the table");
  OK(fm_op_rms_norm(c, x, 1, x, 2, x, 1, 2, 0) == FM_EINVAL, "rms_norm refuses rows that overlap");
  fm_rope odd = { .pos = id, .cos = x, .sin = x, .dim = 3, .interleaved = true };
  OK(fm_op_rope(c, x, 8, 1, 3, 1, &odd) == FM_EINVAL, "rope refuses an odd dim");
  OK(fm_op_route(c, id, x, x, NULL, &r, 1) == FM_EINVAL, "route refuses more choices than experts");
  OK(fm_op_experts(c, x, x + 4, id, x, &m.e, 1) == FM_EINVAL && strstr(c->err.message, "7"),
     "experts refuse an id that is none, and name it");
  new_scene(c, &s, true, 0, 3, 0);
  a = s.a, a.out = x, a.rank++;
  OK(fm_op_mla_prompt(c, &a) == FM_EINVAL && fm_op_mla_decode(c, &a) == FM_EINVAL,
     "attention refuses a kv_b that does not fit its heads");
  a = s.a, a.out = x, s.span.n = -1;
  OK(fm_op_mla_decode(c, &a) == FM_EINVAL, "attention refuses a span of negative length");
  fm_cache k8 = *a.cache;
  k8.dtype = FM_F8_E4M3, k8.latent = a.rank + 1;
  a.cache = &k8, s.span.n = 3;
  OK(fm_op_mla_decode(c, &a) == FM_EINVAL && strstr(c->err.message, "kv_b"),
     "attention refuses an f8 cache that is cut elsewhere than the latent");
  drop_scene(&s), drop_mixture(&m), drop_weight(&w);
}

static void test_devices(void) {
  fm_ctx c;
  fm_error err;
  const fm_backend *b = NULL;
  int index;
  OK(fm_backend_find(&b, &index, "none", &err) == FM_EDEVICE && !b &&
     strstr(err.message, "none: no fathom_none.so beside"),
     "a device without a library is refused by the file that is missing");
  OK(fm_ctx_open(&c, "../cuda", 1, &err) == FM_EDEVICE && strstr(err.message, "is no device"),
     "a device's name is a word, never a path");
  OK(fm_ctx_open(&c, "cuda:x", 1, &err) == FM_EDEVICE, "a device's index is a number");
  setenv("FATHOM_DEVICE", "cpu", 1);
  OK(fm_ctx_open(&c, "auto", 1, &err) == FM_OK && strcmp(c.ops->name, "cpu") == 0, "\"auto\" is what FATHOM_DEVICE says");
  int64_t total = 0, free_bytes = 0;
  OK(c.ops->memory(c.dev, &total, &free_bytes) == FM_OK && total > 0 && free_bytes <= total,
     "the device tells its memory");
  fm_ctx_close(&c);
}

static void test_all(const char *simd) {
  fm_ctx one, three;
  fm_error err;
  if (simd) setenv("FATHOM_SIMD", simd, 1);
  if (fm_ctx_open(&one, "cpu", 1, &err) != FM_OK || fm_ctx_open(&three, "cpu", 3, &err) != FM_OK) exit(2);
  simd_name = ((fm_cpu *)one.dev)->simd->name;
  state = 20240607;
  test_attention(&one, &three, simd ? 1 : 2, simd ? 65 : 1000);    // the plain loops are slow
  test_batch(&one, &three, true, fm_op_mla_prompt, "mla_prompt");
  test_batch(&one, &three, true, fm_op_mla_decode, "mla_decode");
  test_batch(&one, &three, false, fm_op_gqa, "gqa");
  test_edges(&one);
  test_norm(&one, &three);
  test_rope(&three);
  test_silu(&one, &three);
  test_store(&three);
  test_store8(&three);
  test_router_golden(&one);
  test_router(&one, &three);
  test_experts(&one, &three);
  test_fused(&three);
  if (!simd) test_many_rows(&three);
  else {
    test_no_memory(&one);
    test_refusals(&one);
    test_devices();
  }
  fm_ctx_close(&one);
  fm_ctx_close(&three);
  if (simd) unsetenv("FATHOM_SIMD");
}

int main(void) {
  test_all("plain");
  test_all(NULL);                        // the widest of this machine
  return failures != 0;
}
