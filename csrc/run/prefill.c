/*
** prefill.c - reading prompts: chunks of several in one pass, the MTP rows behind them, the first draw. What was set back, or
** dropped while it did nothing, is read again the same way, each row in its role.
*/
#include <string.h>

#include "run/engine.h"

enum { REPLAY = 64, REPLAYS = 4 };       /* sampled rows of a sequence computed again in a pass, and of how many: their way is for few */

static fm_text text_of(const fm_session *s) { return (fm_text){ s->ids, s->roles }; }

/* Whether another task, in this pass or further along, is about to fill the page that this one is at: half a page of it is worth
   waiting for. */
static bool has_twin(const fm_model *m, const fm_task *t) {
  const fm_session *s = t->s;
  int64_t page = fm_node_end(s->node) / FM_PAGE;
  if (!m->prefix || s->inexact || s->kv.len / FM_PAGE != page) return false;
  for (const fm_task *u = m->tasks; u; u = u->next) {
    const fm_session *o = u->s;
    if (u == t || !u->running || o->inexact || o->node != s->node || o->kv.group != s->kv.group || !fm_task_prefilling(u)) continue;
    if (o->kv.len / FM_PAGE != page || (o->kv.len <= s->kv.len && !fm_batch_holds(&m->work.now, u))) continue;
    int64_t end = page * FM_PAGE + fm_text_common(text_of(o), fm_task_goal(u), text_of(s), s->n - 1, page);
    if (end - s->kv.len >= FM_PAGE / 2) return true;
  }
  return false;
}

/* The task's next rows in one role, `most` or fewer; up to a page's end unless they reach the goal. */
static fm_seg next_rows(const fm_task *t, int64_t most) {
  const fm_session *s = t->s;
  int64_t a = s->kv.len, b = a, goal = fm_task_goal(t);
  if (s->roles[a] == FM_GENERATED && most > REPLAY) most = REPLAY;
  while (b < goal && b - a < most && s->roles[b] == s->roles[a]) b++;
  if (b < goal && b - a == most && b / FM_PAGE * FM_PAGE > a) b = b / FM_PAGE * FM_PAGE;
  return (fm_seg){ .seq = &t->s->kv, .index = a, .n = b - a, .role = (fm_role)s->roles[a],
                   .n_logits = b == s->n && t->max_tokens > 0 };
}

/* Adds what of the task fits. FM_ELIMIT: nothing in this pass. */
static fm_status add(fm_model *m, fm_task *t, int64_t most) {
  fm_seg seg = next_rows(t, most);
  if (m->work.now.n && seg.role != m->work.now.seg[0].role) return FM_ELIMIT;
  TRY(fm_sched_reserve(t->s, seg.index, seg.index + seg.n, &t->err));
  TRY(fm_batch_add(&m->work.now, t, seg));
  t->served[0] += (double)seg.n / fm_task_weight(t);
  return FM_OK;
}

static int64_t budget(const fm_model *m, bool others_decode) {
  // those who speak already wait a quarter as long
  int64_t most = others_decode && m->budget > 4 * FM_PAGE ? m->budget / 4 : m->budget;
  int64_t fits = fm_sched_rows(m, true);
  return most < fits ? most : fits;
}

/* Of `share` rows of a short slice those that are left beside what is cached; half as many as that costs in any case: with fewer
   a long prompt would be read row by row. */
static int64_t beside(int64_t share, int64_t keys) {
  int64_t least = keys > 2 ? keys / 2 : 1;
  return share - keys > least ? share - keys : least;
}

bool fm_prefill_choose(fm_model *m) {
  fm_work *w = &m->work;
  int64_t left = budget(m, fm_sched_order(m, false) > 0), n = fm_sched_order(m, true);
  w->kind = FM_PREFILL;
  fm_batch_clear(&w->now);
  for (int64_t i = 0; i < n && left > 0; i++) {
    fm_task *t = m->order[i];
    if (!t->running) continue;                     // set back since
    int64_t had = fm_session_adopt(t->s, t->s->n - 1);   // the last one is needed for its logits, or pending
    if (t->s->n == t->n_prompt) t->usage.cached += had;
    if (!fm_task_prefilling(t) || has_twin(m, t)) continue;
    int64_t share = left / (n - i) > FM_PAGE ? left / (n - i) : FM_PAGE;
    int64_t keys = m->slice_ms > 0 ? (int64_t)fm_sched_keys(m, t->s->kv.len) : 0;
    share = beside(share < left ? share : left, keys);
    fm_status status = add(m, t, share < m->chunk ? share : m->chunk);
    if (status == FM_OK) left -= w->now.seg[w->now.n - 1].n + keys;
    else if (status != FM_ELIMIT) fm_task_fail_own(t);
    if (w->now.n >= REPLAYS && w->now.seg[0].role == FM_GENERATED) break;
  }
  return w->now.n > 0;
}

/* ---- a completed pass ------------------------------------------------------------------------------ */

/* Lines up MTP rows of [a, b): those that are not there, and whose state before is known. n = 0: none. */
static fm_status line_up_mtp(fm_model *m, fm_task *t, const float *hidden, int64_t a, int64_t b, int64_t *n) {
  fm_session *s = t->s;
  fm_batch *then = &m->work.then;
  int64_t d = m->cfg.hidden_size, first = s->kv.mtp_len > a ? s->kv.mtp_len : a;
  if (first == a && (a == 0 || !s->h_valid)) first = a + 1;
  *n = m->drafts && b > first ? b - first : 0;
  if (!*n) return FM_OK;
  if (s->kv.mtp_len != first) s->kv.mtp_first = first;
  fm_seg seg = { .seq = &s->kv, .index = first, .n = *n, .role = (fm_role)s->roles[a] };
  if (first > a) return fm_batch_add_mtp(then, t, seg, hidden + (first - 1 - a) * d, *n, d);
  TRY(fm_batch_add_mtp(then, t, seg, s->h, 1, d));
  memcpy(then->h + then->n_h * d, hidden, (size_t)((*n - 1) * d) * sizeof *hidden);
  then->n_h += *n - 1;
  return FM_OK;
}

/* What is done when all rows up to kv.len are there, the MTP layer's too. */
static void settled(fm_model *m, fm_task *t, bool draft) {
  if (fm_task_prefilling(t)) return;
  fm_session_publish_tail(t->s);
  if (t->max_tokens <= 0) fm_task_end(t, FM_LENGTH);
  if (!t->finish && draft && fm_draft_begin(m, t, t->s->h, 1) != FM_OK) fm_task_fail_own(t);
}

void fm_prefill_settle(fm_model *m, int64_t i) {
  fm_work *w = &m->work;
  fm_task *t = w->now.task[i];
  fm_session *s = t->s;
  const fm_seg *seg = &w->now.seg[i];
  int64_t a = seg->index, b = a + seg->n, d = m->cfg.hidden_size, n_mtp;
  const float *hidden = w->hidden ? w->hidden + seg->row * d : NULL;
  if (line_up_mtp(m, t, hidden, a, b, &n_mtp) != FM_OK) {
    fm_task_fail_own(t);
    return;
  }
  s->kv.len = b;
  s->h_valid = hidden != NULL;
  if (hidden) memcpy(s->h, hidden + (b - a - 1) * d, (size_t)d * sizeof *s->h);
  m->stats.prompt_tokens += b - a;
  fm_session_publish(s, hidden, a);
  if (seg->n_logits) fm_decode_draw(m, t, seg->logits_row);
  if (!n_mtp) settled(m, t, false);
}

void fm_prefill_mtp_settle(fm_model *m, int64_t i) {
  fm_work *w = &m->work;
  fm_task *t = w->now.task[i];
  t->s->kv.mtp_len = w->now.seg[i].index + w->now.seg[i].n;
  settled(m, t, m->drafts > 0);
}
