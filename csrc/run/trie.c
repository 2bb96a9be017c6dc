/*
** trie.c - sorts the tokens by their bytes and writes the tree down in that order.
*/
#include "run/trie.h"

#include <stdlib.h>
#include <string.h>

typedef struct entry { const char *bytes; int32_t len, id; } entry;

static int by_bytes(const void *a, const void *b) {
  const entry *x = a, *y = b;
  int c = memcmp(x->bytes, y->bytes, (size_t)(x->len < y->len ? x->len : y->len));
  if (c) return c;
  return x->len != y->len ? (x->len > y->len) - (x->len < y->len) : (x->id > y->id) - (x->id < y->id);
}

static int longest_first(const void *a, const void *b) {
  const entry *x = a, *y = b;
  return x->len != y->len ? (x->len < y->len) - (x->len > y->len) : (x->id > y->id) - (x->id < y->id);
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

static fm_status fill(fm_trie *t, entry *list, fm_error *err) {
  t->n_tokens = collect(t, list);
  qsort(list, (size_t)t->n_tokens, sizeof *list, by_bytes);
  t->n_nodes = count_nodes(list, t->n_tokens);
  t->byte = fm_array(t->n_nodes, 1);
  t->depth = fm_array(t->n_nodes, 1);
  t->skip = fm_array(t->n_nodes, sizeof *t->skip);
  t->first = fm_array(t->n_nodes + 1, sizeof *t->first);
  t->id = fm_array(t->n_tokens, sizeof *t->id);
  t->by_length = fm_array(t->n_tokens, sizeof *t->by_length);
  if (!t->byte || !t->depth || !t->skip || !t->first || !t->id || !t->by_length)
    return fm_no_memory(err, t->n_nodes * 10 + t->n_tokens * 8);
  write_down(t, list);
  qsort(list, (size_t)t->n_tokens, sizeof *list, longest_first);
  for (int64_t i = 0; i < t->n_tokens; i++) t->by_length[i] = list[i].id;
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
  fm_free(t->by_length);
  fm_free(t);
}

int32_t fm_trie_child(const fm_trie *t, int32_t node, uint8_t byte) {
  if (node == 0) return t->child[byte];
  for (int32_t i = node + 1; i < t->skip[node]; i = t->skip[i])
    if (t->byte[i] == byte) return i;
  return 0;
}
