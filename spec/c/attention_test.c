/*
** attention_test.c - the CPU's attention against plain loops in double precision, and the rule that a row's bits depend on
** its own inputs alone: not on the cut into chunks, batch mates, threads, or on garbage in those parts of the cache that
** nobody may see.
*/
#include "op_test.h"

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

static void test(fm_ctx *one, fm_ctx *three, bool plain) {
  test_attention(one, three, plain ? 1 : 2, plain ? 65 : 1000);    // the plain loops are slow
  test_batch(one, three, true, fm_op_mla_prompt, "mla_prompt");
  test_batch(one, three, true, fm_op_mla_decode, "mla_decode");
  test_batch(one, three, false, fm_op_gqa, "gqa");
  test_edges(one);
}

int main(void) { return run_op_test(test); }
