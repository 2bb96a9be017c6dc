/*
** trie.c - sorts the tokens by their bytes and writes the tree down in that order.
*/
#include "run/trie.h"

#include <stdlib.h>
#include <string.h>

#include "run/rules.h"

typedef struct entry { const char *bytes; int32_t len, id; } entry;

static int by_bytes(const void *a, const void *b) {
  const entry *x = a, *y = b;
  int c = memcmp(x->bytes, y->bytes, (size_t)(x->len < y->len ? x->len : y->len));
  if (c) return c;
  return x->len != y->len ? (x->len > y->len) - (x->len < y->len) : (x->id > y->id) - (x->id < y->id);
}

/* How many bytes a has in common with b. */
static int32_t common(const entry *a, const entry *b) {
  int32_t n = 0;
  while (n < a->len && n < b->len && a->bytes[n] == b->bytes[n]) n++;
  return n;
}

static int64_t collect(const fm_trie *t, entry *list) {
  int64_t n = 0;
  for (int32_t id = 0; id < t->n_ids; id++) {
    size_t len;
    const char *bytes = fm_tokenizer_bytes(t->tok, id, &len);
    if (len == 0 || len > FM_TRIE_DEPTH || fm_tokenizer_is_added(t->tok, id)) continue;
    list[n++] = (entry){ bytes, (int32_t)len, id };
  }
  return n;
}

/* Nodes of the sorted list, the root counted in. */
static int64_t count_nodes(const entry *list, int64_t n) {
  int64_t nodes = 1;
  for (int64_t i = 0; i < n; i++) nodes += list[i].len - (i ? common(&list[i - 1], &list[i]) : 0);
  return nodes;
}

/* Node numbers grow as the list goes on; a node's subtree is over where the list leaves it. */
static void write_down(fm_trie *t, const entry *list) {
  int32_t path[FM_TRIE_DEPTH + 1] = { 0 }, n = 1, last = 0;
  for (int64_t i = 0; i < t->n_tokens; i++) {
    const entry *e = &list[i];
    int32_t keep = i ? common(&list[i - 1], e) : 0;
    for (; last > keep; last--) t->skip[path[last]] = n;
    for (; last < e->len; n++) {
      t->byte[n] = (uint8_t)e->bytes[last++];
      t->depth[n] = (uint8_t)last;
      t->first[n] = (int32_t)i;
      path[last] = n;
      if (last == 1) t->child[t->byte[n]] = n;
    }
    t->id[i] = e->id;
  }
  for (; last >= 0; last--) t->skip[path[last]] = n;
  t->first[n] = (int32_t)t->n_tokens;
}

/* ---- kinds of characters ------------------------------------------------------------------------- */

int fm_trie_kind(uint8_t c) {
  if (c >= 0x80) return FM_KIND_ODD;
  if (c < ' ' || c == 0x7F) return 0;
  if (c >= '0' && c <= '9') return 1;
  if ((c | 32) >= 'a' && (c | 32) <= 'z') return c < 'a' ? 2 : 3;
  // the 33 others: ' ' to '/', ':' to '@', '[' to '`', '{' to '~'
  return 4 + (c < '0' ? c - ' ' : c < 'A' ? c - ':' + 16 : c < 'a' ? c - '[' + 23 : c - '{' + 29);
}

/* Whether bytes at the end of a token are the beginning of some character. */
static bool begins_character(const char *s, size_t len) {
  char low[4] = { 0 }, high[4] = { 0 };
  uint32_t point;
  if (len > 3) return false;
  memset(low, 0x80, sizeof low);
  memset(high, 0xBF, sizeof high);
  memcpy(low, s, len);
  memcpy(high, s, len);
  return ((uint8_t)s[0] >= 0xC2) && (fm_utf8_read(low, 4, &point) > len || fm_utf8_read(high, 4, &point) > len);
}

/* Kinds of one token, along its path. */
static void tell_token(fm_trie *t, int64_t i, const entry *e, const int32_t *path) {
  int32_t start[FM_TRIE_DEPTH];                    // where its characters begin
  uint32_t point;
  for (int32_t at = 0, n; at < e->len; at += n) {
    size_t left = (size_t)(e->len - at), len = fm_utf8_read(e->bytes + at, left, &point);
    bool cut = len == 0 && begins_character(e->bytes + at, left);
    int kind = len == 1 ? fm_trie_kind((uint8_t)e->bytes[at]) : len || cut ? FM_KIND_BEYOND : FM_KIND_ODD;
    n = cut ? (int32_t)left : len ? (int32_t)len : 1;
    start[t->points[i]++] = at;
    t->token_kinds[i] |= 1ull << kind;
    for (int32_t c = 0; c < t->points[i]; c++) t->kinds[path[start[c] + 1]] |= 1ull << kind;
    for (int32_t d = at + 1; d < at + n; d++) t->kinds[path[d + 1]] |= 1ull << FM_KIND_ODD;
  }
}

static void tell_kinds(fm_trie *t, const entry *list) {
  int32_t path[FM_TRIE_DEPTH + 1] = { 0 }, node = 1;
  for (int64_t i = 0; i < t->n_tokens; i++) {
    for (int32_t d = i ? common(&list[i - 1], &list[i]) : 0; d < list[i].len; d++) path[d + 1] = node++;
    tell_token(t, i, &list[i], path);
  }
}

static void sort_by_points(fm_trie *t) {
  int64_t from[257] = { 0 };
  for (int64_t i = 0; i < t->n_tokens; i++) from[256 - t->points[i]]++;
  for (int p = 1; p < 257; p++) from[p] += from[p - 1];          // where fewer characters begin
  for (int64_t i = t->n_tokens; i-- > 0;) t->by_points[--from[256 - t->points[i]]] = (int32_t)i;
}

static fm_status fill(fm_trie *t, entry *list, fm_error *err) {
  t->n_tokens = collect(t, list);
  qsort(list, (size_t)t->n_tokens, sizeof *list, by_bytes);
  t->n_nodes = count_nodes(list, t->n_tokens);
  t->byte = fm_array(t->n_nodes, 1);
  t->depth = fm_array(t->n_nodes, 1);
  t->skip = fm_array(t->n_nodes, sizeof *t->skip);
  t->first = fm_array(t->n_nodes + 1, sizeof *t->first);
  t->id = fm_array(t->n_tokens, sizeof *t->id);
  t->kinds = fm_array(t->n_nodes, sizeof *t->kinds);
  t->token_kinds = fm_array(t->n_tokens, sizeof *t->token_kinds);
  t->points = fm_array(t->n_tokens, 1);
  t->by_points = fm_array(t->n_tokens, sizeof *t->by_points);
  if (!t->byte || !t->depth || !t->skip || !t->first || !t->id || !t->kinds || !t->token_kinds || !t->points || !t->by_points)
    return fm_no_memory(err, t->n_nodes * 18 + t->n_tokens * 17);
  write_down(t, list);
  tell_kinds(t, list);
  sort_by_points(t);
  return FM_OK;
}

fm_status fm_trie_new(fm_trie **out, const fm_tokenizer *tok, int64_t limit, fm_error *err) {
  fm_trie *t = fm_zalloc(sizeof *t);
  if (!t) return fm_no_memory(err, sizeof *t);
  t->tok = tok;
  t->n_ids = fm_tokenizer_size(tok) < limit ? fm_tokenizer_size(tok) : limit;
  entry *list = fm_array(t->n_ids, sizeof *list);
  fm_status status = list ? fill(t, list, err) : fm_no_memory(err, t->n_ids * (int64_t)sizeof *list);
  fm_free(list);
  if (status == FM_OK) *out = t;
  else fm_trie_free(t);
  return status;
}

void fm_trie_free(fm_trie *t) {
  if (!t) return;
  fm_free(t->byte);
  fm_free(t->depth);
  fm_free(t->skip);
  fm_free(t->first);
  fm_free(t->id);
  fm_free(t->kinds);
  fm_free(t->token_kinds);
  fm_free(t->points);
  fm_free(t->by_points);
  fm_free(t);
}

int32_t fm_trie_child(const fm_trie *t, int32_t node, uint8_t byte) {
  if (node == 0) return t->child[byte];
  for (int32_t i = node + 1; i < t->skip[node]; i = t->skip[i])
    if (t->byte[i] == byte) return i;
  return 0;
}
