/*
** task.c - one generation: its options, what it has sampled, its text and stops.
*/
#include <math.h>
#include <string.h>

#include "run/engine.h"

fm_generate_options fm_generate_options_default(void) {
  return (fm_generate_options){ .max_tokens = -1, .temperature = 1, .top_p = 1, .repeat_penalty = 1,
                                .logprobs = -1, .mtp = -1, .grammar_after = -1, .keep = -1 };
}

/* ---- options -------------------------------------------------------------------------------- */

static fm_status check_options(const fm_generate_options *o, const fm_model *m, fm_error *err) {
  if (!(o->temperature >= 0 && isfinite(o->temperature)))
    return fm_fail(err, FM_EINVAL, "temperature must be 0 or more, got %g", (double)o->temperature);
  if (!(o->top_p > 0 && o->top_p <= 1))
    return fm_fail(err, FM_EINVAL, "top_p must be in (0, 1], got %g", (double)o->top_p);
  if (!(o->min_p >= 0 && o->min_p <= 1))
    return fm_fail(err, FM_EINVAL, "min_p must be in [0, 1], got %g", (double)o->min_p);
  if (!(o->repeat_penalty > 0 && isfinite(o->repeat_penalty)))
    return fm_fail(err, FM_EINVAL, "repeat_penalty must be above 0, got %g", (double)o->repeat_penalty);
  if (!isfinite(o->presence_penalty) || !isfinite(o->frequency_penalty))
    return fm_fail(err, FM_EINVAL, "presence_penalty and frequency_penalty must be finite");
  if (o->priority < -FM_MAX_PRIORITY || o->priority > FM_MAX_PRIORITY)
    return fm_fail(err, FM_EINVAL, "priority must be -%d to %d, got %d", FM_MAX_PRIORITY, FM_MAX_PRIORITY, o->priority);
  if (o->top_k < 0) return fm_fail(err, FM_EINVAL, "top_k must be 0 or more, got %d", o->top_k);
  if (o->logprobs > m->cfg.vocab_size)
    return fm_fail(err, FM_EINVAL, "logprobs is %d, more than vocab_size", o->logprobs);
  for (int32_t i = 0; i < o->n_logit_bias; i++) {
    if (o->logit_bias[i].id < 0 || o->logit_bias[i].id >= m->cfg.vocab_size)
      return fm_fail(err, FM_EINVAL, "logit_bias names id %d, outside the vocabulary", o->logit_bias[i].id);
    if (isnan(o->logit_bias[i].bias) || o->logit_bias[i].bias == INFINITY)
      return fm_fail(err, FM_EINVAL, "logit_bias of id %d is no number", o->logit_bias[i].id);
  }
  for (int32_t i = 0; i < o->n_stop; i++)
    if (!o->stop[i] || !o->stop[i][0]) return fm_fail(err, FM_EINVAL, "stop holds an empty string");
  for (int32_t i = 0; i < o->n_forced; i++)
    if (o->forced[i] < 0 || o->forced[i] >= m->cfg.vocab_size)
      return fm_fail(err, FM_EINVAL, "forced id %d is outside the vocabulary of %lld", o->forced[i], (long long)m->cfg.vocab_size);
  if (o->n_forced && (o->grammar || o->schema || o->shift))
    return fm_fail(err, FM_EINVAL, "forced ids go with neither grammar nor schema nor a moving window");
  if ((o->grammar || o->schema) && (o->n_stop || o->n_stop_ids))
    return fm_fail(err, FM_EINVAL, "stop and stop_ids would cut a document: they do not go with grammar or schema");
  return FM_OK;
}

static void free_options(fm_generate_options *o) {
  fm_free((void *)o->logit_bias);
  fm_free((void *)o->stop_ids);
  fm_free((void *)o->forced);
  for (int32_t i = 0; o->stop && i < o->n_stop; i++) fm_free((void *)o->stop[i]);
  fm_free((void *)o->stop);
}

static void *copy(const void *p, int64_t size) {
  void *q = fm_alloc(size);
  if (q && size) memcpy(q, p, (size_t)size);
  return q;
}

/* Deep copy; on failure what was copied can be given to free_options. */
static fm_status copy_options(fm_generate_options *dst, const fm_generate_options *o, fm_error *err) {
  *dst = *o;
  dst->stop = NULL;
  dst->grammar = dst->schema = NULL;               // the guide has what it needs of them
  int64_t bias = o->n_logit_bias * (int64_t)sizeof *o->logit_bias;
  int64_t ids = o->n_stop_ids * (int64_t)sizeof *o->stop_ids, forced = o->n_forced * (int64_t)sizeof *o->forced;
  dst->logit_bias = copy(o->logit_bias, bias);
  dst->stop_ids = copy(o->stop_ids, ids);
  dst->forced = copy(o->forced, forced);
  const char **stop = fm_array(o->n_stop, sizeof *stop);
  dst->stop = (const char *const *)stop;
  if (!dst->logit_bias || !dst->stop_ids || !dst->forced || !stop) return fm_no_memory(err, bias + ids + forced);
  for (int32_t i = 0; i < o->n_stop; i++) {
    stop[i] = fm_strndup(o->stop[i], strlen(o->stop[i]));
    if (!stop[i]) return fm_no_memory(err, (int64_t)strlen(o->stop[i]));
  }
  return FM_OK;
}

/* ---- life ----------------------------------------------------------------------------------- */

static void link_in(fm_task *t) {
  fm_task **at = &t->s->m->tasks, *last = NULL;
  while (*at) last = *at, at = &last->next;
  *at = t;
  t->prev = last;
}

static void unlink_from(fm_task *t) {
  fm_model *m = t->s->m;
  if (t->prev) t->prev->next = t->next;
  else m->tasks = t->next;
  if (t->next) t->next->prev = t->prev;
  t->next = t->prev = NULL;
}

/* Makes the session's ids equal to ids[0..n) without those that it has dropped; what is common from the start keeps its role and
   its cache. */
static fm_status set_prompt(fm_task *t, const int32_t *ids, int64_t n, fm_error *err) {
  fm_session *s = t->s;
  t->usage.prompt = n;
  int64_t gap = fm_window_gap(s, ids, n), common = gap ? s->keep : 0;
  ids += gap, n -= gap;                            // read from `common` on only
  TRY(fm_window_check(t, n, err));
  while (common < n && common < s->n && ids[common] == s->ids[common]) common++;
  TRY(fm_grow(&s->ids, &s->cap_ids, n, sizeof *s->ids, err));
  TRY(fm_grow(&s->roles, &s->cap_roles, n, sizeof *s->roles, err));
  fm_session_cut(s, common);
  TRY(fm_session_append(s, ids + common, n - common, FM_PROMPT, err));
  t->n_prompt = n;
  fm_window_room(t, n + (t->o.max_tokens != 0));
  int64_t lag = s->kv.len - s->kv.mtp_len;
  // a reply's last few states went by before its MTP rows were made: cheap to make up for
  if (s->m->drafts && lag > 0 && lag <= FM_MAX_DRAFTS + 1) fm_session_back(s, s->kv.mtp_len - 1);
  fm_session_back(s, s->n - 1);                    // the last row is needed for its logits
  t->usage.cached = s->kv.len;
  return FM_OK;
}

/* Ids that are to be taken find room, and somebody reads how likely they were. */
static fm_status set_forced(fm_task *t, int64_t room, fm_error *err) {
  int64_t n = t->o.n_forced;
  if (!n) return FM_OK;
  if (n > room)
    return fm_fail(err, FM_EOVERFLOW, "the prompt has %lld tokens and %lld are to follow, the context holds %lld", (long long)t->s->n,
                   (long long)n, (long long)t->s->m->ctx);
  t->max_tokens = n;
  t->o.mtp = 0;                                    // what is to come is known
  if (t->o.logprobs < 0) t->o.logprobs = 0;
  return FM_OK;
}

fm_status fm_ids_check(const fm_model *m, const int32_t *ids, int64_t n, fm_error *err) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= m->cfg.vocab_size)
      return fm_fail(err, FM_EINVAL, "id %d at index %lld is outside the vocabulary of %lld", ids[i], (long long)i,
                     (long long)m->cfg.vocab_size);
  return FM_OK;
}

static fm_status check_prompt(const fm_model *m, const int32_t *ids, int64_t n, const fm_generate_options *o, fm_error *err) {
  if (n < 1) return fm_fail(err, FM_EINVAL, "the prompt is empty: at least one id is needed");
  int64_t most = m->ctx - (o->max_tokens != 0);    // a prompt that leaves no room for a token is too long to be answered
  if (n > most && !o->shift) {
    fm_fail(err, FM_EOVERFLOW, "the prompt has %lld tokens, the context holds %lld%s", (long long)n, (long long)m->ctx,
            n == m->ctx ? " and none of the answer" : "");
    if (n > m->cfg.max_position_embeddings)
      return fm_hint(err, FM_EOVERFLOW, "the model itself goes no further than %lld: shorten the prompt",
                     (long long)m->cfg.max_position_embeddings);
    return fm_hint(err, FM_EOVERFLOW, "load with ctx = %lld or more, shorten the prompt, or let the window move "
                   "(overflow = \"shift\")", (long long)n + 1);
  }
  return fm_ids_check(m, ids, n, err);
}

/* The guide of a task with a grammar or a schema. */
static fm_status make_guide(fm_task *t, const fm_generate_options *o, fm_error *err) {
  fm_model *m = t->s->m;
  if (!o->grammar && !o->schema) return FM_OK;
  if (!m->tok) return fm_fail(err, FM_EUNSUPPORTED, "%s has no tokenizer.json: grammars and schemas need its texts", m->dir);
  if (!m->grammars) TRY(fm_grammars_new(&m->grammars, m->tok, m->cfg.vocab_size, err));
  fm_guide_options g = { .grammar = o->grammar, .schema = o->schema, .after = o->grammar_after, .ends = m->cfg.eos_token_id,
                         .n_ends = m->cfg.n_eos, .bias = o->logit_bias, .n_bias = o->n_logit_bias };
  return fm_guide_new(&t->guide, m->grammars, &g, err);
}

/* Drafts a step, or FM_MTP_AUTO, for what the caller said. */
static int drafts(const fm_model *m, int mtp) {
  if (!m->drafts) return 0;
  bool open = mtp == FM_MTP_AUTO || (mtp < 0 && m->mtp_auto);
  if (open && m->wire) return 1;                   // what pays is timed, and the times of processes differ
  if (open) return FM_MTP_AUTO;
  if (mtp < 0) return m->drafts;
  return mtp < FM_MAX_DRAFTS ? mtp : FM_MAX_DRAFTS;
}

/* Everything of a new task that can fail. */
static fm_status prepare(fm_task *t, const int32_t *ids, int64_t n, const fm_generate_options *o, fm_error *err) {
  const fm_session *s = t->s;
  TRY(copy_options(&t->o, o, err));
  TRY(make_guide(t, o, err));
  TRY(set_prompt(t, ids, n, err));
  t->o.mtp = drafts(s->m, o->mtp);
  int64_t room = o->shift ? INT64_MAX : s->m->ctx - s->n;
  t->max_tokens = o->max_tokens < 0 || o->max_tokens > room ? room : o->max_tokens;
  return set_forced(t, room, err);
}

fm_status fm_task_new(fm_task **out, fm_session *s, const int32_t *ids, int64_t n,
                      const fm_generate_options *o, fm_error *err) {
  fm_generate_options dflt = fm_generate_options_default();
  if (!o) o = &dflt;
  if (s->task) return fm_fail(err, FM_EINVAL, "the session has a running task");
  fm_sched_leave(s->m, s);                         // what the last one left behind
  TRY(check_prompt(s->m, ids, n, o, err));
  TRY(check_options(o, s->m, err));
  fm_task *t = fm_zalloc(sizeof *t);
  if (!t) return fm_no_memory(err, sizeof *t);
  t->s = s;
  s->refs++;
  fm_status status = prepare(t, ids, n, o, err);
  if (status != FM_OK) {
    t->finish = FM_FAILED;
    fm_task_free(t);
    return status;
  }
  s->task = t;
  link_in(t);
  *out = t;
  return FM_OK;
}

void fm_task_end(fm_task *t, fm_finish f) {
  if (t->finish) return;
  t->finish = f;
  t->s->task = NULL;
  unlink_from(t);
}

void fm_task_fail(fm_task *t, const fm_error *err) {
  t->err = *err;
  fm_task_end(t, FM_FAILED);
}

void fm_task_fail_own(fm_task *t) {
  fm_error err = t->err;
  fm_task_fail(t, &err);
}

void fm_task_cancel(fm_task *t) {
  if (t->finish) return;
  fm_sched_leave(t->s->m, t->s);
  fm_task_end(t, FM_CANCELLED);
}

void fm_task_free(fm_task *t) {
  if (!t) return;
  fm_task_cancel(t);
  fm_sched_leave(t->s->m, t->s);                   // a task that is over may still have a pass under way
  free_options(&t->o);
  fm_guide_free(t->guide);
  fm_free(t->out);
  fm_free(t->top);
  fm_free(t->text);
  fm_session_free(t->s);
  fm_free(t);
}

/* Behind an id that was sampled, forced ones go on as if it were pending: in the passes of those who decode. */
static bool has_pending(const fm_task *t) {
  const fm_session *s = t->s;
  return s->n > t->n_prompt || (t->o.n_forced && s->roles[s->n - 1] == FM_GENERATED);
}

int64_t fm_task_goal(const fm_task *t) { return has_pending(t) ? t->s->n - 1 : t->s->n; }

int64_t fm_task_forced(const fm_task *t) { return t->o.n_forced ? t->o.n_forced - t->usage.completion : 0; }

bool fm_task_prefilling(const fm_task *t) { return t->s->kv.len < fm_task_goal(t); }

double fm_task_weight(const fm_task *t) { return exp2(t->o.priority); }

/* ---- sampled ids ------------------------------------------------------------------------------ */

static bool is_stop_id(const fm_task *t, int32_t id) {
  const fm_config *g = &t->s->m->cfg;
  for (int32_t i = 0; i < t->o.n_stop_ids; i++)
    if (t->o.stop_ids[i] == id) return true;
  for (int i = 0; (!t->o.ignore_eos || t->guide) && i < g->n_eos; i++)
    if (g->eos_token_id[i] == id) return true;
  return false;
}

/* Looks for a stop string that ends in the bytes from `from` on; cuts the text before the earliest one. */
static bool stop_string(fm_task *t, int64_t from) {
  int64_t best = -1;
  for (int32_t i = 0; i < t->o.n_stop; i++) {
    int64_t len = (int64_t)strlen(t->o.stop[i]), start = from - len + 1;
    for (int64_t at = start > 0 ? start : 0; at + len <= t->n_text; at++)
      if (memcmp(t->text + at, t->o.stop[i], (size_t)len) == 0) {
        if (best < 0 || at < best) best = at;
        break;
      }
  }
  if (best >= 0) t->n_text = best;
  return best >= 0;
}

/* Bytes at the end that may still become a stop string, or half a character. */
static int64_t held_back(const fm_task *t) {
  int64_t held = (int64_t)fm_utf8_open(t->text, (size_t)t->n_text);
  for (int32_t i = 0; i < t->o.n_stop; i++) {
    int64_t len = (int64_t)strlen(t->o.stop[i]) - 1;
    if (len > t->n_text) len = t->n_text;
    while (len > held && memcmp(t->text + t->n_text - len, t->o.stop[i], (size_t)len) != 0) len--;
    if (len > held) held = len;
  }
  return held;
}

static fm_status keep_top(fm_task *t, const float *logits) {
  if (t->o.logprobs <= 0) return FM_OK;
  TRY(fm_grow(&t->top, &t->cap_top, t->n_top + t->o.logprobs, sizeof *t->top, &t->err));
  fm_sampler_top(t->s->m->sampler, logits, t->o.logprobs, t->top + t->n_top);
  t->n_top += t->o.logprobs;
  return FM_OK;
}

fm_status fm_task_take(fm_task *t, const fm_draw *d, const float *logits, bool *stopped) {
  fm_model *m = t->s->m;
  TRY(fm_grow(&t->out, &t->cap_out, t->n_out + 1, sizeof *t->out, &t->err));
  fm_sampled r = { .id = d->id, .logprob = d->logprob, .filtered = d->logprob_filtered, .top = t->n_top };
  TRY(keep_top(t, logits));
  int64_t from = t->n_text;
  fm_finish finish = FM_RUNNING;
  if (!t->o.n_forced && is_stop_id(t, d->id)) {
    finish = FM_STOP;
  } else if (m->tok) {
    TRY(fm_tokenizer_decode(m->tok, &d->id, 1, m->cfg.vocab_size, &t->text, &t->n_text, &t->cap_text, &t->err));
    if (!t->o.n_forced && stop_string(t, from)) finish = FM_STOP;
  }
  if (t->guide) TRY(fm_guide_take(t->guide, FM_REAL, d->id, &t->err));
  TRY(fm_session_append(t->s, &d->id, 1, FM_GENERATED, &t->err));
  t->usage.completion++;
  if (!t->o.n_forced) m->stats.generated_tokens++;
  bool full = t->usage.completion >= t->max_tokens;
  // a document is over where nothing can follow, and fine where it happens to be complete as the room ends
  if (!finish && t->guide && (fm_guide_over(t->guide, FM_REAL) || (full && fm_guide_complete(t->guide, FM_REAL)))) finish = FM_STOP;
  if (!finish && full) finish = FM_LENGTH;
  r.text_end = t->n_text - (finish ? 0 : held_back(t));
  r.last = finish != FM_RUNNING;
  t->out[t->n_out++] = r;
  if (finish) fm_task_end(t, finish);
  *stopped = finish != FM_RUNNING;
  return FM_OK;
}

/* ---- for the caller ----------------------------------------------------------------------------- */

bool fm_task_next(fm_task *t, fm_token *out) {
  if (t->read == t->n_out) return false;
  const fm_sampled *r = &t->out[t->read++];
  // a cancelled task gives what it had held back with its last token
  bool cut_off = t->read == t->n_out && t->finish == FM_CANCELLED;
  int64_t end = cut_off ? t->n_text : r->text_end;
  if (end < t->text_done) end = t->text_done;
  *out = (fm_token){ .id = r->id, .logprob = r->logprob, .logprob_filtered = r->filtered,
                     .top = t->o.logprobs > 0 ? t->top + r->top : NULL,
                     .n_top = t->o.logprobs > 0 ? t->o.logprobs : 0,
                     .text = t->text ? t->text + t->text_done : "", .len = (size_t)(end - t->text_done),
                     .last = r->last || cut_off };
  t->text_done = end;
  return true;
}

fm_finish fm_task_finish(const fm_task *t, fm_error *err) {
  if (err && t->finish == FM_FAILED) *err = t->err;
  return t->finish;
}

fm_usage fm_task_usage(const fm_task *t) {
  fm_usage u = t->usage;
  u.exact = !t->s->inexact;
  return u;
}
