/*
** compute.c - logits, states and scores of given ids: every position in the role of a prompt, on a sequence of its own.
*/
#include <string.h>

#include "run/engine.h"

enum { ROWS = 128 };                     /* rows with logits in one pass: 129,280 columns make 64 MiB of them */

/* What is to be gathered while the ids run through. */
typedef struct gather {
  fm_model *m;
  const int32_t *ids;
  int64_t n;
  int64_t from;                          /* first row whose logits are wanted; n: none */
  bool states, mtp;                      /* copy each layer's rows; MTP logits in place of the main ones */
  float *logits, *hidden;                /* out */
  float *logprob;                        /* out, for ids[from + 1 ..] */
  float *last;                           /* (hidden_size) final-normed state of the row before the chunk */
} gather;

/* rows NULL: the states as they stand. */
static fm_status tap(const gather *g, fm_pass *p, int64_t at, float *rows, int64_t layer) {
  int64_t d = g->m->cfg.hidden_size;
  float *host;
  if (!g->states) return FM_OK;
  fm_mark mark = fm_arena_mark(&g->m->c.arena);
  if (!rows) TRY(fm_pass_states(p, &rows));
  TRY(fm_to_host(&g->m->c, &host, rows, p->n, d));
  memcpy(g->hidden + (layer * g->n + at) * d, host, (size_t)(p->n * d) * sizeof *rows);
  fm_arena_release(&g->m->c.arena, mark);
  return FM_OK;
}

/* Uses rows of logits that belong to positions at .. */
static void use_logits(const gather *g, const float *rows, int64_t at, int64_t n) {
  int64_t v = g->m->cfg.vocab_size;
  if (g->logits) memcpy(g->logits + (at - g->from) * v, rows, (size_t)(n * v) * sizeof *rows);
  for (int64_t i = 0; g->logprob && i < n && at + i + 1 < g->n; i++)
    g->logprob[at + i - g->from] = (float)(rows[i * v + g->ids[at + i + 1]] - fm_log_sum_exp(rows + i * v, v));
}

/* MTP rows that join states of positions a-1 .. b-2 with ids a .. b-1; logits row t (of state t) is slot t + 1. */
static fm_status mtp_chunk(gather *g, fm_session *s, int64_t a, int64_t b, const float *hidden) {
  fm_model *m = g->m;
  int64_t d = m->cfg.hidden_size, first = a > 0 ? a : 1;
  fm_pass p;
  bool done = false;
  if (first >= b) return FM_OK;
  int64_t size = (b - first) * d * (int64_t)sizeof(float);
  float *h = fm_arena_alloc(&m->c.arena, size);
  if (!h) return fm_no_memory(&m->c.err, size);
  if (a > 0) memcpy(h, g->last, (size_t)d * sizeof *h);
  memcpy(h + (a > 0 ? d : 0), hidden, (size_t)((b - a - 1) * d) * sizeof *h);
  if (s->kv.mtp_len != first) s->kv.mtp_first = first;
  fm_seg seg = { .seq = &s->kv, .ids = g->ids + first, .h = h, .index = first, .n = b - first,
                 .n_logits = b - first };
  TRY(fm_pass_begin(&p, &m->net, &seg, 1, true, NULL));
  fm_status status = FM_OK;
  while (status == FM_OK && !done) status = fm_pass_layer(&p, &done);
  float *logits;
  if (status == FM_OK) status = fm_to_host(&m->c, &logits, p.logits, b - first, m->cfg.vocab_size);
  if (status == FM_OK) use_logits(g, logits, first - 1, b - first);
  fm_pass_end(&p);
  s->kv.mtp_len = b;
  return status;
}

static fm_status run_pass(gather *g, fm_session *s, fm_pass *p, int64_t a, int64_t b) {
  int64_t d = g->m->cfg.hidden_size, layers = g->m->cfg.num_hidden_layers;
  bool done = false;
  TRY(tap(g, p, a, NULL, 0));
  while (!done) {
    TRY(fm_pass_layer(p, &done));
    if (p->layer < layers) TRY(tap(g, p, a, NULL, p->layer));
  }
  TRY(tap(g, p, a, p->hidden, layers));
  float *host;
  if (p->n_logits) {
    TRY(fm_to_host(&g->m->c, &host, p->logits, p->n_logits, g->m->cfg.vocab_size));
    use_logits(g, host, b - p->n_logits, p->n_logits);
  }
  if (!g->mtp) return FM_OK;
  TRY(fm_to_host(&g->m->c, &host, p->hidden, p->n, d));
  TRY(mtp_chunk(g, s, a, b, host));
  memcpy(g->last, host + (b - a - 1) * d, (size_t)d * sizeof *g->last);
  return FM_OK;
}

static fm_status run_chunk(gather *g, fm_session *s, int64_t a, int64_t b) {
  fm_model *m = g->m;
  fm_pass p;
  int64_t from = g->mtp || g->from > b ? b : (g->from > a ? g->from : a);
  fm_seg seg = { .seq = &s->kv, .ids = g->ids + a, .index = a, .n = b - a, .n_logits = b - from };
  TRY(fm_sched_reserve(s, a, b, &m->c.err));
  TRY(fm_pass_begin(&p, &m->net, &seg, 1, false, NULL));
  fm_status status = run_pass(g, s, &p, a, b);
  fm_pass_end(&p);
  s->kv.len = b;
  return status;
}

static fm_status run(gather *g, fm_error *err) {
  fm_model *m = g->m;
  fm_session *s;
  if (g->n < 1) return fm_fail(err, FM_EINVAL, "at least one id is needed");
  if (g->n > m->ctx)
    return fm_fail(err, FM_EOVERFLOW, "%lld tokens, the context holds %lld", (long long)g->n, (long long)m->ctx);
  TRY(fm_ids_check(m, g->ids, g->n, err));
  fm_sched_finish(m);                              // staged ids of a pass live until the next one
  TRY(fm_session_new(&s, m, err));
  g->last = s->h;
  fm_status status = FM_OK;
  for (int64_t a = 0; a < g->n && status == FM_OK; a += ROWS)
    status = run_chunk(g, s, a, a + ROWS < g->n ? a + ROWS : g->n);
  fm_session_free(s);
  if (status != FM_OK && err) *err = m->c.err;
  return status;
}

/* *out of rows x cols floats, given back when the computation fails. */
static fm_status run_into(gather *g, float **slot, int64_t rows, int64_t cols, float **out, fm_error *err) {
  float *p = fm_array(rows > 0 ? rows : 0, cols * (int64_t)sizeof *p);
  if (!p) return fm_no_memory(err, rows * cols * (int64_t)sizeof *p);
  *slot = p;
  fm_status status = run(g, err);
  if (status == FM_OK) *out = p;
  else fm_free(p);
  return status;
}

fm_status fm_model_logits(fm_model *m, const int32_t *ids, int64_t n, bool last, bool mtp, float **out,
                          int64_t shape[2], fm_error *err) {
  gather g = { .m = m, .ids = ids, .n = n, .from = last && !mtp ? n - 1 : 0, .mtp = mtp };
  if (mtp && !m->drafts) return fm_fail(err, FM_EUNSUPPORTED, "the model was loaded without its MTP layer");
  if (mtp && n < 2) return fm_fail(err, FM_EINVAL, "MTP logits need at least two ids");
  int64_t rows = mtp ? n - 1 : n - g.from, v = m->cfg.vocab_size;
  if (n > m->ctx) rows = 0;                        // run refuses it
  TRY(run_into(&g, &g.logits, rows, v, out, err));
  if (mtp && last) {
    memmove(*out, *out + (rows - 1) * v, (size_t)v * sizeof **out);
    rows = 1;
  }
  shape[0] = rows;
  shape[1] = v;
  return FM_OK;
}

fm_status fm_model_hidden(fm_model *m, const int32_t *ids, int64_t n, float **out, int64_t shape[3],
                          fm_error *err) {
  gather g = { .m = m, .ids = ids, .n = n, .from = n, .states = true };
  int64_t layers = m->cfg.num_hidden_layers + 1;
  TRY(run_into(&g, &g.hidden, n > m->ctx ? 0 : layers * n, m->cfg.hidden_size, out, err));
  shape[0] = layers;
  shape[1] = n;
  shape[2] = m->cfg.hidden_size;
  return FM_OK;
}

fm_status fm_model_score(fm_model *m, const int32_t *ids, int64_t n, int64_t from, float *logprob,
                         fm_error *err) {
  if (from < 1 || from > n)
    return fm_fail(err, FM_EINVAL, "scoring begins behind at least one id, got from = %lld", (long long)from);
  gather g = { .m = m, .ids = ids, .n = n, .from = from - 1, .logprob = logprob };
  return run(&g, err);
}
