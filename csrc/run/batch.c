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

/* Rows of logits whose draw needs no more than temperature and noise: a device may do it. */
static bool plain_draw(const fm_task *t) {
  const fm_generate_options *o = &t->o;
  return !t->guide && !o->n_forced && o->logprobs < 0 && o->top_k <= 0 && o->top_p >= 1 && o->min_p <= 0 && o->repeat_penalty == 1 &&
         o->presence_penalty == 0 && o->frequency_penalty == 0 && o->n_logit_bias == 0;
}

/* Rules for every row of logits of the pass that is to begin; none when some row needs the host's sampler. */
static fm_status make_rules(fm_model *m, const fm_draw_rule **out) {
  fm_work *w = &m->work;
  int64_t n = 0;
  *out = NULL;
  if (!m->c.ops->draw) return FM_OK;
  for (int64_t i = 0; i < w->now.n; i++) {
    const fm_task *t = w->now.task[i];
    if (!plain_draw(t)) return FM_OK;
    TRY(fm_grow(&w->rule, &w->cap_rule, n + w->now.seg[i].n_logits, sizeof *w->rule, &m->c.err));
    int64_t index = t->s->dropped + t->s->n + (w->kind == FM_DRAFT ? w->depth : 0);
    for (int64_t j = 0; j < w->now.seg[i].n_logits; j++)
      w->rule[n++] = (fm_draw_rule){ .seed = t->o.seed, .index = index + j, .sample = t->o.sample,
                                     .temperature = t->o.temperature };
  }
  *out = n ? w->rule : NULL;
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

fm_status fm_batch_fetch(fm_model *m) {
  fm_work *w = &m->work;
  fm_pass *p = &w->pass;
  bool states = w->kind == FM_PREFILL || m->drafts > 0;
  w->hidden = w->logits = NULL;
  if (states) TRY(fm_to_host(&m->c, &w->hidden, p->hidden, p->n, m->cfg.hidden_size));
  if (!p->n_logits) return FM_OK;
  if (!p->rule) return fm_to_host(&m->c, &w->logits, p->logits, p->n_logits, m->cfg.vocab_size);
  TRY(fm_grow(&w->drawn, &w->cap_drawn, p->n_logits, sizeof *w->drawn, &m->c.err));
  return m->c.ops->download(&m->c, w->drawn, p->drawn, p->n_logits * (int64_t)sizeof *w->drawn);
}

fm_status fm_batch_draw(fm_model *m, fm_task *t, int64_t row, int64_t n_ahead, fm_head head, fm_draw *out) {
  const fm_work *w = &m->work;
  fm_history h = { t->s->ids, t->s->n + n_ahead, t->n_prompt, t->s->dropped };
  const float *logits = w->logits ? w->logits + row * m->cfg.vocab_size : NULL;
  bool want_logprob = t->o.logprobs >= 0;
  if (t->o.n_forced) {
    int64_t v = m->cfg.vocab_size;
    out->id = t->o.forced[t->usage.completion + n_ahead];
    out->logprob = (float)(logits[out->id] - fm_log_sum_exp(logits, v));
    out->logprob_filtered = NAN;
    return FM_OK;
  }
  if (t->guide)
    return fm_guide_draw(t->guide, head, m->sampler, &t->o, logits, h, t->max_tokens - t->usage.completion - n_ahead,
                         want_logprob, out, &t->err);
  if (logits) *out = fm_sampler_draw(m->sampler, &t->o, logits, h, NULL, want_logprob);
  else *out = (fm_draw){ .id = w->drawn[row], .logprob = NAN, .logprob_filtered = NAN };
  if (out->id < 0) return fm_fail(&t->err, FM_ELIMIT, "no id is left to draw: logit_bias bans them all");
  return FM_OK;
}
