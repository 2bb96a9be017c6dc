/*
** session.c - one growing sequence: its ids and roles, and as much of its cache as is worth keeping.
*/
#include <string.h>

#include "run/engine.h"

static void link_in(fm_session *s) {
  s->next = s->m->sessions;
  if (s->next) s->next->prev = s;
  s->m->sessions = s;
}

static void unlink_from(fm_session *s) {
  if (s->prev) s->prev->next = s->next;
  else s->m->sessions = s->next;
  if (s->next) s->next->prev = s->prev;
}

fm_status fm_session_new(fm_session **out, fm_model *m, fm_error *err) {
  fm_session *s = fm_zalloc(sizeof *s);
  if (!s) return fm_no_memory(err, sizeof *s);
  s->h = fm_array(m->cfg.hidden_size, sizeof *s->h);
  if (!s->h) {
    fm_free(s);
    return fm_no_memory(err, m->cfg.hidden_size * (int64_t)sizeof(float));
  }
  s->m = m;
  s->refs = 1;
  fm_model_keep(m);
  link_in(s);
  *out = s;
  return FM_OK;
}

fm_status fm_session_fork(fm_session **out, fm_session *s, fm_error *err) {
  fm_session *f;
  TRY(fm_session_new(&f, s->m, err));
  fm_status status;
  TRY_TO(fm_grow(&f->ids, &f->cap_ids, s->n, sizeof *f->ids, err));
  TRY_TO(fm_grow(&f->roles, &f->cap_roles, s->n, sizeof *f->roles, err));
  TRY_TO(fm_kv_fork(s->m->kv, &f->kv, &s->kv, err));
  f->n = s->n;
  if (s->n) {
    memcpy(f->ids, s->ids, (size_t)s->n * sizeof *f->ids);
    memcpy(f->roles, s->roles, (size_t)s->n);
  }
  memcpy(f->h, s->h, (size_t)s->m->cfg.hidden_size * sizeof *f->h);
  f->h_valid = s->h_valid;
  f->inexact = s->inexact;
  f->keep = s->keep, f->dropped = s->dropped, f->dropped_sum = s->dropped_sum;
  fm_node_hold(&f->node, s->node);
  *out = f;
  return FM_OK;
done:
  fm_session_free(f);
  return status;
}

void fm_session_free(fm_session *s) {
  if (!s || --s->refs > 0) return;
  fm_model *m = s->m;
  fm_sched_leave(m, s);
  unlink_from(s);
  fm_node_hold(&s->node, NULL);
  fm_kv_drop(m->kv, &s->kv);
  fm_free(s->ids);
  fm_free(s->roles);
  fm_free(s->h);
  fm_free(s->late);
  fm_free(s);
  fm_model_close(m);
}

int64_t fm_session_len(const fm_session *s) { return s->n; }
const int32_t *fm_session_ids(const fm_session *s) { return s->ids; }
bool fm_session_exact(const fm_session *s) { return !s->inexact; }

fm_status fm_session_append(fm_session *s, const int32_t *ids, int64_t n, fm_role role, fm_error *err) {
  TRY(fm_grow(&s->ids, &s->cap_ids, s->n + n, sizeof *s->ids, err));
  TRY(fm_grow(&s->roles, &s->cap_roles, s->n + n, sizeof *s->roles, err));
  if (n) memcpy(s->ids + s->n, ids, (size_t)n * sizeof *ids);
  if (n) memset(s->roles + s->n, role, (size_t)n);
  s->n += n;
  return FM_OK;
}

void fm_session_cut(fm_session *s, int64_t n) {
  bool inside = s->kv.len > n;
  if (s->n > n) s->n = n;
  fm_node_cut(&s->node, n);
  fm_kv_truncate(s->m->kv, &s->kv, n);
  // the state of the last row is known only where the cache ended: give one row up, to learn it again
  if (inside) fm_session_back(s, n - 1);
}

void fm_session_back(fm_session *s, int64_t len) {
  if (len < 0) len = 0;
  if (len >= s->kv.len) return;
  s->kv.len = len;
  s->h_valid = false;
}

void fm_session_drop_cache(fm_session *s) {
  fm_task *t = s->task;
  fm_node_hold(&s->node, NULL);
  fm_kv_truncate(s->m->kv, &s->kv, 0);
  s->kv.mtp_first = s->kv.mtp_len = 0;
  s->h_valid = false;
  if (t && s->n == t->n_prompt) t->usage.cached = 0;
}

/* ---- groups of ranks ------------------------------------------------------------------------------- */

static bool runs(const fm_session *s) { return s->task && s->task->running; }

/* A sequence that holds no pages goes where the fewest run. */
static void settle_down(fm_session *s) {
  const fm_model *m = s->m;
  int64_t least = INT64_MAX;
  if (m->kv->n_groups == 1 || s->kv.n_pages || s->kv.kept_len) return;
  for (int g = 0; g < m->kv->n_groups; g++) {
    int64_t n = 0;
    for (const fm_session *o = m->sessions; o; o = o->next) n += o != s && runs(o) && o->kv.n_pages && o->kv.group == g;
    if (n < least) least = n, s->kv.group = g;
  }
}

/* ---- the prefix tree ------------------------------------------------------------------------------- */

int64_t fm_session_adopt(fm_session *s, int64_t most) {
  fm_model *m = s->m;
  int64_t before = s->kv.len;
  if (!m->prefix || s->inexact) return 0;
  settle_down(s);
  fm_text t = { s->ids, s->roles };
  bool known = fm_prefix_take(m->prefix, &s->kv, &s->node, t, most, s->h);
  int64_t len = s->kv.len;
  if (len == before) return 0;
  s->h_valid = known;
  // drafts go on from the state of the last row: where it is not known the row is computed once more
  if (m->drafts && !known) fm_session_back(s, len - 1);
  return len - before;
}

void fm_session_publish(fm_session *s, const float *h, int64_t first) {
  fm_model *m = s->m;
  fm_text t = { s->ids, s->roles };
  int64_t d = m->cfg.hidden_size, end;
  if (!m->prefix || s->inexact) return;
  while ((end = fm_node_end(s->node) + FM_PAGE) <= s->kv.len) {
    const float *state = h && end > first ? h + (end - 1 - first) * d : NULL;
    if (!fm_prefix_put(m->prefix, &s->kv, &s->node, t, end, state)) return;
  }
}

void fm_session_publish_tail(fm_session *s) {
  fm_model *m = s->m;
  fm_text t = { s->ids, s->roles };
  int64_t rows = s->kv.len - fm_node_end(s->node);
  if (!m->prefix || s->inexact) return;
  fm_prefix_mark_mtp(s->node, &s->kv);
  if (rows > 0 && rows < FM_PAGE) fm_prefix_put(m->prefix, &s->kv, &s->node, t, s->kv.len, s->h_valid ? s->h : NULL);
}

void fm_model_drop_prefixes(fm_model *m) {
  for (fm_session *s = m->sessions; s; s = s->next)
    if (!s->task) fm_session_drop_cache(s);
  fm_prefix_clear(m->prefix);
}

/* ---- pages ----------------------------------------------------------------------------------------- */

/* The session of the same group that holds pages, does not run, and ran longest ago. */
static fm_session *idlest(fm_model *m, const fm_session *not_this) {
  fm_session *best = NULL;
  for (fm_session *s = m->sessions; s; s = s->next)
    if (s != not_this && s->kv.group == not_this->kv.group && !runs(s) && s->kv.n_pages && (!best || s->used < best->used)) best = s;
  return best;
}

/* Gives up what was used longest ago: a page that only the prefix tree holds, or the pages of a session. */
static bool give_up_one(fm_model *m, const fm_session *not_this) {
  fm_session *s = idlest(m, not_this);
  uint64_t page = fm_prefix_oldest(m->prefix, not_this->kv.group);
  if (!s && page == UINT64_MAX) return false;
  if (!s || page < s->used) fm_prefix_evict(m->prefix, not_this->kv.group);
  else fm_session_drop_cache(s);
  return true;
}

fm_status fm_session_reserve(fm_session *s, int64_t from, int64_t to, fm_error *err) {
  s->used = ++s->m->clock;
  settle_down(s);
  for (;;) {
    fm_status status = fm_kv_reserve(s->m->kv, &s->kv, from, to, err);
    if (status != FM_ELIMIT || !give_up_one(s->m, s)) return status;
  }
}
