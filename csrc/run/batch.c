/*
** batch.c - the segments of a pass: whose they are, the states they join with, how their rows are drawn.
*/
#include <math.h>
#include <string.h>

#include "run/engine.h"

void fm_batch_clear(fm_batch *b) { b->n = b->n_h = 0; }

void fm_batch_free(fm_batch *b) {
  fm_free(b->task);
  fm_free(b->seg);
  fm_free(b->state);
  fm_free(b->h);
}

bool fm_batch_holds(const fm_batch *b, const fm_task *t) {
  for (int64_t i = 0; i < b->n; i++)
    if (b->task[i] == t) return true;
  return false;
}

fm_status fm_batch_add(fm_batch *b, fm_task *t, fm_seg seg) {
  TRY(fm_grow(&b->task, &b->cap_task, b->n + 1, sizeof *b->task, &t->err));
  TRY(fm_grow(&b->seg, &b->cap_seg, b->n + 1, sizeof *b->seg, &t->err));
  TRY(fm_grow(&b->state, &b->cap_state, b->n + 1, sizeof *b->state, &t->err));
  b->task[b->n] = t;
  b->state[b->n] = b->n_h;
  b->seg[b->n++] = seg;
  return FM_OK;
}

fm_status fm_batch_add_mtp(fm_batch *b, fm_task *t, fm_seg seg, const float *h, int64_t n, int64_t d) {
  TRY(fm_grow(&b->h, &b->cap_h, b->n_h + seg.n, d * (int64_t)sizeof *b->h, &t->err));
  TRY(fm_batch_add(b, t, seg));
  memcpy(b->h + b->n_h * d, h, (size_t)(n * d) * sizeof *h);
  b->n_h += n;
  return FM_OK;
}

static bool filters(const fm_task *t) {
  const fm_generate_options *o = &t->o;
  return o->temperature > 0 && (o->top_k > 0 || o->top_p < 1 || o->min_p > 0);    // they always keep the best one
}

/* Whether the device's draw, by temperature and noise, is the task's where mask or filters keep it. What filters keep under a mask is
   another thing. */
static bool by_device(const fm_task *t) {
  const fm_generate_options *o = &t->o;
  return !o->n_forced && o->logprobs < 0 && !(t->guide && filters(t)) && o->repeat_penalty == 1 && o->presence_penalty == 0 &&
         o->frequency_penalty == 0 && o->n_logit_bias == 0;
}

/* Rules for the rows of logits of the pass that is to begin; those of tasks that draw otherwise are made for nothing, by argmax. NULL
   when all do. */
static fm_status make_rules(fm_model *m, const fm_draw_rule **out) {
  fm_work *w = &m->work;
  int64_t n = 0, plain = 0;
  for (int64_t i = 0; i < w->now.n; i++) {
    const fm_task *t = w->now.task[i];
    bool good = by_device(t);
    TRY(fm_grow(&w->rule, &w->cap_rule, n + w->now.seg[i].n_logits, sizeof *w->rule, &m->c.err));
    int64_t index = t->s->dropped + t->s->n + (w->kind == FM_DRAFT ? w->depth : 0);
    for (int64_t j = 0; j < w->now.seg[i].n_logits; j++)
      w->rule[n++] = (fm_draw_rule){ .seed = t->o.seed, .index = index + j, .sample = t->o.sample,
                                     .temperature = good ? t->o.temperature : 0, .stands = good && filters(t) };
    plain += good ? w->now.seg[i].n_logits : 0;
  }
  *out = plain ? w->rule : NULL;
  return FM_OK;
}

fm_status fm_batch_begin(fm_model *m) {
  fm_work *w = &m->work;
  fm_batch *b = &w->now;
  bool mtp = w->kind == FM_PREFILL_MTP || w->kind == FM_DRAFT;
  const fm_draw_rule *rule;
  for (int64_t i = 0; i < b->n; i++) {
    // only now: the ids may have moved as they grew, and so may the states
    if (w->kind != FM_DRAFT || w->depth == 0) b->seg[i].ids = b->task[i]->s->ids + b->seg[i].index;
    if (mtp) b->seg[i].h = b->h + b->state[i] * m->cfg.hidden_size;
  }
  TRY(make_rules(m, &rule));
  return fm_pass_begin(&w->pass, &m->net, b->seg, b->n, mtp, rule);
}

/* Brings rows [row, row + n) of the pass's logits where the host can read them. */
static fm_status fetch_logits(fm_model *m, int64_t row, int64_t n) {
  fm_work *w = &m->work;
  int64_t v = m->cfg.vocab_size;
  if (w->held) memset(w->held + row, 1, (size_t)n);
  return w->held && n ? m->c.ops->download(&m->c, w->logits + row * v, w->pass.logits + row * v, n * v * (int64_t)sizeof *w->logits)
                      : FM_OK;
}

/* The rows that the device's draws leave to the host, neighbours at once. */
static fm_status fetch_wanted(fm_model *m) {
  const fm_batch *b = &m->work.now;
  int64_t first = 0, end = 0;
  for (int64_t i = 0; i < b->n; i++) {
    if (!b->task[i] || (m->work.drawn && by_device(b->task[i]))) continue;
    if (b->seg[i].logits_row != end) {
      TRY(fetch_logits(m, first, end - first));
      first = b->seg[i].logits_row;
    }
    end = b->seg[i].logits_row + b->seg[i].n_logits;
  }
  return fetch_logits(m, first, end - first);
}

/* Room for logits on the host, none of which are there yet; the device's own where the host can read them. */
static fm_status hold_logits(fm_model *m) {
  fm_work *w = &m->work;
  int64_t n = w->pass.n_logits, row = m->cfg.vocab_size * (int64_t)sizeof *w->logits;
  w->logits = w->pass.logits;
  if (!m->c.ops->download) return FM_OK;
  w->logits = fm_arena_alloc(&m->c.arena, n * row);
  w->held = fm_arena_alloc(&m->c.arena, n);
  if (!w->logits || !w->held) return fm_no_memory(&m->c.err, n * (row + 1));
  memset(w->held, 0, (size_t)n);
  return FM_OK;
}

static fm_status fetch_drawn(fm_model *m) {
  fm_work *w = &m->work;
  int64_t size = w->pass.n_logits * (int64_t)sizeof *w->drawn;
  if (!w->pass.rule) return FM_OK;
  w->drawn = w->pass.drawn;
  if (!m->c.ops->download) return FM_OK;
  w->drawn = fm_arena_alloc(&m->c.arena, size);
  if (!w->drawn) return fm_no_memory(&m->c.err, size);
  return m->c.ops->download(&m->c, w->drawn, w->pass.drawn, size);
}

fm_status fm_batch_fetch(fm_model *m) {
  fm_work *w = &m->work;
  fm_pass *p = &w->pass;
  bool states = m->drafts > 0;           // for the MTP layer
  w->hidden = w->logits = NULL;
  w->drawn = NULL;
  w->held = NULL;
  if (states) TRY(fm_to_host(&m->c, &w->hidden, p->hidden, p->n, m->cfg.hidden_size));
  if (!p->n_logits) return FM_OK;
  TRY(fetch_drawn(m));
  TRY(hold_logits(m));
  return fetch_wanted(m);
}

const float *fm_batch_logits(const fm_model *m, int64_t row) {
  const fm_work *w = &m->work;
  return !w->held || w->held[row] ? w->logits + row * m->cfg.vocab_size : NULL;
}

static fm_status forced(const fm_model *m, const fm_task *t, int64_t row, int64_t n_ahead, fm_draw *out) {
  const float *logits = fm_batch_logits(m, row);
  out->id = t->o.forced[t->usage.completion + n_ahead];
  out->logprob = (float)(logits[out->id] - fm_log_sum_exp(logits, m->cfg.vocab_size));
  out->logprob_filtered = NAN;
  return FM_OK;
}

/* The row is to be looked at here after all. */
static fm_status need_logits(fm_model *m, fm_task *t, int64_t row) {
  if (fm_batch_logits(m, row) || fetch_logits(m, row, 1) == FM_OK) return FM_OK;
  t->err = m->c.err;
  return t->err.code;
}

/* Under a mask the device's draw stands where the mask allows it: noise belongs to ids, so it is the best of fewer as well. Where it
   does not, the row is looked at here. */
static fm_status guided(fm_model *m, fm_task *t, int64_t row, fm_history h, int64_t n_ahead, fm_head head, fm_draw *out) {
  const fm_work *w = &m->work;
  int64_t left = t->max_tokens - t->usage.completion - n_ahead;
  bool want_logprob = t->o.logprobs >= 0;
  if (w->drawn && by_device(t)) {
    TRY(fm_guide_draw(t->guide, head, m->sampler, &t->o, NULL, w->drawn[row].id, h, left, want_logprob, out, &t->err));
    if (out->id != FM_UNDECIDED) return FM_OK;
    TRY(need_logits(m, t, row));
  }
  return fm_guide_draw(t->guide, head, m->sampler, &t->o, fm_batch_logits(m, row), -1, h, left, want_logprob, out, &t->err);
}

fm_status fm_batch_draw(fm_model *m, fm_task *t, int64_t row, int64_t n_ahead, fm_head head, fm_draw *out) {
  const fm_work *w = &m->work;
  fm_history h = { t->s->ids, t->s->n + n_ahead, t->n_prompt, t->s->dropped };
  if (t->o.n_forced) return forced(m, t, row, n_ahead, out);
  if (t->guide) return guided(m, t, row, h, n_ahead, head, out);
  if (w->drawn && by_device(t) && fm_sampler_keeps(&t->o, &w->drawn[row])) {
    *out = (fm_draw){ .id = w->drawn[row].id, .logprob = NAN, .logprob_filtered = NAN };
  } else {
    TRY(need_logits(m, t, row));
    *out = fm_sampler_draw(m->sampler, &t->o, fm_batch_logits(m, row), h, NULL, t->o.logprobs >= 0);
  }
  if (out->id < 0) return fm_fail(&t->err, FM_ELIMIT, "no id is left to draw: logit_bias bans them all");
  return FM_OK;
}
