/*
** rules.c - making nodes of a grammar, and checking the whole.
*/
#include "run/rules.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NODES = 1 << 20 };            /* 20 MiB: what needs more is no grammar that anybody wrote */

int32_t fm_rules_refuse(fm_rules *r, fm_status code, const char *fmt, ...) {
  char message[sizeof r->err.message];
  va_list ap;
  if (r->status != FM_OK) return FM_FAIL;
  va_start(ap, fmt);
  vsnprintf(message, sizeof message, fmt, ap);
  va_end(ap);
  r->status = fm_fail(&r->err, code, "%s", message);
  return FM_FAIL;
}

/* Keeps an error that was filled into r->err by others. */
static bool fine(fm_rules *r, fm_status status) {
  if (status != FM_OK && r->status == FM_OK) r->status = status;
  return status == FM_OK;
}

/* ---- nodes ------------------------------------------------------------------------------------ */

static uint64_t hash_node(const fm_node *n) {
  uint64_t h = (uint64_t)n->kind;
  const int32_t part[] = { n->next, n->other, n->min, n->max };
  for (int i = 0; i < 4; i++) h = (h ^ (uint32_t)part[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  return h;
}

static bool same(const fm_node *a, const fm_node *b) {
  return a->kind == b->kind && a->next == b->next && a->other == b->other && a->min == b->min && a->max == b->max;
}

/* The slot of a node like this one: its own, or the empty one where it would go. */
static int32_t *find(const fm_rules *r, const fm_node *n) {
  uint64_t mask = (uint64_t)r->n_slots - 1, i = hash_node(n) & mask;
  while (r->slot[i] && !same(&r->node[r->slot[i]], n)) i = (i + 1) & mask;
  return &r->slot[i];
}

static bool grow_slots(fm_rules *r) {
  if (2 * (r->n + 1) <= r->n_slots) return true;
  int64_t n = r->n_slots ? 2 * r->n_slots : 256;
  int32_t *slot = fm_array(n, sizeof *slot);
  if (!slot) return fine(r, fm_no_memory(&r->err, n * (int64_t)sizeof *slot));
  fm_free(r->slot);
  r->slot = slot;
  r->n_slots = n;
  for (int32_t i = 1; i < r->n; i++) *find(r, &r->node[i]) = i;
  return true;
}

static int32_t make(fm_rules *r, fm_node n) {
  if (r->status != FM_OK) return FM_FAIL;
  if (r->n >= MAX_NODES)
    return fm_rules_refuse(r, FM_EUNSUPPORTED, "the grammar is too large: more than %d nodes", MAX_NODES);
  if (!fine(r, fm_grow(&r->node, &r->cap, r->n + 1, sizeof n, &r->err)) || !grow_slots(r)) return FM_FAIL;
  int32_t *slot = find(r, &n);
  if (*slot) return *slot;
  r->node[r->n] = n;
  return *slot = (int32_t)r->n++;
}

fm_status fm_rules_init(fm_rules *r, fm_error *err) {
  *r = (fm_rules){ .status = FM_OK };
  int64_t cap = 0;
  TRY(fm_grow(&r->node, &cap, 64, sizeof *r->node, err));
  r->cap = cap;
  r->node[FM_END] = (fm_node){ .kind = FM_END };
  r->node[FM_FAIL] = (fm_node){ .kind = FM_FAIL };
  r->n = 2;
  return FM_OK;
}

void fm_rules_free(fm_rules *r) {
  for (int64_t i = 0; i < r->n_rules; i++) fm_free(r->rule[i].name);
  fm_free(r->rule);
  fm_free(r->node);
  fm_free(r->slot);
  fm_free(r->least);
  *r = (fm_rules){ .status = FM_OK };
}

int32_t fm_rules_add(fm_rules *r, const char *name, size_t len) {
  if (r->status != FM_OK) return 0;
  if (!fine(r, fm_grow(&r->rule, &r->cap_rules, r->n_rules + 1, sizeof *r->rule, &r->err))) return 0;
  char *copy = fm_strndup(name, len);
  if (!copy) {
    fine(r, fm_no_memory(&r->err, (int64_t)len));
    return 0;
  }
  r->rule[r->n_rules] = (fm_rule){ copy, -1 };
  return (int32_t)r->n_rules++;
}

int32_t fm_rules_bytes(fm_rules *r, uint8_t lo, uint8_t hi, int32_t next) {
  if (next == FM_FAIL) return FM_FAIL;
  return make(r, (fm_node){ FM_BYTES, next, 0, lo, hi });
}

int32_t fm_rules_split(fm_rules *r, int32_t a, int32_t b) {
  if (a == FM_FAIL || a == b) return b;
  if (b == FM_FAIL) return a;
  return make(r, (fm_node){ FM_SPLIT, a, b, 0, 0 });
}

int32_t fm_rules_call(fm_rules *r, int32_t rule, int32_t next) {
  if (next == FM_FAIL) return FM_FAIL;
  return make(r, (fm_node){ FM_CALL, next, rule, 0, 0 });
}

int32_t fm_rules_loop(fm_rules *r, int32_t body, int64_t min, int64_t max, int32_t next) {
  if (max >= FM_MANY) max = FM_MANY;
  if (min >= FM_MANY || min < 0 || max < min)
    return fm_rules_refuse(r, FM_EUNSUPPORTED, "a repetition of %lld to %lld times", (long long)min, (long long)max);
  if (next == FM_FAIL || (body == FM_FAIL && min > 0)) return FM_FAIL;
  if (max == 0 || body == FM_FAIL || body == FM_END) return next;
  return make(r, (fm_node){ FM_LOOP, next, body, (int32_t)min, (int32_t)max });
}

int32_t fm_rules_literal(fm_rules *r, const char *bytes, size_t len, int32_t next) {
  while (len-- > 0) next = fm_rules_bytes(r, (uint8_t)bytes[len], (uint8_t)bytes[len], next);
  return next;
}

static int by_bytes(const void *a, const void *b) {
  const fm_word *x = a, *y = b;
  int c = memcmp(x->s, y->s, x->len < y->len ? x->len : y->len);
  return c ? c : (x->len > y->len) - (x->len < y->len);
}

/* Sorted words [from, to) that agree in their first `at` bytes. Recursion is as deep as the longest word. */
static int32_t branch(fm_rules *r, const fm_word *word, int64_t from, int64_t to, size_t at, int32_t next) {
  int32_t node = FM_FAIL;
  for (int64_t i = from, j; i < to; i = j) {
    if (word[i].len == at) {                       // shorter ones come first
      node = next;
      j = i + 1;
      continue;
    }
    uint8_t byte = (uint8_t)word[i].s[at];
    for (j = i + 1; j < to && (uint8_t)word[j].s[at] == byte;) j++;
    int32_t rest = j == i + 1 ? fm_rules_literal(r, word[i].s + at + 1, word[i].len - at - 1, next)
                              : branch(r, word, i, j, at + 1, next);
    node = fm_rules_split(r, fm_rules_bytes(r, byte, byte, rest), node);
  }
  return node;
}

int32_t fm_rules_words(fm_rules *r, fm_word *word, int64_t n, int32_t next) {
  int64_t kept = 0;
  qsort(word, (size_t)n, sizeof *word, by_bytes);
  for (int64_t i = 0; i < n; i++) {
    if (i && by_bytes(&word[i], &word[i - 1]) == 0) continue;
    if (word[i].len > 4096)                        // only words with a common beginning recurse, but those deeply
      return fm_rules_refuse(r, FM_EUNSUPPORTED, "a word of %zu bytes, at most 4096 are taken", word[i].len);
    word[kept++] = word[i];
  }
  return branch(r, word, 0, kept, 0, next);
}

/* ---- code points -------------------------------------------------------------------------------- */

size_t fm_utf8_read(const char *s, size_t len, uint32_t *point) {
  static const struct { uint8_t mask, lead; uint32_t least; } form[] = {
    { 0x80, 0x00, 0 }, { 0xE0, 0xC0, 0x80 }, { 0xF0, 0xE0, 0x800 }, { 0xF8, 0xF0, 0x10000 } };
  uint8_t b = (uint8_t)s[0];
  for (size_t n = 0; n < 4 && n < len; n++) {
    if ((b & form[n].mask) != form[n].lead) continue;
    uint32_t c = b & (uint8_t)~form[n].mask;
    for (size_t i = 1; i <= n; i++) {
      if (((uint8_t)s[i] & 0xC0) != 0x80) return 0;
      c = c << 6 | ((uint8_t)s[i] & 0x3F);
    }
    *point = c;
    return c < form[n].least || c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF) ? 0 : n + 1;
  }
  return 0;
}

static int put_utf8(uint32_t c, uint8_t *b) {
  if (c < 0x80) return b[0] = (uint8_t)c, 1;
  int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = n - 1; i > 0; i--, c >>= 6) b[i] = (uint8_t)(0x80 | (c & 0x3F));
  b[0] = (uint8_t)((0xF00 >> n & 0xFF) | c);
  return n;
}

/*
** Code points lo .. hi, which have equally many bytes: cut where a trailing group of six bits is neither all zeros below nor
** all ones above, until every byte's range is independent of the others.
*/
static int32_t byte_ranges(fm_rules *r, uint32_t lo, uint32_t hi, int32_t next) {
  uint8_t a[4], b[4];
  int n = put_utf8(lo, a);
  for (int i = 1; i < n; i++) {
    uint32_t low = (1u << 6 * i) - 1;
    if (lo >> 6 * i == hi >> 6 * i) continue;
    if (lo & low) return fm_rules_split(r, byte_ranges(r, lo, lo | low, next), byte_ranges(r, (lo | low) + 1, hi, next));
    if ((hi & low) != low)
      return fm_rules_split(r, byte_ranges(r, lo, (hi & ~low) - 1, next), byte_ranges(r, hi & ~low, hi, next));
  }
  put_utf8(hi, b);
  for (int i = n - 1; i >= 0; i--) next = fm_rules_bytes(r, a[i], b[i], next);
  return next;
}

/* Cuts a range at the lengths of UTF-8, and leaves surrogates out. */
static int32_t one_range(fm_rules *r, fm_range w, int32_t next) {
  static const fm_range part[] = { { 0, 0x7F }, { 0x80, 0x7FF }, { 0x800, 0xD7FF }, { 0xE000, 0xFFFF },
                                   { 0x10000, 0x10FFFF } };
  int32_t node = FM_FAIL;
  for (int i = 4; i >= 0; i--) {
    uint32_t lo = w.lo > part[i].lo ? w.lo : part[i].lo, hi = w.hi < part[i].hi ? w.hi : part[i].hi;
    if (lo <= hi) node = fm_rules_split(r, byte_ranges(r, lo, hi, next), node);
  }
  return node;
}

static int by_start(const void *a, const void *b) {
  const fm_range *x = a, *y = b;
  return (x->lo > y->lo) - (x->lo < y->lo);
}

/* Sorts and joins; returns how many are left. */
static int64_t in_order(fm_range *w, int64_t n) {
  int64_t kept = 0;
  qsort(w, (size_t)n, sizeof *w, by_start);
  for (int64_t i = 0; i < n; i++) {
    if (kept && w[i].lo <= w[kept - 1].hi + 1) {
      if (w[i].hi > w[kept - 1].hi) w[kept - 1].hi = w[i].hi;
    } else {
      w[kept++] = w[i];
    }
  }
  return kept;
}

int32_t fm_rules_class(fm_rules *r, fm_range *range, int64_t n, int32_t next) {
  int32_t node = FM_FAIL;
  for (int64_t i = in_order(range, n); i-- > 0;) node = fm_rules_split(r, one_range(r, range[i], next), node);
  return node;
}

int32_t fm_rules_class_not(fm_rules *r, fm_range *range, int64_t n, int32_t next) {
  int32_t node = FM_FAIL;
  uint32_t above = 0x10FFFF;                       // what is still to be given, from the top
  for (int64_t i = in_order(range, n); i-- > 0;) {
    if (range[i].hi < above) node = fm_rules_split(r, one_range(r, (fm_range){ range[i].hi + 1, above }, next), node);
    if (range[i].lo == 0) return node;
    above = range[i].lo - 1;
  }
  return fm_rules_split(r, one_range(r, (fm_range){ 0, above }, next), node);
}

/* ---- the whole ------------------------------------------------------------------------------------ */

/* Never at all; FM_NEVER itself stands for what is only too long. */
#define ENDLESS (FM_NEVER + 1)

static int64_t sum(int64_t a, int64_t b) {
  if (a >= ENDLESS || b >= ENDLESS) return ENDLESS;
  return a + b < FM_NEVER ? a + b : FM_NEVER;
}

static int64_t times(int64_t a, int64_t n) {
  if (n == 0 || a >= ENDLESS) return n ? ENDLESS : 0;
  return a < FM_NEVER / n ? a * n : FM_NEVER;
}

static int64_t least_of(const fm_rules *r, const fm_node *n) {
  const int64_t *least = r->least;
  switch (n->kind) {
    case FM_END: return 0;
    case FM_FAIL: return ENDLESS;
    case FM_BYTES: return sum(1, least[n->next]);
    case FM_SPLIT: return least[n->next] < least[n->other] ? least[n->next] : least[n->other];
    case FM_CALL: return sum(least[r->rule[n->other].start], least[n->next]);
    default: return sum(times(least[n->other], n->min), least[n->next]);
  }
}

/* The k-th node that n's length depends on; -1: no more. */
static int32_t leans_on(const fm_rules *r, const fm_node *n, int k) {
  if (n->kind == FM_END || n->kind == FM_FAIL || k > 1) return -1;
  if (k == 0) return n->next;
  return n->kind == FM_BYTES ? -1 : n->kind == FM_CALL ? r->rule[n->other].start : n->other;
}

/* Who leans on whom, the other way round: on node i who[from[i + 1]] .. who[from[i + 2] - 1]. */
typedef struct leaning { int64_t *from; int32_t *who, *queue; bool *queued; } leaning;

static void turn_round(const fm_rules *r, leaning *l) {
  for (int32_t i = 0; i < r->n; i++)
    for (int32_t k = 0, on; (on = leans_on(r, &r->node[i], k)) >= 0; k++) l->from[on + 1]++;
  for (int64_t i = 0; i <= r->n; i++) l->from[i + 1] += l->from[i];
  for (int32_t i = (int32_t)r->n - 1; i >= 0; i--)           // fills each stretch from its end, which moves it to its place
    for (int32_t k = 0, on; (on = leans_on(r, &r->node[i], k)) >= 0; k++) l->who[--l->from[on + 1]] = i;
}

/* Shortest ways, from "never" downwards: each length that falls has those looked at again that lean on it. */
static void find_least(fm_rules *r, leaning *l) {
  int64_t n = r->n, head = 0, waiting = 0;
  for (int64_t i = 0; i < n; i++) r->least[i] = ENDLESS;
  for (int32_t i = 0; i < n; i++, waiting++) l->queue[i] = i, l->queued[i] = true;
  for (; waiting; waiting--, head = (head + 1) % n) {
    int32_t i = l->queue[head];
    int64_t least = least_of(r, &r->node[i]);
    l->queued[i] = false;
    if (least >= r->least[i]) continue;
    r->least[i] = least;
    for (int64_t j = l->from[i + 1]; j < l->from[i + 2]; j++) {
      int32_t who = l->who[j];
      if (l->queued[who]) continue;
      l->queue[(head + waiting++) % n] = who;
      l->queued[who] = true;
    }
  }
}

static fm_status fill_least(fm_rules *r, fm_error *err) {
  int64_t n = r->n;
  leaning l = { fm_array(n + 2, sizeof *l.from), fm_array(2 * n, sizeof *l.who), fm_array(n, sizeof *l.queue),
                fm_array(n, sizeof *l.queued) };
  r->least = fm_array(n, sizeof *r->least);
  bool fine = l.from && l.who && l.queue && l.queued && r->least;
  if (fine) {
    turn_round(r, &l);
    find_least(r, &l);
  }
  fm_free(l.from);
  fm_free(l.who);
  fm_free(l.queue);
  fm_free(l.queued);
  return fine ? FM_OK : fm_no_memory(err, n * 29);
}

/* The k-th node that can be reached from n without a byte; -1: no more. */
static int32_t empty_step(const fm_rules *r, const fm_node *n, int k) {
  switch (n->kind) {
    case FM_SPLIT: return k == 0 ? n->next : k == 1 ? n->other : -1;
    case FM_CALL: {
      int32_t start = r->rule[n->other].start;
      return k == 0 ? start : k == 1 && r->least[start] == 0 ? n->next : -1;
    }
    case FM_LOOP: return k == 0 ? n->other : k == 1 && (n->min == 0 || r->least[n->other] == 0) ? n->next : -1;
    default: return -1;
  }
}

typedef struct walk { int32_t node; int k; } walk;

/* The last rule that was called on the way: the one to name. */
static const char *called_on(const fm_rules *r, const walk *path, int64_t n) {
  while (n-- > 0)
    if (r->node[path[n].node].kind == FM_CALL) return r->rule[r->node[path[n].node].other].name;
  return "root";
}

/* Looks for circles that need no byte, depth first without recursion. */
static fm_status find_circle(const fm_rules *r, uint8_t *color, walk *path, fm_error *err) {
  for (int32_t from = 0; from < r->n; from++) {
    int64_t n = 0;
    if (color[from]) continue;
    path[n++] = (walk){ from, 0 };
    color[from] = 1;
    while (n) {
      walk *w = &path[n - 1];
      int32_t to = empty_step(r, &r->node[w->node], w->k++);
      if (to < 0) {
        color[w->node] = 2;
        n--;
      } else if (color[to] == 1) {
        return fm_fail(err, FM_EUNSUPPORTED, "%s comes back to itself before its first character (left recursion)",
                       called_on(r, path, n));
      } else if (color[to] == 0) {
        color[to] = 1;
        path[n++] = (walk){ to, 0 };
      }
    }
  }
  return FM_OK;
}

static fm_status check_circles(const fm_rules *r, fm_error *err) {
  uint8_t *color = fm_array(r->n, 1);
  walk *path = fm_array(r->n, sizeof *path);
  fm_status status = color && path ? find_circle(r, color, path, err) : fm_no_memory(err, r->n * 9);
  fm_free(color);
  fm_free(path);
  return status;
}

/* The youngest rule that never ends: the one farthest from the document's start says most. */
static fm_status check_ends(const fm_rules *r, int32_t rule, fm_error *err) {
  const char *name = NULL;
  if (r->least[r->root] < FM_NEVER) return FM_OK;
  if (r->least[r->root] == FM_NEVER)
    return fm_fail(err, FM_EUNSUPPORTED, "%s is too long: its shortest text has more than 10^12 bytes", r->rule[rule].name);
  for (int64_t i = 0; i < r->n_rules; i++)
    if (r->least[r->rule[i].start] >= ENDLESS) name = r->rule[i].name;
  return fm_fail(err, FM_EFORMAT, "%s matches nothing: no text ever completes %s", r->rule[rule].name,
                 name ? name : "it");
}

fm_status fm_rules_check(fm_rules *r, int32_t rule, fm_error *err) {
  for (int64_t i = 0; i < r->n_rules && r->status == FM_OK; i++)
    if (r->rule[i].start < 0) fm_rules_refuse(r, FM_EFORMAT, "rule %s is used but not defined", r->rule[i].name);
  r->root = fm_rules_call(r, rule, FM_END);
  r->loose = r->root;
  for (int i = 0; i < 2; i++) r->loose = fm_rules_split(r, r->root, fm_rules_bytes(r, '\n', '\n', r->loose));
  if (r->status != FM_OK) {
    if (err) *err = r->err;
    return r->status;
  }
  TRY(fill_least(r, err));
  TRY(check_ends(r, rule, err));
  return check_circles(r, err);
}
