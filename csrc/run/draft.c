/*
** draft.c - drafts of the MTP layer, depth by depth. While "auto" makes none, the states of a session's last steps are kept, so that it
** may draft again; behind a longer time without, drafts of the same reply would see too little to be worth it.
*/
#include <string.h>

#include "run/engine.h"

enum {
  LATE = 24,                             /* states kept */
  SIGHT = 8                              /* drafts made with fewer MTP rows in sight, or not half of all, do not count */
};

void fm_draft_accepted(fm_model *m, const fm_task *t, int64_t drafted, int64_t accepted) {
  m->stats.drafted += drafted;
  m->stats.accepted += accepted;
  int64_t sight = t->s->kv.mtp_len - t->s->kv.mtp_first;
  if (sight >= SIGHT && 2 * sight >= t->s->kv.mtp_len) fm_depth_right(&m->depth, drafted, accepted);
}

/* States that the MTP layer has missed before `index` are at hand, *n of them; false: some are gone. */
static bool caught_up(const fm_session *s, int64_t index, int64_t *n) {
  *n = index - s->kv.mtp_len;
  return *n == 0 || (*n == s->n_late && s->late_at == s->kv.mtp_len);
}

static bool is_auto(const fm_task *t) { return t && t->o.mtp == FM_MTP_AUTO; }

void fm_draft_pace(fm_model *m) {
  const fm_batch *b = &m->work.now;
  int64_t able = 0, late;
  for (int64_t i = 0; m->drafts && i < b->n; i++) able += is_auto(b->task[i]) && caught_up(b->task[i]->s, b->seg[i].index + 1, &late);
  fm_depth_choose(&m->depth, b->n, able);
}

/* How many drafts are worth making for the task's next step. */
static int64_t wanted(const fm_task *t) {
  int64_t room = t->max_tokens - t->usage.completion - 1;
  int64_t space = t->s->m->ctx - t->s->n - 1;
  int64_t want = t->o.mtp == FM_MTP_AUTO ? t->s->m->depth.now : t->o.mtp;
  want = want < room ? want : room;
  want = want < space ? want : space;
  if (t->guide && t->n_draft && fm_guide_over(t->guide, FM_AHEAD)) want = t->n_draft;    // the document ends there
  return want > 0 ? want : 0;
}

fm_status fm_draft_lay_out(fm_task *t) {
  fm_session *s = t->s;
  TRY(fm_grow(&s->ids, &s->cap_ids, s->n + FM_MAX_DRAFTS, sizeof *s->ids, &t->err));
  memcpy(s->ids + s->n, t->draft, (size_t)t->n_draft * sizeof *t->draft);
  return FM_OK;
}

/* Keeps n states of indices from `index` - 1 on, behind those that are kept. */
static fm_status come_later(fm_session *s, const float *h, int64_t index, int64_t n, fm_error *err) {
  int64_t d = s->m->cfg.hidden_size, late;
  if (!caught_up(s, index, &late) || late + n > LATE) return FM_OK;
  if (!s->late && !(s->late = fm_array(LATE * d, sizeof *s->late))) return fm_no_memory(err, LATE * d * (int64_t)sizeof *s->late);
  memcpy(s->late + late * d, h, (size_t)(n * d) * sizeof *h);
  s->n_late = late + n;
  s->late_at = index - late;
  return FM_OK;
}

fm_status fm_draft_begin(fm_model *m, fm_task *t, const float *h, int64_t n) {
  fm_session *s = t->s;
  fm_batch *then = &m->work.then;
  int64_t index = s->n - n, d = m->cfg.hidden_size, late;
  bool whole = caught_up(s, index, &late);
  t->n_draft = 0;
  if (!wanted(t)) return is_auto(t) ? come_later(s, h, index, n, &t->err) : FM_OK;
  if (!whole && is_auto(t)) return FM_OK;
  if (!whole) s->kv.mtp_first = index, late = 0;           // a gap: start over behind it
  index -= late;
  if (fm_session_reserve(s, index, s->n, &t->err) != FM_OK) return FM_OK;      // no drafts, no harm
  fm_seg seg = { .seq = &s->kv, .index = index, .n = n + late, .role = FM_GENERATED, .n_logits = 1 };
  if (!late) return fm_batch_add_mtp(then, t, seg, h, n, d);
  TRY(fm_batch_add_mtp(then, t, seg, s->late, late, d));
  memcpy(then->h + then->n_h * d, h, (size_t)(n * d) * sizeof *h);
  then->n_h += n;
  return FM_OK;
}

/* The next draft of a task; a guide runs ahead along them. */
static fm_status draw_draft(fm_model *m, fm_task *t, int64_t row) {
  fm_draw d;
  TRY(fm_draft_lay_out(t));
  if (t->guide && t->n_draft == 0) TRY(fm_guide_ahead(t->guide, &t->err));
  TRY(fm_batch_draw(m, t, row, t->n_draft, FM_AHEAD, &d));
  if (t->guide) TRY(fm_guide_take(t->guide, FM_AHEAD, d.id, &t->err));
  t->draft[t->n_draft++] = d.id;
  return FM_OK;
}

/* The module's own state and its own draft make the next one. */
void fm_draft_settle(fm_model *m, int64_t i) {
  fm_work *w = &m->work;
  fm_task *t = w->now.task[i];
  fm_session *s = t->s;
  const fm_seg *seg = &w->now.seg[i];
  int64_t d = m->cfg.hidden_size;
  if (w->depth == 0) s->kv.mtp_len = s->n;
  if (draw_draft(m, t, seg->logits_row) != FM_OK) {
    fm_task_fail_own(t);
    return;
  }
  if (t->n_draft >= wanted(t)) return;
  int64_t index = s->n + t->n_draft - 1;
  if (fm_session_reserve(s, index, index + 1, &t->err) != FM_OK) return;       // fewer drafts, no harm
  fm_seg next = { .seq = &s->kv, .ids = &t->draft[t->n_draft - 1], .index = index, .n = 1, .role = FM_GENERATED,
                  .n_logits = 1 };
  if (fm_batch_add_mtp(&w->then, t, next, w->hidden + (seg->row + seg->n - 1) * d, 1, d) != FM_OK) fm_task_fail_own(t);
}
