/*
** automaton.c - a pushdown automaton over bytes that follows all ways at once.
*/
#include "run/automaton.h"

#include <stdlib.h>
#include <string.h>

/* A place that is still to be followed. fresh: how many frames on top were put there since the last byte. */
typedef struct fm_open { int32_t node, stack, fresh; } fm_open;

/* ---- stacks --------------------------------------------------------------------------------------- */

static uint64_t hash_frame(const fm_frame *f) {
  uint64_t h = 0;
  const int32_t part[] = { f->next, f->body, f->min, f->max, f->parent };
  for (int i = 0; i < 5; i++) h = (h ^ (uint32_t)part[i]) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  return h;
}

static bool same(const fm_frame *a, const fm_frame *b) {
  return a->next == b->next && a->body == b->body && a->min == b->min && a->max == b->max && a->parent == b->parent;
}

static int32_t *find(const fm_machine *x, const fm_frame *f) {
  uint64_t mask = (uint64_t)x->n_slots - 1, i = hash_frame(f) & mask;
  while (x->slot[i] && !same(&x->frame[x->slot[i]], f)) i = (i + 1) & mask;
  return &x->slot[i];
}

static fm_status grow_slots(fm_machine *x) {
  if (2 * (x->n + 1) <= x->n_slots) return FM_OK;
  int64_t n = x->n_slots ? 2 * x->n_slots : 64;
  int32_t *slot = fm_array(n, sizeof *slot);
  if (!slot) return fm_no_memory(&x->err, n * (int64_t)sizeof *slot);
  fm_free(x->slot);
  x->slot = slot;
  x->n_slots = n;
  for (int32_t i = 1; i < x->n; i++) *find(x, &x->frame[i]) = i;
  return FM_OK;
}

/* Bytes from the moment a frame's rule has ended to the end of everything. */
static int64_t least_behind(const fm_machine *x, const fm_frame *f) {
  const int64_t *least = x->r->least;
  int64_t more = f->body >= 0 && f->min > 1 ? least[f->body] * (f->min - 1) : 0;
  return least[f->next] + more + x->frame[f->parent].least;
}

int32_t fm_machine_push(fm_machine *x, int32_t next, int32_t body, int32_t min, int32_t max, int32_t parent) {
  if (body < 0 && next == FM_END) return parent;   // nothing to do on the way back
  fm_frame f = { .next = next, .body = body, .min = min, .max = max, .parent = parent };
  if (fm_grow(&x->frame, &x->cap, x->n + 1, sizeof f, &x->err) != FM_OK || grow_slots(x) != FM_OK) return -1;
  int32_t *slot = find(x, &f);
  if (*slot) return *slot;
  f.depth = x->frame[parent].depth + 1;
  f.least = least_behind(x, &f);
  x->frame[x->n] = f;
  return *slot = (int32_t)x->n++;
}

fm_status fm_machine_init(fm_machine *x, const fm_rules *r, fm_error *err) {
  *x = (fm_machine){ .r = r };
  TRY(fm_grow(&x->frame, &x->cap, 16, sizeof *x->frame, err));
  x->frame[0] = (fm_frame){ .body = -1 };
  x->n = 1;
  return FM_OK;
}

void fm_machine_free(fm_machine *x) {
  fm_free(x->frame);
  fm_free(x->slot);
  fm_free(x->open);
  fm_free(x->seen);
  fm_free(x->stamp);
  *x = (fm_machine){ .r = NULL };
}

void fm_machine_reset(fm_machine *x) {
  x->n = 1;
  if (x->slot) memset(x->slot, 0, (size_t)x->n_slots * sizeof *x->slot);
}

/* ---- ways without a byte ------------------------------------------------------------------------------ */

static fm_status grow_seen(fm_machine *x) {
  int64_t n = x->cap_seen ? 2 * x->cap_seen : 64;
  uint64_t *old = x->seen, *seen = fm_array(n, sizeof *seen);
  uint32_t *old_stamp = x->stamp, *stamp = fm_array(n, sizeof *stamp);
  if (!seen || !stamp) {
    fm_free(seen);
    fm_free(stamp);
    return fm_no_memory(&x->err, n * 12);
  }
  for (int64_t i = 0; i < x->cap_seen; i++) {
    if (old_stamp[i] != x->stamp_now) continue;
    uint64_t at = old[i] * 0x9E3779B97F4A7C15u >> 32 & (uint64_t)(n - 1);
    while (stamp[at] == x->stamp_now) at = (at + 1) & (uint64_t)(n - 1);
    seen[at] = old[i];
    stamp[at] = x->stamp_now;
  }
  fm_free(old);
  fm_free(old_stamp);
  x->seen = seen;
  x->stamp = stamp;
  x->cap_seen = n;
  return FM_OK;
}

fm_status fm_too_ambiguous(fm_error *err) {
  return fm_fail(err, FM_ELIMIT, "the grammar is too ambiguous: one text can be read in too many ways");
}

/* *first: this is the first time in this closure. A place counts anew with fresh frames: its way back differs. */
static fm_status see(fm_machine *x, fm_open o, bool *first) {
  if (2 * (x->n_seen + 1) > x->cap_seen) TRY(grow_seen(x));
  uint64_t key = (uint64_t)(uint32_t)o.node << 33 | (uint64_t)(uint32_t)o.stack << 1 | (o.fresh > 0);
  uint64_t mask = (uint64_t)x->cap_seen - 1, at = key * 0x9E3779B97F4A7C15u >> 32 & mask;
  while (x->stamp[at] == x->stamp_now && x->seen[at] != key) at = (at + 1) & mask;
  *first = x->stamp[at] != x->stamp_now;
  if (!*first) return FM_OK;
  if (++x->work > FM_MAX_WORK) return fm_too_ambiguous(&x->err);
  x->stamp[at] = x->stamp_now;
  x->seen[at] = key;
  x->n_seen++;
  return FM_OK;
}

static void begin(fm_machine *x, fm_places *out) {
  out->n = x->n_open = x->n_seen = 0;
  if (++x->stamp_now == 0) {
    memset(x->stamp, 0, (size_t)x->cap_seen * sizeof *x->stamp);
    x->stamp_now = 1;
  }
}

/* Nodes that lead nowhere are left out: every place that is kept can be gone on from to the end. */
static fm_status follow(fm_machine *x, int32_t node, int32_t stack, int32_t fresh) {
  if (stack < 0) return x->err.code;
  if (x->r->least[node] >= FM_NEVER) return FM_OK;
  TRY(fm_grow(&x->open, &x->cap_open, x->n_open + 1, sizeof *x->open, &x->err));
  x->open[x->n_open++] = (fm_open){ node, stack, fresh };
  return FM_OK;
}

static fm_status enter_loop(fm_machine *x, int32_t next, int32_t body, int32_t min, int32_t max, int32_t parent, int32_t fresh) {
  if (max == 0 || x->r->least[body] >= FM_NEVER) return FM_OK;
  return follow(x, body, fm_machine_push(x, next, body, min, max, parent), fresh + 1);
}

/* What stands on the stack has ended. */
static fm_status go_back(fm_machine *x, int32_t stack, int32_t fresh) {
  fm_frame f = x->frame[stack];
  int32_t under = fresh > 0 ? fresh - 1 : 0;
  // a body that matched nothing may do so as often as it must, and more of that changes nothing
  if (f.body < 0 || fresh > 0) return follow(x, f.next, f.parent, under);
  int32_t min = f.min > 0 ? f.min - 1 : 0, max = f.max == FM_MANY ? FM_MANY : f.max - 1;
  if (min == 0) TRY(follow(x, f.next, f.parent, 0));
  return enter_loop(x, f.next, f.body, min, max, f.parent, 0);
}

static fm_status keep(fm_machine *x, fm_places *out, int32_t node, int32_t stack) {
  if (out->n >= FM_MAX_PLACES) return fm_too_ambiguous(&x->err);
  TRY(fm_grow(&out->at, &out->cap, out->n + 1, sizeof *out->at, &x->err));
  out->at[out->n++] = (fm_place){ node, stack };
  return FM_OK;
}

static fm_status follow_one(fm_machine *x, fm_places *out, fm_open o) {
  const fm_node *n = &x->r->node[o.node];
  switch (n->kind) {
    case FM_BYTES: return keep(x, out, o.node, o.stack);
    case FM_END: return o.stack ? go_back(x, o.stack, o.fresh) : keep(x, out, FM_END, 0);
    case FM_SPLIT:
      TRY(follow(x, n->other, o.stack, o.fresh));
      return follow(x, n->next, o.stack, o.fresh);
    case FM_CALL: {
      int32_t stack = fm_machine_push(x, n->next, -1, 0, 0, o.stack);
      return follow(x, x->r->rule[n->other].start, stack, stack == o.stack ? o.fresh : o.fresh + 1);
    }
    case FM_LOOP:
      if (n->min == 0) TRY(follow(x, n->next, o.stack, o.fresh));
      return enter_loop(x, n->next, n->other, n->min, n->max, o.stack, o.fresh);
    default: return FM_OK;
  }
}

static int by_stack(const void *a, const void *b) {
  const fm_place *x = a, *y = b;
  if (x->stack != y->stack) return x->stack < y->stack ? -1 : 1;
  return (x->node > y->node) - (x->node < y->node);
}

/* Follows everything that is open, sorts, and drops what was reached twice. */
static fm_status close_over(fm_machine *x, fm_places *out) {
  int64_t kept = 0;
  bool first;
  while (x->n_open) {
    fm_open o = x->open[--x->n_open];
    TRY(see(x, o, &first));
    if (first) TRY(follow_one(x, out, o));
  }
  if (out->n > 1) qsort(out->at, (size_t)out->n, sizeof *out->at, by_stack);
  for (int64_t i = 0; i < out->n; i++)
    if (!i || by_stack(&out->at[i], &out->at[i - 1]) != 0) out->at[kept++] = out->at[i];
  out->n = kept;
  return FM_OK;
}

fm_status fm_machine_start(fm_machine *x, fm_places *out, int32_t node) {
  begin(x, out);
  TRY(follow(x, node, 0, 0));
  return close_over(x, out);
}

fm_status fm_machine_return(fm_machine *x, fm_places *out, int32_t stack) {
  begin(x, out);
  TRY(go_back(x, stack, 0));
  return close_over(x, out);
}

fm_status fm_machine_step(fm_machine *x, const fm_places *in, uint8_t byte, fm_places *out) {
  begin(x, out);
  for (int64_t i = 0; i < in->n; i++) {
    const fm_node *n = &x->r->node[in->at[i].node];
    if (n->kind == FM_BYTES && byte >= n->min && byte <= n->max) TRY(follow(x, n->next, in->at[i].stack, 0));
  }
  return close_over(x, out);
}

/* ---- sets of places ------------------------------------------------------------------------------------- */

bool fm_places_end(const fm_places *p) {
  for (int64_t i = 0; i < p->n; i++)
    if (p->at[i].node == FM_END) return true;
  return false;
}

int64_t fm_places_least(const fm_machine *x, const fm_places *p, int64_t *which) {
  int64_t best = FM_NEVER;
  for (int64_t i = 0; i < p->n; i++) {
    int64_t l = x->r->least[p->at[i].node] + x->frame[p->at[i].stack].least;
    if (l >= best) continue;
    best = l;
    if (which) *which = i;
  }
  return best;
}

fm_status fm_places_copy(fm_places *to, const fm_places *from, fm_error *err) {
  TRY(fm_grow(&to->at, &to->cap, from->n, sizeof *to->at, err));
  if (from->n) memcpy(to->at, from->at, (size_t)from->n * sizeof *to->at);
  to->n = from->n;
  return FM_OK;
}
