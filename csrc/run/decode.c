/*
** decode.c - steps of decoding: every task with its drafts behind its pending id, the draws along them.
*/
#include <string.h>

#include "run/engine.h"

int64_t fm_decode_draw(fm_model *m, fm_task *t, int64_t first_row) {
  int64_t n_draft = t->n_draft, taken = 0;
  bool stopped = false;
  for (;;) {
    fm_draw d;
    int64_t row = first_row + taken;
    if (fm_batch_draw(m, t, row, 0, FM_REAL, &d) != FM_OK || fm_task_take(t, &d, fm_batch_logits(m, row), &stopped) != FM_OK) {
      fm_task_fail_own(t);
      return -1;
    }
    bool right = taken < n_draft && d.id == t->draft[taken];
    taken++;
    if (right && !t->o.n_forced) t->usage.accepted++;
    if (stopped || !right) break;
  }
  t->n_draft = 0;
  return taken;
}

/* Forced ids stand where drafts would: all but the last need a row. */
static void line_up_forced(fm_task *t) {
  int64_t n = fm_task_forced(t) - 1;
  if (n < 0) return;
  t->n_draft = n < FM_MAX_DRAFTS ? n : FM_MAX_DRAFTS;
  memcpy(t->draft, t->o.forced + t->usage.completion, (size_t)t->n_draft * sizeof *t->draft);
}

/* Adds the task's pending id and its drafts; FM_ELIMIT: not in this pass. */
static fm_status add(fm_model *m, fm_task *t) {
  fm_session *s = t->s;
  line_up_forced(t);
  int64_t n = 1 + t->n_draft;
  fm_window_room(t, s->kv.len + n);
  if (fm_task_prefilling(t)) return FM_ELIMIT;     // the window found no page to move: it is computed again
  TRY(fm_sched_reserve(s, s->kv.len, s->kv.len + n, &t->err));
  TRY(fm_draft_lay_out(t));
  t->served[1] += 1 / fm_task_weight(t);
  return fm_batch_add(&m->work.now, t, (fm_seg){ .seq = &s->kv, .index = s->kv.len, .n = n, .role = FM_GENERATED,
                                                 .n_logits = n });
}

bool fm_decode_choose(fm_model *m) {
  fm_work *w = &m->work;
  int64_t n = fm_sched_order(m, false), left = fm_sched_rows(m, false);
  w->kind = FM_DECODE;
  fm_batch_clear(&w->now);
  for (int64_t i = 0; i < n && left > 0; i++) {
    fm_task *t = m->order[i];
    if (!t->running) continue;                     // set back since
    fm_status status = add(m, t);
    if (status == FM_OK) left -= w->now.seg[w->now.n - 1].n;
    else if (status != FM_ELIMIT) fm_task_fail_own(t);
  }
  fm_draft_pace(m);
  return w->now.n > 0;
}

void fm_decode_settle(fm_model *m, int64_t i) {
  fm_work *w = &m->work;
  fm_task *t = w->now.task[i];
  fm_session *s = t->s;
  const fm_seg *seg = &w->now.seg[i];
  int64_t d = m->cfg.hidden_size, drafted = t->o.n_forced ? 0 : t->n_draft, accepted = t->usage.accepted;
  const float *hidden = w->hidden ? w->hidden + seg->row * d : NULL;
  int64_t taken = fm_decode_draw(m, t, seg->logits_row);
  if (taken < 0) return;
  t->usage.drafted += drafted;
  fm_draft_accepted(m, t, drafted, t->usage.accepted - accepted);
  s->kv.len += taken;
  s->h_valid = hidden != NULL;
  if (hidden) memcpy(s->h, hidden + (taken - 1) * d, (size_t)d * sizeof *hidden);
  if (t->finish && !t->o.n_forced) fm_session_publish(s, NULL, 0);
  else if (!t->finish && hidden && fm_draft_begin(m, t, hidden, taken) != FM_OK) fm_task_fail_own(t);
}
