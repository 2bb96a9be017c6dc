/*
** draft.c - drafts of the MTP layer, depth by depth, and how many of them pay.
**
** "auto" compares, for each depth k, the ids that a step is expected to bring, 1 + p + .. + p^k for a share p of right drafts,
** with what it costs: a decoding pass of n (1 + k) rows and k drafting passes of n. Costs are those of passes that were run, by
** rows; one that was not is taken to cost what fewer rows did, so that it is tried. Costs waver by some percent, so drafts have to
** promise more than that; and a look at another depth that changes nothing is followed by a longer time without.
*/
#include <string.h>

#include "run/engine.h"

enum {
  PROBE = 256, PROBE_MOST = 8192,        /* decoding passes after which "auto" looks at one draft more or less: at first, at most, */
  LOOK = 12,                             /* and for how many; */
  SIGHT = 8                              /* drafts made with fewer MTP rows in sight, behind a gap, do not count */
};

/* ---- what passes cost ------------------------------------------------------------------------------ */

/* 1, 2, 3, 4, 6, 8, 12, ... rows have an entry each; others count with the next smaller. */
static int slot_of(int64_t rows) {
  int64_t low = 1;
  int i = 0;
  for (; low * 2 <= rows && i < 14; low *= 2) i += low == 1 ? 1 : 2;
  return i + (low > 1 && rows >= low + low / 2 && i < 15);
}

static int64_t rows_of(int slot) {
  if (slot == 0) return 1;
  int64_t low = (int64_t)2 << (slot - 1) / 2;
  return slot % 2 ? low : low + low / 2;
}

void fm_draft_measure(fm_model *m, bool draft, int64_t n, double ms) {
  int slot = slot_of(n);
  fm_mean_add(&m->pace.pass_ms[draft][slot], ms * (double)rows_of(slot) / (double)n, 0.1);
}

static double cost(const fm_model *m, bool draft, int64_t rows) {
  int slot = slot_of(rows), known = slot;
  while (known > 0 && m->pace.pass_ms[draft][known] <= 0) known--;
  double ms = m->pace.pass_ms[draft][known];
  return known == slot ? ms * (double)rows / (double)rows_of(slot) : ms;
}

void fm_draft_accepted(fm_model *m, const fm_task *t, int64_t drafted, int64_t accepted) {
  fm_pace *p = &m->pace;
  m->stats.drafted += drafted;
  m->stats.accepted += accepted;
  if (t->s->kv.mtp_len - t->s->kv.mtp_first < SIGHT) return;
  // drafts behind the first wrong one say nothing
  for (int64_t i = 0; i < drafted && i <= accepted; i++) p->accept += 0.02 * ((i < accepted) - p->accept);
}

/* Ids a millisecond of a step of n tasks with k drafts each. */
static double speed(const fm_model *m, int64_t n, int k) {
  double ids = 1, part = 1, ms = cost(m, false, n * (1 + k));
  for (int i = 0; i < k; i++) ids += part *= m->pace.accept;
  ms += k * cost(m, true, n);
  return ms > 0 ? (double)n * ids / ms : 0;
}

/* The depth that promises most for n tasks: any drafts at all, a twentieth more than none. */
static int best_depth(const fm_model *m, int64_t n) {
  int best = 0;
  double most = 1.05 * speed(m, n, 0);
  for (int k = 1; k <= FM_AUTO_DRAFTS; k++) {
    double now = speed(m, n, k);
    if (now > most) best = k, most = now;
  }
  return best;
}

void fm_draft_pace(fm_model *m, int64_t n) {
  fm_pace *p = &m->pace;
  if (!m->drafts || !n) return;
  int best = best_depth(m, n);
  if (best != p->best || !p->gap) p->gap = PROBE;
  p->best = best;
  if (p->look) {
    p->look--;
  } else if (++p->since >= p->gap) {
    p->since = 0;
    p->gap = p->gap * 2 < PROBE_MOST ? p->gap * 2 : PROBE_MOST;
    p->look = LOOK;
  }
  p->depth = p->look ? best + (best < FM_AUTO_DRAFTS ? 1 : -1) : best;
}

/* ---- drafts ------------------------------------------------------------------------------------------ */

/* How many drafts are worth making for the task's next step. */
static int64_t wanted(const fm_task *t) {
  int64_t room = t->max_tokens - t->usage.completion - 1;
  int64_t space = t->s->m->ctx - t->s->n - 1;
  int64_t want = t->o.mtp == FM_MTP_AUTO ? t->s->m->pace.depth : t->o.mtp;
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

fm_status fm_draft_begin(fm_model *m, fm_task *t, const float *h, int64_t n) {
  fm_session *s = t->s;
  int64_t index = s->n - n;
  t->n_draft = 0;
  if (!wanted(t)) return FM_OK;
  if (fm_session_reserve(s, index, s->n, &t->err) != FM_OK) return FM_OK;      // no drafts, no harm
  if (s->kv.mtp_len != index) s->kv.mtp_first = index;     // a gap: start over behind it
  fm_seg seg = { .seq = &s->kv, .index = index, .n = n, .role = FM_GENERATED, .n_logits = 1 };
  return fm_batch_add_mtp(&m->work.then, t, seg, h, n, m->cfg.hidden_size);
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
