/*
** sched.c - what runs next, one slice at a time: a layer of a pass, or the draws of one task of it.
**
**   prefill of some prompts' chunks -> their MTP rows -> first draws -> drafts
**   decoding of all running tasks, each with its drafts behind its pending id -> draws -> drafts, depth by depth
**
** The two take turns. At most m->seqs tasks run and hold pages; the others wait, by priority and arrival. When pages run out although
** nobody idle holds any, the task that began to run last waits again; what it had computed is computed again, each row in its role.
*/
#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "run/engine.h"

enum { FIRST_ROWS = 16 };                /* of a pass in short slices while nothing is known about this machine */

double fm_now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

void fm_mean_add(double *mean, double now, double share) {
  if (*mean <= 0) *mean = now;
  else *mean += share * ((now < 2 * *mean ? now : 2 * *mean) - *mean);
}

/* ---- who runs ------------------------------------------------------------------------------------- */

/* Pages that running tasks and `t` hold, each once, and those that t still needs, and one for each to go on. */
static int64_t pages_wanted(const fm_model *m, const fm_task *t) {
  int64_t n = (t->s->n + FM_PAGE) / FM_PAGE - t->s->kv.n_pages;
  fm_kv_count_begin(m->kv);
  for (const fm_task *u = m->tasks; u; u = u->next)
    if (u->running || u == t) n += fm_kv_count(m->kv, &u->s->kv) + 1;
  return n;
}

static bool fits(const fm_model *m, const fm_task *t, int64_t n_running) {
  return n_running == 0 || pages_wanted(m, t) <= m->kv->n_pages;
}

static const fm_task *least_served(const fm_model *m, int kind) {
  const fm_task *best = NULL;
  for (const fm_task *t = m->tasks; t; t = t->next)
    if (t->running && (!best || t->served[kind] < best->served[kind])) best = t;
  return best;
}

/* Lets waiting tasks run while there is room: higher priority first, then who came first. */
static void admit(fm_model *m) {
  for (;;) {
    fm_task *best = NULL;
    int64_t n = 0;
    for (fm_task *t = m->tasks; t; t = t->next) {
      n += t->running;
      if (!t->running && (!best || t->o.priority > best->o.priority)) best = t;
    }
    if (!best || n >= m->seqs || !fits(m, best, n)) return;
    for (int kind = 0; kind < 2; kind++) {         // not more than others have waited for
      const fm_task *least = least_served(m, kind);
      best->served[kind] = least ? least->served[kind] : 0;
    }
    best->running = true;
    best->admitted = ++m->clock;
  }
}

static void set_back(fm_task *t) {
  t->running = false;
  t->n_draft = 0;
  fm_session_drop_cache(t->s);
  t->s->m->stats.set_back++;
}

/* The running task, not in the pass that is put together, that is to make room for s: of the lowest priority, the youngest. */
static fm_task *youngest(const fm_model *m, const fm_session *s) {
  fm_task *best = NULL;
  for (fm_task *t = m->tasks; t; t = t->next) {
    if (!t->running || t->s->kv.group != s->kv.group || fm_batch_holds(&m->work.now, t)) continue;
    bool later = best && (t->o.priority < best->o.priority ||
                          (t->o.priority == best->o.priority && t->admitted > best->admitted));
    if (!best || later) best = t;
  }
  return best;
}

fm_status fm_sched_reserve(fm_session *s, int64_t from, int64_t to, fm_error *err) {
  fm_model *m = s->m;
  for (;;) {
    fm_status status = fm_session_reserve(s, from, to, err);
    fm_task *t = status == FM_ELIMIT ? youngest(m, s) : NULL;
    if (!t) return status;
    // alone it fits, by the size of the cache; behind others of this pass it takes its turn in the next
    if (t == s->task && m->work.now.n) return status;
    set_back(t);
    if (t == s->task) return status;
  }
}

/* ---- order ------------------------------------------------------------------------------------------ */

static int by_served(const void *a, const void *b, int kind) {
  const fm_task *t = *(fm_task *const *)a, *u = *(fm_task *const *)b;
  if (t->served[kind] != u->served[kind]) return t->served[kind] < u->served[kind] ? -1 : 1;
  return t->admitted < u->admitted ? -1 : t->admitted > u->admitted;
}

static int by_prompts(const void *a, const void *b) { return by_served(a, b, 0); }
static int by_decoding(const void *a, const void *b) { return by_served(a, b, 1); }

int64_t fm_sched_order(fm_model *m, bool prefilling) {
  int64_t n = 0;
  for (fm_task *t = m->tasks; t; t = t->next) {
    if (!t->running || fm_task_prefilling(t) != prefilling) continue;
    if (fm_grow(&m->order, &m->cap_order, n + 1, sizeof *m->order, NULL) != FM_OK) break;   // the others later
    m->order[n++] = t;
  }
  if (n) qsort(m->order, (size_t)n, sizeof *m->order, prefilling ? by_prompts : by_decoding);
  return n;
}

/* A device that works on by itself is only asked in a slice; there a pass should not outlast some frames. */
enum { FRAMES = 4 };

int64_t fm_sched_rows(const fm_model *m, bool prompt) {
  double row_ms = m->pace.row_ms[!prompt], most = m->slice_ms * (m->c.ops->poll ? 2 * FRAMES : 1);
  if (m->slice_ms <= 0) return INT64_MAX;
  if (row_ms <= 0) return FIRST_ROWS;
  return most > row_ms ? (int64_t)(most / row_ms) : 1;
}

/* By the multiplications that a layer has for it, and for a row. */
static double key_rows(const fm_config *c) {
  double heads = (double)c->num_attention_heads, d = (double)c->hidden_size, rank = (double)c->kv_lora_rank, q = (double)c->q_lora_rank;
  double qk = heads * (double)(c->qk_nope_head_dim + c->qk_rope_head_dim), v = heads * (double)c->v_head_dim;
  double width = (double)(c->n_routed_experts ? (c->num_experts_per_tok + c->n_shared_experts) * c->moe_intermediate_size
                                              : c->intermediate_size);
  double expand = rank * (heads * (double)c->qk_nope_head_dim + v);
  return expand / (expand + (q > 0 ? q * (d + qk) : d * qk) + d * (rank + v) + 3 * d * width);
}

double fm_sched_keys(fm_model *m, int64_t n) {
  if (m->cfg.kv_lora_rank <= 0) return 0;
  if (m->pace.key_rows <= 0) m->pace.key_rows = key_rows(&m->cfg);
  return m->pace.key_rows * (double)n;
}

static void note_pace(fm_model *m, double ms) {
  const fm_work *w = &m->work;
  bool prompt = w->kind == FM_PREFILL || w->kind == FM_PREFILL_MTP;
  double rows = (double)w->pass.n;
  for (int64_t i = 0; prompt && i < w->now.n; i++) rows += fm_sched_keys(m, w->now.seg[i].index);
  fm_mean_add(&m->pace.row_ms[!prompt], ms / rows, 0.2);
}

/* ---- the pass under way ------------------------------------------------------------------------------- */

static void idle(fm_model *m) {
  m->work.kind = FM_IDLE;
  m->work.stage = FM_CHOSEN;
  fm_batch_clear(&m->work.now);
  fm_batch_clear(&m->work.then);
}

static void stop(fm_model *m) {
  if (m->work.stage != FM_CHOSEN) fm_pass_end(&m->work.pass);
  idle(m);
}

/* Takes the tasks of a session out of a batch whose pass has not begun. */
static void take_out(fm_batch *b, const fm_session *s) {
  int64_t kept = 0;
  for (int64_t i = 0; i < b->n; i++) {
    if (!b->task[i] || b->task[i]->s == s) continue;
    b->task[kept] = b->task[i];
    b->seg[kept] = b->seg[i];
    b->state[kept++] = b->state[i];
  }
  b->n = kept;
}

void fm_sched_leave(fm_model *m, const fm_session *s) {
  fm_work *w = &m->work;
  bool left = false;
  take_out(&w->then, s);
  if (w->stage == FM_CHOSEN) take_out(&w->now, s);
  for (int64_t i = 0; i < w->now.n; i++) {
    if (w->now.task[i] && w->now.task[i]->s == s) w->now.task[i] = NULL;
    left = left || (w->now.task[i] && (w->stage != FM_SETTLING || i >= w->at));
  }
  if (!left && !w->then.n && w->kind != FM_IDLE) stop(m);   // nobody wants it any more
}

static bool choose(fm_model *m) {
  admit(m);
  bool found = m->decoded_last ? fm_prefill_choose(m) || fm_decode_choose(m) : fm_decode_choose(m) || fm_prefill_choose(m);
  if (!found) idle(m);
  m->decoded_last = m->work.kind == FM_DECODE;
  return found;
}

static void charge(fm_model *m) {
  fm_work *w = &m->work;
  double ms = fm_now_ms() - w->begun;
  bool prompt = w->kind == FM_PREFILL || w->kind == FM_PREFILL_MTP;
  for (int64_t i = 0; i < w->now.n; i++)
    if (w->now.task[i]) *(prompt ? &w->now.task[i]->usage.prefill_ms : &w->now.task[i]->usage.decode_ms) += ms;
  m->stats.steps++;
  if (m->c.ops->poll && w->call == m->calls) note_pace(m, ms);
}

static void settle_one(fm_model *m, int64_t i) {
  const fm_task *t = m->work.now.task[i];
  if (!t) return;
  switch (m->work.kind) {
    case FM_PREFILL: fm_prefill_settle(m, i); break;
    case FM_PREFILL_MTP: fm_prefill_mtp_settle(m, i); break;
    case FM_DECODE: fm_decode_settle(m, i); break;
    default: fm_draft_settle(m, i);
  }
}

/* All segments are settled: what was lined up comes next. */
static void turn_over(fm_model *m) {
  fm_work *w = &m->work;
  fm_work_kind was = w->kind;
  fm_batch done = w->now;
  // a device that works on by itself is measured when nobody was away in between
  if ((was == FM_DECODE || was == FM_DRAFT) && (!m->c.ops->poll || w->call == m->calls))
    fm_depth_cost(&m->depth, was == FM_DRAFT, was == FM_DRAFT ? w->pass.n_logits : w->pass.n, w->spent);
  fm_pass_end(&w->pass);
  w->now = w->then;
  w->then = done;
  fm_batch_clear(&w->then);
  w->stage = FM_CHOSEN;
  w->kind = was == FM_PREFILL && m->drafts ? FM_PREFILL_MTP : FM_DRAFT;
  w->depth = was == FM_DRAFT ? w->depth + 1 : 0;
  if (!w->now.n) idle(m);
}

static void fail_all(fm_model *m) {
  fm_batch *b = &m->work.now;
  fm_error err = m->c.err;
  for (int64_t i = 0; i < b->n; i++)
    if (b->task[i] && !b->task[i]->finish) fm_task_fail(b->task[i], &err);
  stop(m);
}

/* ---- one slice ------------------------------------------------------------------------------------------ */

static fm_status run_layer(fm_model *m) {
  bool done;
  double before = fm_now_ms();
  TRY(fm_pass_layer(&m->work.pass, &done));
  if (!m->c.ops->poll) note_pace(m, fm_now_ms() - before);
  if (done) m->work.stage = FM_ASKED;
  return FM_OK;
}

/* *ready: the device has done all it was asked for. */
static fm_status look(fm_model *m, bool wait, bool *ready) {
  *ready = wait || !m->c.ops->poll;
  return *ready ? FM_OK : m->c.ops->poll(&m->c, ready);
}

static fm_status advance(fm_model *m, bool wait, bool *whole) {
  fm_work *w = &m->work;
  bool ready;
  switch (w->stage) {
    case FM_CHOSEN:                                // what a pass left behind is waited for here
      TRY(look(m, wait, &ready));
      if (!ready) return FM_OK;
      w->begun = fm_now_ms();
      w->spent = 0;
      w->call = m->calls;
      TRY(fm_batch_begin(m));
      w->stage = FM_UNDER_WAY;
      return FM_OK;
    case FM_UNDER_WAY: return run_layer(m);
    case FM_ASKED:
      TRY(look(m, wait, &ready));
      if (!ready) return FM_OK;
      TRY(fm_batch_fetch(m));
      charge(m);
      w->stage = FM_SETTLING;
      w->at = 0;
      return FM_OK;
    default:
      settle_one(m, w->at++);
      *whole = w->at == w->now.n;
      return FM_OK;
  }
}

void fm_sched_slice(fm_model *m, bool wait, bool *busy, bool *whole) {
  fm_work *w = &m->work;
  double before = fm_now_ms();
  *whole = false;
  if (w->kind == FM_IDLE && !choose(m)) {
    *busy = m->tasks != NULL;
    return;
  }
  if (advance(m, wait, whole) != FM_OK) {
    fail_all(m);
    *whole = true;
  }
  w->spent += fm_now_ms() - before;
  if (*whole && w->kind != FM_IDLE) turn_over(m);
  *busy = w->kind != FM_IDLE || m->tasks;
}

void fm_sched_settle(fm_model *m) {
  bool busy, whole = m->work.stage == FM_CHOSEN;
  while (!whole && m->work.kind != FM_IDLE) fm_sched_slice(m, true, &busy, &whole);
}

void fm_sched_finish(fm_model *m) {
  bool busy, whole;
  while (m->work.kind != FM_IDLE) fm_sched_slice(m, true, &busy, &whole);
}
