/*
** sched.c - what runs next: chunks of prompts and steps of decoding in turns, one layer of one pass at a time.
**
**   prefill -> (MTP rows of the prompt) -> first draw -> draft
**   decode all running tasks, each with its drafts behind its pending id -> draws -> draft, depth by depth
*/
#include <math.h>
#include <string.h>
#include <time.h>

#include "run/engine.h"

double fm_now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- the work's rows ---------------------------------------------------------------------------- */

static void clear(fm_work *w, fm_work_kind kind) {
  w->kind = kind;
  w->n = w->n_h = 0;
  w->started = false;
}

static fm_status add_seg(fm_model *m, fm_task *t, fm_seg seg) {
  fm_work *w = &m->work;
  TRY(fm_grow(&w->task, &w->cap_task, w->n + 1, sizeof *w->task, &t->err));
  TRY(fm_grow(&w->seg, &w->cap_seg, w->n + 1, sizeof *w->seg, &t->err));
  w->task[w->n] = t;
  w->seg[w->n++] = seg;
  return FM_OK;
}

/* Keeps n states for the MTP pass that follows. */
static fm_status keep_h(fm_model *m, const float *h, int64_t n, fm_error *err) {
  fm_work *w = &m->work;
  int64_t d = m->cfg.hidden_size;
  TRY(fm_grow(&w->h, &w->cap_h, w->n_h + n, d * (int64_t)sizeof *w->h, err));
  memcpy(w->h + w->n_h * d, h, (size_t)(n * d) * sizeof *h);
  w->n_h += n;
  return FM_OK;
}

static void fail_task(fm_task *t) {
  fm_error err = t->err;
  fm_task_fail(t, &err);
}

static void fail_all(fm_model *m) {
  for (int64_t i = 0; i < m->work.n; i++)
    if (!m->work.task[i]->finish) fm_task_fail(m->work.task[i], &m->c.err);
}

void fm_sched_abandon(fm_model *m, const fm_session *s) {
  fm_work *w = &m->work;
  for (int64_t i = 0; i < w->n; i++)
    if (w->task[i]->s == s) {
      if (w->started) fm_pass_end(&w->pass);
      clear(w, FM_IDLE);
      return;
    }
}

/* Rows of logits whose draw needs no more than temperature and noise: a device may do it. */
static bool plain_draw(const fm_task *t) {
  const fm_generate_options *o = &t->o;
  return !t->guide && o->logprobs < 0 && o->top_k <= 0 && o->top_p >= 1 && o->min_p <= 0 && o->repeat_penalty == 1 &&
         o->presence_penalty == 0 && o->frequency_penalty == 0 && o->n_logit_bias == 0;
}

/* Rules for every row of logits of the pass that is to begin; none when some row needs the host's sampler. */
static fm_status make_rules(fm_model *m, const fm_draw_rule **out) {
  fm_work *w = &m->work;
  int64_t n = 0;
  *out = NULL;
  if (!m->c.ops->draw) return FM_OK;
  for (int64_t i = 0; i < w->n; i++) {
    const fm_task *t = w->task[i];
    if (!plain_draw(t)) return FM_OK;
    TRY(fm_grow(&w->rule, &w->cap_rule, n + w->seg[i].n_logits, sizeof *w->rule, &m->c.err));
    int64_t index = t->s->n + (w->kind == FM_DRAFT ? w->depth : 0);
    for (int64_t j = 0; j < w->seg[i].n_logits; j++)
      w->rule[n++] = (fm_draw_rule){ .seed = t->o.seed, .index = index + j, .sample = t->o.sample,
                                     .temperature = t->o.temperature };
  }
  *out = n ? w->rule : NULL;
  return FM_OK;
}

/* What of a pass the host is going to read: ids that the device drew, or logits, and states for the MTP layer. */
static fm_status fetch(fm_model *m) {
  fm_work *w = &m->work;
  fm_pass *p = &w->pass;
  bool last_states = w->kind == FM_PREFILL || m->drafts > 0;
  w->hidden = w->logits = NULL;
  if (last_states) TRY(fm_to_host(&m->c, &w->hidden, p->hidden, p->n, m->cfg.hidden_size));
  if (!p->n_logits) return FM_OK;
  if (!p->rule) return fm_to_host(&m->c, &w->logits, p->logits, p->n_logits, m->cfg.vocab_size);
  TRY(fm_grow(&w->drawn, &w->cap_drawn, p->n_logits, sizeof *w->drawn, &m->c.err));
  return m->c.ops->download(&m->c, w->drawn, p->drawn, p->n_logits * (int64_t)sizeof *w->drawn);
}

/* The draw for one row of the completed pass's logits, n_ahead drafts behind the real end of the task's ids. */
static fm_status draw(fm_model *m, fm_task *t, int64_t row, int64_t n_ahead, fm_head head, fm_draw *out) {
  const fm_work *w = &m->work;
  fm_history h = { t->s->ids, t->s->n + n_ahead, t->n_prompt };
  const float *logits = w->logits ? w->logits + row * m->cfg.vocab_size : NULL;
  bool want_logprob = t->o.logprobs >= 0;
  if (t->guide)
    return fm_guide_draw(t->guide, head, m->sampler, &t->o, logits, h, t->max_tokens - t->usage.completion - n_ahead,
                         want_logprob, out, &t->err);
  if (logits) *out = fm_sampler_draw(m->sampler, &t->o, logits, h, NULL, want_logprob);
  else *out = (fm_draw){ .id = w->drawn[row], .logprob = NAN, .logprob_filtered = NAN };
  return FM_OK;
}

/* The next draft of a task; a guide runs ahead along them. */
static fm_status draw_draft(fm_model *m, fm_task *t, int64_t row) {
  fm_draw d;
  if (t->guide && t->n_draft == 0) TRY(fm_guide_ahead(t->guide, &t->err));
  TRY(draw(m, t, row, t->n_draft, FM_AHEAD, &d));
  if (t->guide) TRY(fm_guide_take(t->guide, FM_AHEAD, d.id, &t->err));
  t->draft[t->n_draft++] = d.id;
  return FM_OK;
}

/* ---- drafts --------------------------------------------------------------------------------------- */

/* How many drafts are worth making for the task's next step. */
static int64_t drafts_wanted(const fm_task *t) {
  int64_t room = t->max_tokens - t->usage.completion - 1;
  int64_t space = t->s->m->ctx - t->s->n - 1;
  int64_t want = t->o.mtp < room ? t->o.mtp : room;
  want = want < space ? want : space;
  if (t->guide && t->n_draft && fm_guide_over(t->guide, FM_AHEAD)) want = t->n_draft;    // the document ends there
  return want > 0 ? want : 0;
}

/* Makes ids[s->n ..] hold the task's drafts, so that histories are one array. */
static fm_status lay_out_drafts(fm_task *t) {
  fm_session *s = t->s;
  TRY(fm_grow(&s->ids, &s->cap_ids, s->n + FM_MAX_DRAFTS, sizeof *s->ids, &t->err));
  memcpy(s->ids + s->n, t->draft, (size_t)t->n_draft * sizeof *t->draft);
  return FM_OK;
}

/* MTP rows for ids up to the pending one; states of the `n` indices before it end at h[n - 1]. */
static fm_status add_draft_seg(fm_model *m, fm_task *t, const float *h, int64_t n) {
  fm_session *s = t->s;
  int64_t index = s->n - n;
  t->n_draft = 0;
  if (!drafts_wanted(t)) return FM_OK;
  TRY(fm_session_reserve(s, index, s->n, &t->err));
  if (s->kv.mtp_len != index) s->kv.mtp_first = index;     // a gap: start over behind it
  TRY(keep_h(m, h, n, &t->err));
  return add_seg(m, t, (fm_seg){ .seq = &s->kv, .index = index, .n = n,
                                 .role = FM_GENERATED, .n_logits = 1 });
}

/* Depth by depth: the module's own state and its own draft make the next one. */
static void draft_done(fm_model *m) {
  fm_work *w = &m->work;
  int64_t d = m->cfg.hidden_size, kept = 0;
  w->n_h = 0;
  for (int64_t i = 0; i < w->n; i++) {
    fm_task *t = w->task[i];
    fm_session *s = t->s;
    fm_seg seg = w->seg[i];
    if (w->depth == 0) s->kv.mtp_len = s->n;
    if (lay_out_drafts(t) != FM_OK || draw_draft(m, t, seg.logits_row) != FM_OK) { fail_task(t); continue; }
    if (t->n_draft >= drafts_wanted(t)) continue;
    int64_t index = s->n + t->n_draft - 1;
    if (fm_session_reserve(s, index, index + 1, &t->err) != FM_OK) continue;   // fewer drafts, no harm
    if (keep_h(m, w->hidden + (seg.row + seg.n - 1) * d, 1, &t->err) != FM_OK) { fail_task(t); continue; }
    w->task[kept] = t;
    w->seg[kept++] = (fm_seg){ .seq = &s->kv, .ids = &t->draft[t->n_draft - 1], .index = index, .n = 1,
                               .role = FM_GENERATED, .n_logits = 1 };
  }
  w->n = kept;
  w->depth++;
}

/* ---- draws ---------------------------------------------------------------------------------------- */

/* Draws along the rows of a task until a draft was wrong or it stops. Returns how many ids were taken; -1: the task failed. */
static int64_t draw_along(fm_model *m, fm_task *t, int64_t first_row) {
  int64_t v = m->cfg.vocab_size, n_draft = t->n_draft, taken = 0;
  bool stopped = false;
  for (;;) {
    fm_draw d;
    const float *logits = m->work.logits ? m->work.logits + (first_row + taken) * v : NULL;
    if (draw(m, t, first_row + taken, 0, FM_REAL, &d) != FM_OK || fm_task_take(t, &d, logits, &stopped) != FM_OK) {
      fail_task(t);
      return -1;
    }
    bool right = taken < n_draft && d.id == t->draft[taken];
    taken++;
    if (right) {
      t->usage.accepted++;
      m->stats.accepted++;
    }
    if (stopped || !right) break;
  }
  t->n_draft = 0;
  return taken;
}

enum { REPLAY = 64 };                    /* sampled rows computed again in one pass: their way is made for few */

/* ---- prompts ---------------------------------------------------------------------------------------- */

static fm_status prefill_seg(fm_model *m, fm_task *t) {
  fm_session *s = t->s;
  int64_t a = s->kv.len, b = a;
  int64_t most = s->roles[a] == FM_GENERATED && m->c.ops->chunk > REPLAY ? REPLAY : m->c.ops->chunk;
  while (b < s->n && b - a < most && s->roles[b] == s->roles[a]) b++;
  TRY(fm_session_reserve(s, a, b, &t->err));
  return add_seg(m, t, (fm_seg){ .seq = &s->kv, .index = a, .n = b - a,
                                 .role = (fm_role)s->roles[a], .n_logits = b == s->n && t->max_tokens > 0 });
}

/* Keeps the states that MTP rows of indices first .. b-1 join with: those of first-1 .. b-2. */
static fm_status prompt_states(fm_model *m, fm_task *t, int64_t first, int64_t a, int64_t b) {
  int64_t d = m->cfg.hidden_size, from = first - 1;
  m->work.n_h = 0;
  if (from < a) {
    TRY(keep_h(m, t->s->h, 1, &t->err));
    from = a;
  }
  return b - 1 > from ? keep_h(m, m->work.hidden + (from - a) * d, b - 1 - from, &t->err) : FM_OK;
}

/* After the main pass over [a, b): what of the MTP layer is to be made; n = 0: nothing. */
static fm_status prompt_mtp(fm_model *m, fm_task *t, fm_seg *out, int64_t a, int64_t b) {
  fm_session *s = t->s;
  int64_t first = s->kv.mtp_len > a ? s->kv.mtp_len : a;
  if (first == a && (a == 0 || !s->h_valid)) first = a + 1;
  *out = (fm_seg){ .seq = &s->kv, .index = first, .n = b > first ? b - first : 0,
                   .role = (fm_role)s->roles[a] };
  if (!m->drafts || !out->n) return FM_OK;
  if (s->kv.mtp_len != first) s->kv.mtp_first = first;
  return prompt_states(m, t, first, a, b);
}

static fm_status prefill_done(fm_model *m, fm_task *t, fm_seg *mtp) {
  fm_work *w = &m->work;
  fm_session *s = t->s;
  int64_t a = w->seg[0].index, b = a + w->seg[0].n, d = m->cfg.hidden_size;
  TRY(prompt_mtp(m, t, mtp, a, b));
  s->kv.len = b;
  memcpy(s->h, w->hidden + (b - a - 1) * d, (size_t)d * sizeof *s->h);
  s->h_valid = true;
  m->stats.prompt_tokens += b - a;
  if (b == s->n && t->max_tokens > 0) draw_along(m, t, 0);
  return FM_OK;
}

/* ---- decoding ----------------------------------------------------------------------------------------- */

static fm_status decode_seg(fm_model *m, fm_task *t) {
  fm_session *s = t->s;
  int64_t n = 1 + t->n_draft;
  TRY(fm_session_reserve(s, s->kv.len, s->kv.len + n, &t->err));
  TRY(lay_out_drafts(t));
  t->usage.drafted += t->n_draft;
  m->stats.drafted += t->n_draft;
  return add_seg(m, t, (fm_seg){ .seq = &s->kv, .index = s->kv.len, .n = n,
                                 .role = FM_GENERATED, .n_logits = n });
}

/* Draws for every task and lines up the drafting of those that go on. Tasks of the pass are copied first: lining up reuses
   the lists. */
static void decode_done(fm_model *m) {
  fm_work *w = &m->work;
  int64_t d = m->cfg.hidden_size, n = w->n;
  w->n = 0;
  for (int64_t i = 0; i < n; i++) {
    fm_task *t = w->task[i];                       // entry i is read before it can be overwritten: w->n <= i
    fm_seg seg = w->seg[i];
    const float *hidden = w->hidden ? w->hidden + seg.row * d : NULL;
    int64_t taken = draw_along(m, t, seg.logits_row);
    if (taken < 0) continue;
    t->s->kv.len += taken;
    t->s->h_valid = hidden != NULL;
    if (hidden) memcpy(t->s->h, hidden + (taken - 1) * d, (size_t)d * sizeof *hidden);
    if (!t->finish && add_draft_seg(m, t, hidden, taken) != FM_OK) fail_task(t);
  }
}

/* ---- turns ------------------------------------------------------------------------------------------- */

static fm_task *next_prefill(fm_model *m) {
  fm_task *from = m->turn && m->turn->next ? m->turn->next : m->tasks;
  for (fm_task *t = from; t; t = t->next)
    if (fm_task_prefilling(t)) return t;
  for (fm_task *t = m->tasks; t && t != from; t = t->next)
    if (fm_task_prefilling(t)) return t;
  return NULL;
}

static bool choose_prefill(fm_model *m) {
  for (fm_task *t; (t = next_prefill(m));) {
    m->turn = t;
    clear(&m->work, FM_PREFILL);
    if (prefill_seg(m, t) == FM_OK) return true;
    fail_task(t);
  }
  return false;
}

static bool choose_decode(fm_model *m) {
  clear(&m->work, FM_DECODE);
  for (fm_task *t = m->tasks, *next; t; t = next) {
    next = t->next;
    if (!fm_task_prefilling(t) && decode_seg(m, t) != FM_OK) fail_task(t);
  }
  return m->work.n > 0;
}

static bool choose(fm_model *m) {
  bool found = m->decoded_last ? choose_prefill(m) || choose_decode(m) : choose_decode(m) || choose_prefill(m);
  if (!found) clear(&m->work, FM_IDLE);
  m->decoded_last = m->work.kind == FM_DECODE;
  return found;
}

/* ---- one slice ----------------------------------------------------------------------------------------- */

static fm_status begin(fm_model *m) {
  fm_work *w = &m->work;
  bool mtp = w->kind == FM_PREFILL_MTP || w->kind == FM_DRAFT;
  int64_t row = 0;
  for (int64_t i = 0; i < w->n; i++) {
    // only now: the ids may have moved as they grew, and so may the states
    if (w->kind != FM_DRAFT || w->depth == 0) w->seg[i].ids = w->task[i]->s->ids + w->seg[i].index;
    if (mtp) w->seg[i].h = w->h + row * m->cfg.hidden_size;
    row += w->seg[i].n;
  }
  const fm_draw_rule *rule;
  TRY(make_rules(m, &rule));
  TRY(fm_pass_begin(&w->pass, &m->net, w->seg, w->n, mtp, rule));
  w->started = true;
  w->begun = fm_now_ms();
  return FM_OK;
}

static void charge(fm_model *m) {
  fm_work *w = &m->work;
  double ms = fm_now_ms() - w->begun;
  bool prompt = w->kind == FM_PREFILL || w->kind == FM_PREFILL_MTP;
  for (int64_t i = 0; i < w->n; i++)
    *(prompt ? &w->task[i]->usage.prefill_ms : &w->task[i]->usage.decode_ms) += ms;
  m->stats.steps++;
}

/* Lines up the draft of a task whose prompt is done; ends one that wanted no more than that. */
static void first_draft(fm_model *m, fm_task *t) {
  clear(&m->work, FM_DRAFT);
  m->work.depth = 0;
  if (t->s->kv.len == t->n_prompt && t->max_tokens <= 0) fm_task_end(t, FM_LENGTH);
  if (t->finish || fm_task_prefilling(t)) return;
  if (m->drafts && add_draft_seg(m, t, t->s->h, 1) != FM_OK) fail_task(t);
}

/* Uses a completed pass and says what follows: w->n segments of w->kind, or nothing. */
static void complete(fm_model *m) {
  fm_work *w = &m->work;
  fm_task *t = w->task[0];
  fm_seg mtp = { 0 };
  switch (w->kind) {
    case FM_PREFILL:
      if (prefill_done(m, t, &mtp) != FM_OK) fail_task(t);
      fm_pass_end(&w->pass);
      if (m->drafts && mtp.n && !t->finish) {
        w->kind = FM_PREFILL_MTP;
        w->seg[0] = mtp;
      } else {
        first_draft(m, t);
      }
      break;
    case FM_PREFILL_MTP:
      t->s->kv.mtp_len = w->seg[0].index + w->seg[0].n;
      fm_pass_end(&w->pass);
      first_draft(m, t);
      break;
    case FM_DECODE:
      w->depth = 0;
      decode_done(m);
      fm_pass_end(&w->pass);
      w->kind = FM_DRAFT;
      break;
    default:
      draft_done(m);
      fm_pass_end(&w->pass);
  }
  w->started = false;
  if (!w->n) clear(w, FM_IDLE);
}

void fm_sched_slice(fm_model *m, bool *busy, bool *whole) {
  fm_work *w = &m->work;
  fm_status status = FM_OK;
  bool done = false;
  *whole = false;
  if (w->kind == FM_IDLE && !choose(m)) {
    *busy = false;
    return;
  }
  if (!w->started) status = begin(m);
  if (status == FM_OK) status = fm_pass_layer(&w->pass, &done);
  if (status == FM_OK && done) status = fetch(m);
  if (status != FM_OK) {
    fail_all(m);
    if (w->started) fm_pass_end(&w->pass);
    clear(w, FM_IDLE);
  } else if (done) {
    charge(m);
    complete(m);
  }
  *whole = done || status != FM_OK;
  *busy = w->kind != FM_IDLE || m->tasks;
}
