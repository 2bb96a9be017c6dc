/*
** grammar.c - compiled grammars by their text, and guides.
*/
#include "run/grammar.h"

#include <math.h>
#include <string.h>

#include "run/close.h"

enum {
  KEPT = 8,                              /* grammars that stay compiled when no guide uses them */
  TRIES = 8,                             /* draws that would not fit before the shortest close is taken */
  JSON_NESTING = 128, MAX_NESTING = 4096 /* rules inside rules before it is taken: readers of JSON have limits as well */
};

typedef struct grammar {
  struct grammar *next;
  char *text; bool schema;
  int refs;
  fm_rules rules;
  fm_masks *masks;
} grammar;

struct fm_grammars { fm_trie *trie; grammar *first; };          /* used last comes first */

typedef struct head {
  fm_places now;
  bool waiting;                          /* for the id behind which the grammar begins */
  int32_t *plan; int64_t n_plan, cap_plan, done;                /* tokens of the close that was taken */
} head;

struct fm_guide {
  const fm_trie *trie;
  grammar *g;
  fm_machine x;
  head head[2];
  fm_places then, tmp;                   /* where the drawn id leads; scratch of moving on */
  int32_t after, *ends, n_ends;
  int64_t shortest;                      /* tokens of the shortest document; FM_NEVER: too long to plan */
  uint64_t *bits, *anything;             /* masks: of this draw; of all but ends and banned ids */
  uint64_t *banned;                      /* NULL: no id is */
  fm_close close;
};

/* ---- compiled grammars ----------------------------------------------------------------------------- */

fm_status fm_grammars_new(fm_grammars **out, const fm_tokenizer *tok, int64_t limit, fm_error *err) {
  fm_grammars *gs = fm_zalloc(sizeof *gs);
  if (!gs) return fm_no_memory(err, sizeof *gs);
  fm_status status = fm_trie_new(&gs->trie, tok, limit, err);
  if (status == FM_OK) *out = gs;
  else fm_free(gs);
  return status;
}

static void drop(grammar *g) {
  if (!g || --g->refs > 0) return;
  fm_masks_free(g->masks);
  fm_rules_free(&g->rules);
  fm_free(g->text);
  fm_free(g);
}

void fm_grammars_free(fm_grammars *gs) {
  if (!gs) return;
  for (grammar *g = gs->first, *next; g; g = next) {
    next = g->next;
    drop(g);
  }
  fm_trie_free(gs->trie);
  fm_free(gs);
}

static fm_status compile(grammar *g, const fm_trie *trie, const char *text, fm_error *err) {
  size_t len = strlen(text);
  g->text = fm_strndup(text, len);
  if (!g->text) return fm_no_memory(err, (int64_t)len);
  TRY(fm_rules_init(&g->rules, err));
  TRY(g->schema ? fm_schema_read(&g->rules, text, len, err) : fm_gbnf_read(&g->rules, text, len, err));
  return fm_masks_new(&g->masks, &g->rules, trie, err);
}

/* Puts a grammar in front and lets the last one go when there are too many. */
static void put_first(fm_grammars *gs, grammar *g) {
  int n = 1;
  g->next = gs->first;
  gs->first = g;
  for (grammar *at = g; at->next; at = at->next)
    if (++n > KEPT) {
      drop(at->next);
      at->next = NULL;
      return;
    }
}

/* The grammar of a text, with one count more. */
static fm_status get(fm_grammars *gs, grammar **out, const char *text, bool schema, fm_error *err) {
  for (grammar **at = &gs->first; *at; at = &(*at)->next) {
    grammar *g = *at;
    if (g->schema != schema || strcmp(g->text, text) != 0) continue;
    *at = g->next;
    put_first(gs, g);
    g->refs++;
    *out = g;
    return FM_OK;
  }
  grammar *g = fm_zalloc(sizeof *g);
  if (!g) return fm_no_memory(err, sizeof *g);
  g->schema = schema;
  g->refs = 1;
  fm_status status = compile(g, gs->trie, text, err);
  if (status != FM_OK) {
    drop(g);
    return status;
  }
  put_first(gs, g);
  g->refs++;
  *out = g;
  return FM_OK;
}

/* ---- life of a guide ------------------------------------------------------------------------------------- */

static bool is_end(const fm_guide *u, int32_t id) {
  for (int32_t i = 0; i < u->n_ends; i++)
    if (u->ends[i] == id) return true;
  return false;
}

static void set_bit(uint64_t *bits, int32_t id) { bits[id >> 6] |= 1ull << (id & 63); }
static void clear_bit(uint64_t *bits, int32_t id) { bits[id >> 6] &= ~(1ull << (id & 63)); }

static int64_t n_words(const fm_guide *u) { return (u->trie->n_ids + 63) / 64; }

static fm_status copy_ends(fm_guide *u, const fm_guide_options *o, fm_error *err) {
  u->ends = fm_array(o->n_ends, sizeof *u->ends);
  if (!u->ends) return fm_no_memory(err, o->n_ends * (int64_t)sizeof *u->ends);
  for (int32_t i = 0; i < o->n_ends; i++)
    if (o->ends[i] >= 0 && o->ends[i] < u->trie->n_ids) u->ends[u->n_ends++] = o->ends[i];
  u->bits = fm_array(n_words(u), 8);
  u->anything = fm_array(n_words(u), 8);
  if (!u->bits || !u->anything) return fm_no_memory(err, n_words(u) * 16);
  for (int32_t id = 0; id < u->trie->n_ids; id++)
    if (!is_end(u, id)) set_bit(u->anything, id);
  return FM_OK;
}

static fm_status note_banned(fm_guide *u, const fm_guide_options *o, fm_error *err) {
  for (int32_t i = 0; i < o->n_bias; i++) {
    if (o->bias[i].bias > -INFINITY || o->bias[i].id >= u->trie->n_ids) continue;
    if (!u->banned) u->banned = fm_array(n_words(u), 8);
    if (!u->banned) return fm_no_memory(err, n_words(u) * 8);
    set_bit(u->banned, o->bias[i].id);
    clear_bit(u->anything, o->bias[i].id);
  }
  return FM_OK;
}

/* How many tokens the shortest document from `now` takes; FM_NEVER: too many to plan. */
static fm_status tokens_left(fm_guide *u, const fm_places *now, int64_t *out, fm_error *err) {
  fm_status status = fm_close_plan(&u->close, &u->x, now, u->trie, u->banned, err);
  *out = status == FM_OK ? u->close.n : FM_NEVER;
  return status == FM_ELIMIT ? FM_OK : status;
}

static fm_status begin(fm_guide *u, fm_grammars *gs, const fm_guide_options *o, fm_error *err) {
  head *h = &u->head[FM_REAL];
  TRY(get(gs, &u->g, o->schema ? o->schema : o->grammar, o->schema != NULL, err));
  TRY(copy_ends(u, o, err));
  TRY(note_banned(u, o, err));
  TRY(fm_machine_init(&u->x, &u->g->rules, err));
  h->waiting = o->after >= 0;
  u->after = o->after;
  if (fm_machine_start(&u->x, &h->now, h->waiting ? u->g->rules.loose : u->g->rules.root) != FM_OK)
    return fm_fail(err, u->x.err.code, "%s", u->x.err.message);
  return tokens_left(u, &h->now, &u->shortest, err);
}

fm_status fm_guide_new(fm_guide **out, fm_grammars *gs, const fm_guide_options *o, fm_error *err) {
  if (!o->grammar == !o->schema) return fm_fail(err, FM_EINVAL, "a reply follows either a grammar or a schema");
  if (o->after >= gs->trie->n_ids) return fm_fail(err, FM_EINVAL, "grammar_after is %d, outside the vocabulary", o->after);
  fm_guide *u = fm_zalloc(sizeof *u);
  if (!u) return fm_no_memory(err, sizeof *u);
  u->trie = gs->trie;
  fm_status status = begin(u, gs, o, err);
  if (status == FM_OK) *out = u;
  else fm_guide_free(u);
  return status;
}

void fm_guide_free(fm_guide *u) {
  if (!u) return;
  for (int i = 0; i < 2; i++) {
    fm_free(u->head[i].now.at);
    fm_free(u->head[i].plan);
  }
  fm_free(u->then.at);
  fm_free(u->tmp.at);
  fm_free(u->ends);
  fm_free(u->bits);
  fm_free(u->anything);
  fm_free(u->banned);
  fm_close_free(&u->close);
  fm_machine_free(&u->x);
  drop(u->g);
  fm_free(u);
}

static fm_status copy_plan(head *h, const int32_t *id, int64_t n, fm_error *err) {
  TRY(fm_grow(&h->plan, &h->cap_plan, n, sizeof *h->plan, err));
  if (n) memcpy(h->plan, id, (size_t)n * sizeof *id);
  h->n_plan = n;
  return FM_OK;
}

fm_status fm_guide_ahead(fm_guide *u, fm_error *err) {
  const head *from = &u->head[FM_REAL];
  head *to = &u->head[FM_AHEAD];
  TRY(fm_places_copy(&to->now, &from->now, err));
  to->waiting = from->waiting;
  to->done = from->done;
  return copy_plan(to, from->plan, from->n_plan, err);
}

/* ---- moving on ---------------------------------------------------------------------------------------------- */

/* u->then: the places behind a token. */
static fm_status move(fm_guide *u, const fm_places *from, int32_t id, fm_error *err) {
  size_t len;
  const char *bytes = fm_tokenizer_bytes(u->trie->tok, id, &len);
  fm_status status = fm_places_copy(&u->then, from, &u->x.err);
  u->x.work = 0;
  for (size_t i = 0; i < len && status == FM_OK; i++) {
    fm_places swap = u->then;
    u->then = u->tmp;
    u->tmp = swap;
    status = fm_machine_step(&u->x, &u->tmp, (uint8_t)bytes[i], &u->then);
  }
  if (status != FM_OK && err) *err = u->x.err;
  return status;
}

fm_status fm_guide_take(fm_guide *u, fm_head which, int32_t id, fm_error *err) {
  head *h = &u->head[which];
  if (h->waiting) {
    h->waiting = id != u->after;
    return FM_OK;
  }
  if (h->done < h->n_plan) h->done++;
  if (is_end(u, id)) return FM_OK;
  TRY(move(u, &h->now, id, err));
  if (!u->then.n) return fm_fail(err, FM_EINVAL, "id %d does not follow the grammar", id);
  fm_places swap = h->now;
  h->now = u->then;
  u->then = swap;
  return FM_OK;
}

bool fm_guide_complete(const fm_guide *u, fm_head which) {
  return !u->head[which].waiting && fm_places_end(&u->head[which].now);
}

bool fm_guide_over(const fm_guide *u, fm_head which) {
  return fm_guide_complete(u, which) && u->head[which].now.n == 1;
}

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

static int32_t nesting(const fm_guide *u, const fm_places *p) {
  int32_t depth = 0;
  for (int64_t i = 0; i < p->n; i++)
    if (u->x.frame[p->at[i].stack].depth > depth) depth = u->x.frame[p->at[i].stack].depth;
  return depth;
}

/* Whether the document can be ended within `left` tokens of `now`. A token a byte is always possible, unless some are banned. */
static fm_status fits(fm_guide *u, const fm_places *now, int64_t left, bool *out, fm_error *err) {
  int64_t n = fm_places_least(&u->x, now, NULL);
  if (n > left || u->banned) TRY(tokens_left(u, now, &n, err));
  *out = n <= left;
  return FM_OK;
}

/* Only this id may come. */
static void force(fm_guide *u, int32_t id) {
  memset(u->bits, 0, (size_t)n_words(u) * 8);
  set_bit(u->bits, id);
}

static void strike_banned(fm_guide *u) {
  for (int64_t i = 0; u->banned && i < n_words(u); i++) u->bits[i] &= ~u->banned[i];
}

static fm_status allow(fm_guide *u, const head *h, fm_error *err) {
  TRY(fm_masks_fill(u->g->masks, &u->x, &h->now, u->bits, err));
  bool complete = fm_places_end(&h->now);
  for (int32_t i = 0; i < u->n_ends; i++) {
    if (complete) set_bit(u->bits, u->ends[i]);
    else clear_bit(u->bits, u->ends[i]);           // an end that is a word as well
  }
  strike_banned(u);
  return FM_OK;
}

/* From here on the head follows the shortest close. */
static fm_status take_close(fm_guide *u, head *h, fm_error *err) {
  TRY(fm_close_plan(&u->close, &u->x, &h->now, u->trie, u->banned, err));
  h->done = 0;
  TRY(copy_plan(h, u->close.id, u->close.n, err));
  if (h->n_plan) force(u, h->plan[0]);
  else memset(u->bits, 0, (size_t)n_words(u) * 8);
  for (int32_t i = 0; i < u->n_ends && !h->n_plan; i++) set_bit(u->bits, u->ends[i]);
  strike_banned(u);
  return FM_OK;
}

static fm_status nothing_left(const fm_guide *u, fm_error *err) {
  return fm_fail(err, FM_ELIMIT, u->banned ? "no id is left to draw: logit_bias bans all that the grammar allows here"
                                           : "the document can neither end nor go on: the model has no end token");
}

/* What one draw needs, for the functions below. */
typedef struct drawing {
  fm_sampler *s; const fm_generate_options *o; const float *logits; int32_t free; fm_history h; bool want_logprob;
} drawing;

static fm_draw draw(const drawing *d, const uint64_t *mask) {
  bool allowed = d->free >= 0 && mask[d->free / 64] >> d->free % 64 & 1;
  if (allowed || !d->logits)
    return (fm_draw){ .id = allowed ? d->free : FM_UNDECIDED, .logprob = NAN, .logprob_filtered = NAN };
  return fm_sampler_draw(d->s, d->o, d->logits, d->h, mask, d->want_logprob);
}

/* Before the grammar begins: anything but the end, until there is room only for the document. */
static fm_draw draw_waiting(fm_guide *u, const drawing *d, int64_t left) {
  if (left != u->shortest + 1) return draw(d, u->anything);
  force(u, u->after);
  return draw(d, u->bits);
}

/* Under the mask; ids after which the document could not be ended in time are taken out and the draw is made again: with noise
   that belongs to ids this is the draw among the others. */
static fm_status draw_inside(fm_guide *u, head *h, const drawing *d, int64_t left, fm_draw *out, fm_error *err) {
  bool steered, good;
  TRY(allow(u, h, err));
  TRY(fits(u, &h->now, left, &steered, err));
  for (int tries = 0;; tries++) {
    *out = draw(d, u->bits);
    if (out->id == FM_UNDECIDED) return FM_OK;
    if (out->id < 0) break;
    if (is_end(u, out->id)) return FM_OK;
    TRY(move(u, &h->now, out->id, err));
    good = nesting(u, &u->then) <= (u->g->schema ? JSON_NESTING : MAX_NESTING);
    if (steered && good) TRY(fits(u, &u->then, left - 1, &good, err));
    if (good) return FM_OK;
    if (tries == TRIES) break;
    clear_bit(u->bits, out->id);
  }
  fm_status status = take_close(u, h, err);
  if (status == FM_OK) *out = draw(d, u->bits);
  return status == FM_ELIMIT && u->banned ? nothing_left(u, err) : status;
}

fm_status fm_guide_draw(fm_guide *u, fm_head which, fm_sampler *s, const fm_generate_options *o, const float *logits, int32_t free,
                        fm_history hist, int64_t left, bool want_logprob, fm_draw *out, fm_error *err) {
  head *h = &u->head[which];
  drawing d = { s, o, logits, free, hist, want_logprob };
  if (h->waiting) {
    *out = draw_waiting(u, &d, left);
  } else if (h->done < h->n_plan) {
    force(u, h->plan[h->done]);
    *out = draw(&d, u->bits);
  } else {
    TRY(draw_inside(u, h, &d, left, out, err));
  }
  return out->id == -1 ? nothing_left(u, err) : FM_OK;
}

fm_status fm_guide_mask(fm_guide *u, const uint64_t **bits, fm_error *err) {
  const head *h = &u->head[FM_REAL];
  *bits = h->waiting ? u->anything : u->bits;
  return h->waiting ? FM_OK : allow(u, h, err);
}
