/*
** window_test.c - a window that moves, against a rotation in double precision: kept keys stand where they should within one unit of
** the cache's dtype however often they were turned, all else is left alone; and positions past a YaRN model's first context.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/engine.h"

static int failures;
static const char *what = "";

static void check(bool good, const char *sentence) {
  printf("%s - %s: %s\n", good ? "ok" : "not ok", what, sentence);
  failures += !good;
}

static void need(bool good) {
  if (!good) exit(2);
}

/* ---- the reference: YaRN's frequencies as the report has them, no code shared ---- */

static double corr(const fm_config *g, double dim, double turns) {
  return dim * log((double)g->yarn.original_max_position_embeddings / (2 * M_PI * turns)) / (2 * log(g->rope_theta));
}

static double frequency(const fm_config *g, int64_t i, int64_t dim) {
  double plain = pow(g->rope_theta, -2.0 * (double)i / (double)dim);
  if (!g->yarn.on) return plain;
  double low = fmax(floor(corr(g, (double)dim, g->yarn.beta_fast)), 0);
  double high = fmin(ceil(corr(g, (double)dim, g->yarn.beta_slow)), (double)dim - 1);
  if (low == high) high += 0.001;
  double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
  return plain / g->yarn.factor * ramp + plain * (1 - ramp);
}

/* ---- rows of the cache as numbers ---- */

typedef struct rotary { int64_t at, heads, dim, offset; fm_dtype type; } rotary;

static rotary rotary_of(const fm_model *m) {
  const fm_config *g = &m->cfg;
  bool gqa = g->family == FM_QWEN2;
  rotary r = { gqa ? 0 : g->kv_lora_rank, gqa ? g->num_key_value_heads : 1, gqa ? g->head_dim : g->qk_rope_head_dim, 0, FM_F32 };
  r.offset = fm_cache_element(m->kv->dtype, m->kv->latent, r.at, &r.type);
  return r;
}

static char *row_of(const fm_model *m, const int32_t *pages, int64_t layer, int64_t j) {
  int64_t size = m->kv->layer_size / FM_PAGE;
  return m->kv->part[0].data + pages[j / FM_PAGE] * m->kv->page_size + layer * m->kv->layer_size + j % FM_PAGE * size;
}

static double element(const char *row, const rotary *r, int64_t i) {
  if (r->type == FM_F32) return (double)((const float *)(const void *)(row + r->offset))[i];
  return (double)fm_bf16_to_f32(((const uint16_t *)(const void *)(row + r->offset))[i]);
}

/* The distance to the next number of the dtype. */
static double unit_at(double v, fm_dtype t) {
  int e;
  frexp(v, &e);
  return ldexp(1, (e < -125 ? -125 : e) - (t == FM_F32 ? 24 : 8));
}

/* Whether `now` is `was` turned by delta positions, each element within one unit; the rest of the row the same bytes. */
static bool is_turned(const fm_model *m, const char *was, const char *now, int64_t delta) {
  rotary r = rotary_of(m);
  int64_t half = r.dim / 2, size = m->kv->layer_size / FM_PAGE, end = r.offset + r.heads * r.dim * fm_dtype_size(r.type);
  if (memcmp(was, now, (size_t)r.offset) != 0 || memcmp(was + end, now + end, (size_t)(size - end)) != 0) return false;
  for (int64_t k = 0; k < r.heads * half; k++) {
    int64_t i = k % half, first = k / half * r.dim;
    int64_t u = first + (m->cfg.rope_interleave ? 2 * i : i), v = m->cfg.rope_interleave ? u + 1 : u + half;
    double angle = (double)delta * frequency(&m->cfg, i, r.dim), a = element(was, &r, u), b = element(was, &r, v);
    double x = a * cos(angle) - b * sin(angle), y = a * sin(angle) + b * cos(angle);
    if (fabs(element(now, &r, u) - x) > unit_at(x, r.type) || fabs(element(now, &r, v) - y) > unit_at(y, r.type)) return false;
  }
  return true;
}

/* ---- one sequence, moved on and on ---- */

enum { CTX = 256, KEEP = 70, STEP = 64 };

/* A copy of rows [0, n) of all layers, one behind the other. */
static char *copy_rows(const fm_model *m, const fm_session *s, int64_t n) {
  int64_t size = m->kv->layer_size / FM_PAGE;
  char *p = calloc((size_t)(m->kv->n_layers * n), (size_t)size);
  need(p != NULL);
  for (int64_t l = 0; l < m->kv->n_layers; l++)
    for (int64_t j = 0; j < n; j++) memcpy(p + (l * n + j) * size, row_of(m, s->kv.pages, l, j), (size_t)size);
  return p;
}

static void fill(fm_model *m, fm_session *s, int64_t to) {
  fm_generate_options o = fm_generate_options_default();
  int32_t ids[CTX];
  fm_task *t;
  bool busy = true;
  need(to <= CTX);
  for (int64_t i = 0; i < to; i++) ids[i] = i < s->n ? s->ids[i] : (int32_t)(i * 37 % 500);
  o.max_tokens = 0;
  need(fm_task_new(&t, s, ids, to, &o, NULL) == FM_OK);
  while (busy) need(fm_model_step(m, 0, &busy, NULL) == FM_OK);
  need(fm_task_finish(t, NULL) == FM_LENGTH);
  fm_task_free(t);
}

static void test_moves(fm_model *m, const char *name) {
  fm_session *s, *f;
  fm_error err;
  int64_t size = m->kv->layer_size / FM_PAGE, main_layers = m->cfg.num_hidden_layers, used = m->kv->n_pages - m->kv->n_free;
  what = name;
  need(fm_session_new(&s, m, &err) == FM_OK);
  fill(m, s, CTX - 10);
  need(fm_session_fork(&f, s, &err) == FM_OK);     // somebody else has the same pages
  char *first = copy_rows(m, s, KEEP), *others = copy_rows(m, f, f->kv.len);
  bool turned = true, alone = true, back = true;
  int64_t gone = 0, moves = 0, times_back = 0;
  for (; moves < 12; moves++) {
    int64_t len = s->kv.len, shift = s->kv.shift;
    char *before = copy_rows(m, s, len);
    need(fm_net_shift(&m->net, &s->kv, KEEP, STEP, &err) == FM_OK);
    gone += STEP;
    times_back += s->kv.shift < shift;
    if (s->kv.len != len - STEP) turned = false;
    for (int64_t l = 0; l < m->kv->n_layers; l++) {
      bool mtp = l >= main_layers;
      for (int64_t j = mtp ? 1 : 0; j < KEEP; j++)
        turned = turned && is_turned(m, first + (l * KEEP + j) * size, row_of(m, s->kv.pages, l, j), s->kv.shift);
      for (int64_t j = KEEP; j < (mtp ? s->kv.mtp_len : s->kv.len); j++) {
        const char *was = before + (l * len + j + STEP) * size, *now = row_of(m, s->kv.pages, l, j);
        if (s->kv.shift > shift) alone = alone && memcmp(was, now, (size_t)size) == 0;
        else back = back && is_turned(m, was, now, s->kv.shift - shift - STEP);
      }
    }
    free(before);
    memmove(s->ids + KEEP, s->ids + KEEP + STEP, (size_t)(s->n - KEEP - STEP) * sizeof *s->ids);
    s->n -= STEP;
    fill(m, s, s->n + STEP);
  }
  char *after = copy_rows(m, f, f->kv.len);
  check(turned, "what is kept is turned from its first form, within one unit after twelve moves");
  check(alone, "the rest keeps its bytes");
  check(times_back > 0 && gone > CTX && back, "where the tables end all is turned back, within one unit");
  check(memcmp(after, others, (size_t)(m->kv->n_layers * f->kv.len * size)) == 0, "a fork's rows are nobody's but its own");
  fm_session_free(s);
  fm_session_free(f);
  fm_model_drop_prefixes(m);
  check(m->kv->n_pages - m->kv->n_free == used, "no page is lost");
  free(first), free(others), free(after);
}

/* ---- YaRN ---- */

static void test_tables(const fm_model *m, const char *name) {
  const fm_config *g = &m->cfg;
  int64_t dim = rotary_of(m).dim, half = dim / 2;
  double most = 0, amplitude = 1;
  what = name;
  if (g->yarn.on) amplitude = (0.1 * g->yarn.mscale * log(g->yarn.factor) + 1) / (0.1 * g->yarn.mscale_all_dim * log(g->yarn.factor) + 1);
  for (int64_t p = 0; p < m->net.n_turns; p++)
    for (int64_t i = 0; i < half; i++) {
      double angle = (double)p * frequency(g, i, dim);
      most = fmax(most, fabs((double)m->net.cos[p * half + i] - amplitude * cos(angle)));
      most = fmax(most, fabs((double)m->net.sin[p * half + i] - amplitude * sin(angle)));
    }
  // half a unit of an f32 below one
  check(most <= 0x1p-24, "every position's rotation is that of the reference, past the first context too");
}

static void test_all(const char *dir, const char *cache_dtype, const char *name) {
  fm_load_options o = fm_load_options_default();
  fm_model *m;
  fm_error err;
  o.device = "cpu", o.threads = 1, o.ctx = CTX, o.seqs = 3, o.cache_dtype = cache_dtype;
  if (fm_load(&m, dir, &o, &err) != FM_OK) {
    printf("not ok - %s: %s\n", name, err.message);
    failures++;
    return;
  }
  test_tables(m, name);
  test_moves(m, name);
  fm_model_close(m);
}

int main(void) {
  test_all("spec/golden/v3-tiny", "f32", "MLA with YaRN, f32");
  test_all("spec/golden/v3-tiny", "bf16", "MLA with YaRN, bf16");
  test_all("spec/golden/v3-tiny", "fp8", "MLA with YaRN, f8");
  test_all("spec/golden/v2-lite-tiny", "f32", "MLA of V2, f32");
  test_all("spec/golden/qwen2-tiny", "f32", "GQA in halves, f32");
  test_all("spec/golden/qwen2-tiny", "bf16", "GQA in halves, bf16");
  return failures != 0;
}
