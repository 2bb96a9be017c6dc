/*
** prefix.c - tree of cached prefixes: children by comparing, the least recently used leaf goes first.
** All nodes hang on one list by use. A walk touches a path from its end to its root, so a parent is never older than its child and the
** first leaf of the list is the oldest.
*/
#include "run/prefix.h"

#include <string.h>

struct fm_node {
  fm_node *parent, *child, *next, *prev;   /* next, prev: siblings */
  fm_node *newer, *older;                /* by use */
  int64_t number, n;                     /* which page of a sequence; rows of it that count */
  int64_t mtp_first, mtp_len;            /* MTP rows of the path that are there; mtp_len <= start of the page: none of this one */
  int64_t users;                         /* sequences that stand here */
  uint64_t used;
  int32_t page;
  bool has_h;
  int32_t ids[FM_PAGE];
  uint8_t roles[FM_PAGE];
  float h[];                             /* (hidden_size) state of the last row */
};

struct fm_prefix {
  fm_kv *kv;
  fm_node **child;                       /* (groups) first pages */
  fm_node *newest, *oldest;
  int64_t n_nodes, most, hidden_size;
  uint64_t *clock;
};

fm_status fm_prefix_new(fm_prefix **out, fm_kv *kv, int64_t pages, int64_t hidden_size, uint64_t *clock, fm_error *err) {
  fm_prefix *p = fm_zalloc(sizeof *p);
  if (!p) return fm_no_memory(err, sizeof *p);
  *p = (fm_prefix){ .kv = kv, .most = pages, .hidden_size = hidden_size, .clock = clock };
  p->child = fm_array(kv->n_groups, sizeof(fm_node *));
  if (!p->child) {
    fm_free(p);
    return fm_no_memory(err, kv->n_groups * (int64_t)sizeof(fm_node *));
  }
  *out = p;
  return FM_OK;
}

int64_t fm_prefix_pages(const fm_prefix *p) { return p ? p->n_nodes : 0; }

/* ---- links ---------------------------------------------------------------------------------------- */

static void list_out(fm_prefix *p, fm_node *n) {
  if (n->newer) n->newer->older = n->older;
  else p->newest = n->older;
  if (n->older) n->older->newer = n->newer;
  else p->oldest = n->newer;
}

static void list_in(fm_prefix *p, fm_node *n) {
  n->newer = NULL;
  n->older = p->newest;
  if (p->newest) p->newest->newer = n;
  else p->oldest = n;
  p->newest = n;
}

static void touch(fm_prefix *p, fm_node *n) {
  for (; n; n = n->parent) {
    list_out(p, n);
    n->used = ++*p->clock;
    list_in(p, n);
  }
}

static fm_node **children(fm_prefix *p, fm_node *parent, int group) { return parent ? &parent->child : &p->child[group]; }

static void drop(fm_prefix *p, fm_node *n) {
  if (n->prev) n->prev->next = n->next;
  else *children(p, n->parent, fm_kv_group(p->kv, n->page)) = n->next;
  if (n->next) n->next->prev = n->prev;
  list_out(p, n);
  fm_kv_release(p->kv, n->page);
  fm_free(n);
  p->n_nodes--;
}

static bool is_leaf(const fm_node *n) { return !n->child && !n->users; }

void fm_prefix_clear(fm_prefix *p) {
  fm_node *n = p ? p->oldest : NULL;
  while (n) {
    fm_node *newer = n->newer;           // a parent is newer than its child: one walk meets all
    if (is_leaf(n)) drop(p, n);
    n = newer;
  }
}

void fm_prefix_free(fm_prefix *p) {
  fm_prefix_clear(p);
  if (p) fm_free(p->child);
  fm_free(p);
}

/* ---- places ------------------------------------------------------------------------------------------ */

int64_t fm_node_end(const fm_node *n) { return n ? n->number * FM_PAGE + n->n : 0; }

void fm_node_hold(fm_node **slot, fm_node *to) {
  if (to) to->users++;
  if (*slot) (*slot)->users--;
  *slot = to;
}

void fm_node_cut(fm_node **slot, int64_t len) {
  fm_node *n = *slot;
  while (n && fm_node_end(n) > len) n = n->parent;
  fm_node_hold(slot, n);
}

static int64_t common(const int32_t *ids, const uint8_t *roles, const int32_t *ids2, const uint8_t *roles2, int64_t n) {
  int64_t i = 0;
  while (i < n && ids[i] == ids2[i] && roles[i] == roles2[i]) i++;
  return i;
}

int64_t fm_text_common(fm_text a, int64_t n_a, fm_text b, int64_t n_b, int64_t page) {
  int64_t at = page * FM_PAGE, n = (n_a < n_b ? n_a : n_b) - at;
  n = n < FM_PAGE ? n : FM_PAGE;
  return common(a.ids + at, a.roles + at, b.ids + at, b.roles + at, n);
}

/* The child of `parent` that agrees longest with rows [at, at + n) of t; *len tells how long. */
static fm_node *best_child(fm_prefix *p, int group, fm_node *parent, fm_text t, int64_t at, int64_t n, int64_t *len) {
  fm_node *best = NULL;
  *len = 0;
  for (fm_node *c = *children(p, parent, group); c; c = c->next) {
    int64_t same = common(c->ids, c->roles, t.ids + at, t.roles + at, n < c->n ? n : c->n);
    if (same > *len) best = c, *len = same;
    if (same == n) break;
  }
  return best;
}

/* ---- taking --------------------------------------------------------------------------------------------- */

/* What seq has of the MTP layer when its last rows are the first `len` of the path to n. */
static void take_mtp(fm_kv_seq *seq, const fm_node *n, int64_t len) {
  seq->mtp_first = n->mtp_first;
  seq->mtp_len = n->mtp_len < len ? n->mtp_len : len;
  if (seq->mtp_first > seq->mtp_len) seq->mtp_first = seq->mtp_len;
}

bool fm_prefix_take(fm_prefix *p, fm_kv_seq *seq, fm_node **at, fm_text t, int64_t most, float *h) {
  fm_node *n = *at, *deepest = NULL;
  int64_t len = fm_node_end(n), start = len, pages = 0, same;
  while (len < most && len % FM_PAGE == 0) {
    fm_node *c = best_child(p, seq->group, n, t, len, most - len, &same);
    if (!c) break;
    deepest = c;
    len += same;
    pages++;
    if (same == FM_PAGE) n = c;
  }
  if (!deepest || len <= seq->len || !fm_kv_room(seq, start / FM_PAGE + pages)) return false;
  touch(p, deepest);
  fm_kv_truncate(p->kv, seq, start);
  seq->n_pages = start / FM_PAGE + pages;          // filled from the end: the path is known from there
  for (fm_node *c = deepest; pages > 0; c = c->parent, pages--) fm_kv_share(p->kv, seq, start / FM_PAGE + pages - 1, c->page);
  seq->len = len;
  take_mtp(seq, deepest, len);
  fm_node_hold(at, n);
  if (!deepest->has_h || len != fm_node_end(deepest)) return false;
  memcpy(h, deepest->h, (size_t)p->hidden_size * sizeof *h);
  return true;
}

/* ---- putting ---------------------------------------------------------------------------------------------- */

/* Room for one page more. Whoever is used by nobody goes, the oldest first. */
static bool make_room(fm_prefix *p) {
  fm_node *n = p->oldest;
  if (p->n_nodes < p->most) return true;
  while (n && !is_leaf(n)) n = n->newer;
  if (n) drop(p, n);
  return p->n_nodes < p->most;
}

static fm_node *new_node(fm_prefix *p, int group, fm_node *parent, int64_t number) {
  if (!make_room(p)) return NULL;
  fm_node *n = fm_zalloc((int64_t)sizeof *n + p->hidden_size * (int64_t)sizeof(float));
  if (!n) return NULL;
  fm_node **first = children(p, parent, group);
  n->parent = parent;
  n->number = number;
  n->page = -1;
  n->next = *first;
  if (n->next) n->next->prev = n;
  *first = n;
  list_in(p, n);
  p->n_nodes++;
  return n;
}

/* The node's rows are those of seq's page now. */
static void fill(fm_prefix *p, fm_node *n, const fm_kv_seq *seq, fm_text t, int64_t rows) {
  int64_t at = n->number * FM_PAGE;
  fm_kv_keep(p->kv, seq->pages[n->number]);
  if (n->page >= 0) fm_kv_release(p->kv, n->page);
  n->page = seq->pages[n->number];
  n->n = rows;
  n->has_h = false;
  n->mtp_first = n->mtp_len = 0;
  memcpy(n->ids, t.ids + at, (size_t)rows * sizeof *n->ids);
  memcpy(n->roles, t.roles + at, (size_t)rows);
}

void fm_prefix_mark_mtp(fm_node *at, const fm_kv_seq *seq) {
  for (fm_node *n = at; n && n->mtp_len < fm_node_end(n); n = n->parent) {
    int64_t end = fm_node_end(n) < seq->mtp_len ? fm_node_end(n) : seq->mtp_len;
    if (end <= n->mtp_len || end <= seq->mtp_first || n->page != seq->pages[n->number]) continue;
    n->mtp_first = seq->mtp_first;
    n->mtp_len = end;
  }
}

bool fm_prefix_put(fm_prefix *p, const fm_kv_seq *seq, fm_node **at, fm_text t, int64_t end, const float *h) {
  int64_t start = fm_node_end(*at), rows = end - start, same;
  fm_node *n = best_child(p, seq->group, *at, t, start, rows, &same);
  if (!n || (same < rows && same < n->n)) n = new_node(p, seq->group, *at, start / FM_PAGE);
  if (!n) return false;
  if (n->n < rows) fill(p, n, seq, t, rows);       // a begun page that goes on is the same node
  if (h && n->n == rows && !n->has_h && p->hidden_size) {
    memcpy(n->h, h, (size_t)p->hidden_size * sizeof *h);
    n->has_h = true;
  }
  touch(p, n);
  fm_prefix_mark_mtp(n, seq);
  if (rows == FM_PAGE) fm_node_hold(at, n);
  return true;
}

/* ---- giving up ------------------------------------------------------------------------------------------------ */

static fm_node *oldest_alone(const fm_prefix *p, int group) {
  fm_node *n = p ? p->oldest : NULL;
  while (n && (!is_leaf(n) || p->kv->refs[n->page] > 1 || fm_kv_group(p->kv, n->page) != group)) n = n->newer;
  return n;
}

uint64_t fm_prefix_oldest(const fm_prefix *p, int group) {
  const fm_node *n = oldest_alone(p, group);
  return n ? n->used : UINT64_MAX;
}

void fm_prefix_evict(fm_prefix *p, int group) { drop(p, oldest_alone(p, group)); }
