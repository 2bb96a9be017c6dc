/*
** window.c - generation past the context (fm_generate_options.shift): old ids go, the first few stay, the rest keeps its rows.
** A session's ids are those of the window, [0, keep) and what follows the gap; where the gap was and what stood there (as
** a checksum) is remembered, so that a prompt which begins with the whole history is known again.
*/
#include <string.h>

#include "base/hash.h"
#include "run/engine.h"

enum {
  SINKS = 4,                             /* kept when nobody says: models lean on their first tokens (StreamingLLM) */
  LEAST = 2 * FM_PAGE                    /* of a context: one page to go, and more than a quarter to stay */
};

/* Rows of a window whose first `keep` are kept: what they were at first takes pages too, for one of which there is room. */
static int64_t limit(const fm_session *s, int64_t keep) {
  int64_t pages = fm_kv_pages(keep);
  return s->m->ctx - (pages > 1 ? pages - 1 : 0) * FM_PAGE;
}

static int64_t keep_of(const fm_task *t) {
  const fm_session *s = t->s;
  int64_t keep = s->dropped ? s->keep : t->o.keep < 0 ? SINKS : t->o.keep;
  return keep < s->n ? keep : s->n;
}

/* Rows [keep, keep + n) of the cache go with their ids. Where they cannot, what is left is computed again. */
static void move_rows(fm_session *s, int64_t keep, int64_t n) {
  fm_error err;
  fm_sched_settle(s->m);                           // pages that a pass still writes to are not given to anybody
  if (s->kv.len > keep + n) {
    if (fm_net_shift(&s->m->net, &s->kv, keep, n, &err) == FM_OK) return;
    fm_log(FM_LOG_WARNING, "the window is computed again: %s", err.message);
    fm_session_drop_cache(s);
  } else if (s->kv.len > keep) {
    fm_kv_truncate(s->m->kv, &s->kv, keep);
    s->h_valid = false;
  }
}

static void take_out(fm_task *t, int64_t keep, int64_t n) {
  fm_session *s = t->s;
  s->inexact = true;
  fm_node_hold(&s->node, NULL);
  s->dropped_sum = fm_fnv(s->dropped ? s->dropped_sum : FM_HASH_START, s->ids + keep, n * (int64_t)sizeof *s->ids);
  move_rows(s, keep, n);
  memmove(s->ids + keep, s->ids + keep + n, (size_t)(s->n - keep - n) * sizeof *s->ids);
  memmove(s->roles + keep, s->roles + keep + n, (size_t)(s->n - keep - n));
  s->n -= n;
  s->keep = keep;
  s->dropped += n;
  t->usage.shifted += n;
  t->n_prompt = t->n_prompt > keep + n ? t->n_prompt - n : t->n_prompt < keep ? t->n_prompt : keep;
}

fm_status fm_window_check(const fm_task *t, int64_t n, fm_error *err) {
  int64_t ctx = t->s->m->ctx, keep = t->s->dropped ? t->s->keep : t->o.keep;
  if (!t->o.shift || (t->o.max_tokens >= 0 && n <= ctx - t->o.max_tokens)) return FM_OK;
  if (ctx < LEAST) return fm_fail(err, FM_EOVERFLOW, "a window moves by %d tokens: it needs a ctx of %d, not %lld", FM_PAGE,
                                  LEAST, (long long)ctx);
  if (keep <= ctx / 4) return FM_OK;
  fm_fail(err, FM_EOVERFLOW, "%lld tokens are to be kept while the window moves, at most %lld of a context of %lld can",
          (long long)keep, (long long)(ctx / 4), (long long)ctx);
  return fm_hint(err, FM_EOVERFLOW, "load with a larger ctx, or keep less");
}

void fm_window_room(fm_task *t, int64_t want) {
  if (!t->o.shift || want <= limit(t->s, t->s->kv.kept_len)) return;
  int64_t keep = keep_of(t);
  take_out(t, keep, fm_kv_pages(want - limit(t->s, keep)) * FM_PAGE);
}

int64_t fm_window_gap(fm_session *s, const int32_t *ids, int64_t n) {
  if (!s->dropped) return 0;
  int64_t end = s->keep + s->dropped, size = (int64_t)sizeof *ids;
  if (n >= s->n && memcmp(ids, s->ids, (size_t)(s->n * size)) == 0) return 0;   // what the window holds, and more
  if (n > end && memcmp(ids, s->ids, (size_t)(s->keep * size)) == 0 &&
      fm_fnv(FM_HASH_START, ids + s->keep, s->dropped * size) == s->dropped_sum) return s->dropped;
  fm_session_cut(s, 0);                            // another text: begun afresh, it is exact again
  s->keep = s->dropped = 0;
  s->inexact = false;
  return 0;
}
