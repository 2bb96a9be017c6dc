/*
** bpe.c - merging by rank: a priority queue over neighbouring pairs, leftmost first on ties.
*/
#include "io/bpe.h"

#include <string.h>

void fm_bpe_free(fm_bpe *b) {
  for (int64_t i = 0; i < b->n; i++) fm_free(b->piece[i].bytes);
  fm_free(b->piece);
  fm_free(b->merge);
  fm_free(b->by_bytes);
  fm_free(b->sym);
  fm_free(b->heap);
}

fm_status fm_bpe_set(fm_bpe *b, int64_t id, const char *bytes, size_t len, bool added, fm_error *err) {
  int64_t old = b->cap;
  TRY(fm_grow(&b->piece, &b->cap, id + 1, sizeof *b->piece, err));
  memset(b->piece + old, 0, (size_t)(b->cap - old) * sizeof *b->piece);
  if (id >= b->n) b->n = id + 1;
  if (b->piece[id].bytes) {
    // the vocabulary may list an added token too
    if ((size_t)b->piece[id].len != len || memcmp(b->piece[id].bytes, bytes, len) != 0)
      return fm_fail(err, FM_EFORMAT, "tokenizer: two tokens have id %lld", (long long)id);
    b->piece[id].added |= added;
    return FM_OK;
  }
  char *copy = fm_strndup(bytes, len);
  if (!copy) return fm_no_memory(err, (int64_t)len);
  b->piece[id] = (fm_piece){ copy, (int32_t)len, added };
  return FM_OK;
}

static uint64_t hash_bytes(const char *p, size_t len) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < len; i++) h = (h ^ (uint8_t)p[i]) * 0x100000001b3u;
  return h ^ h >> 29;
}

static int64_t power_of_two(int64_t least) {
  int64_t n = 16;
  while (n < least) n *= 2;
  return n;
}

fm_status fm_bpe_index(fm_bpe *b, fm_error *err) {
  b->n_bytes = power_of_two(2 * b->n);
  b->by_bytes = fm_array(b->n_bytes, sizeof *b->by_bytes);
  if (!b->by_bytes) return fm_no_memory(err, b->n_bytes * 4);
  memset(b->by_bytes, 0xff, (size_t)b->n_bytes * sizeof *b->by_bytes);
  for (int64_t id = 0; id < b->n; id++) {
    const fm_piece *p = &b->piece[id];
    if (!p->bytes || p->added) continue;
    int64_t at = (int64_t)(hash_bytes(p->bytes, (size_t)p->len) & (uint64_t)(b->n_bytes - 1));
    while (b->by_bytes[at] >= 0) at = (at + 1) & (b->n_bytes - 1);
    b->by_bytes[at] = (int32_t)id;
  }
  for (int c = 0; c < 256; c++) {
    char byte = (char)c;
    b->byte_id[c] = fm_bpe_find(b, &byte, 1);
    if (b->byte_id[c] < 0) return fm_fail(err, FM_EFORMAT, "tokenizer: byte 0x%02x has no token", c);
  }
  return FM_OK;
}

int32_t fm_bpe_find(const fm_bpe *b, const char *bytes, size_t len) {
  int64_t at = (int64_t)(hash_bytes(bytes, len) & (uint64_t)(b->n_bytes - 1));
  for (; b->by_bytes[at] >= 0; at = (at + 1) & (b->n_bytes - 1)) {
    const fm_piece *p = &b->piece[b->by_bytes[at]];
    if ((size_t)p->len == len && memcmp(p->bytes, bytes, len) == 0) return b->by_bytes[at];
  }
  return -1;
}

/* ---- merges ------------------------------------------------------------------------------------- */

static int64_t slot_of(const fm_bpe *b, int32_t left, int32_t right) {
  uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
  int64_t at = (int64_t)((h >> 20) & (uint64_t)(b->n_slots - 1));
  while (b->merge[at].left >= 0 && (b->merge[at].left != left || b->merge[at].right != right))
    at = (at + 1) & (b->n_slots - 1);
  return at;
}

fm_status fm_bpe_make_merges(fm_bpe *b, int64_t n, fm_error *err) {
  b->n_slots = power_of_two(2 * n);
  b->merge = fm_array(b->n_slots, sizeof *b->merge);
  if (!b->merge) return fm_no_memory(err, b->n_slots * (int64_t)sizeof *b->merge);
  for (int64_t i = 0; i < b->n_slots; i++) b->merge[i].left = -1;
  return FM_OK;
}

fm_status fm_bpe_add_merge(fm_bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id, fm_error *err) {
  (void)err;
  fm_merge *m = &b->merge[slot_of(b, left, right)];
  if (m->left < 0) *m = (fm_merge){ left, right, rank, id };     // of two equal merges the first counts
  return FM_OK;
}

static bool sooner(const fm_candidate *a, const fm_candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void push(fm_candidate *heap, int64_t *n, fm_candidate c) {
  int64_t i = (*n)++;
  for (; i > 0 && sooner(&c, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = c;
}

static fm_candidate pop(fm_candidate *heap, int64_t *n) {
  fm_candidate top = heap[0], last = heap[--*n];
  int64_t i = 0;
  for (int64_t child; (child = 2 * i + 1) < *n; i = child) {
    if (child + 1 < *n && sooner(&heap[child + 1], &heap[child])) child++;
    if (!sooner(&heap[child], &last)) break;
    heap[i] = heap[child];
  }
  heap[i] = last;
  return top;
}

/* The pair that begins at symbol `at`, when it can merge. */
static void offer(const fm_bpe *b, int64_t *n_heap, int32_t at) {
  int32_t next = at >= 0 ? b->sym[at].next : -1;
  if (next < 0) return;
  const fm_merge *m = &b->merge[slot_of(b, b->sym[at].id, b->sym[next].id)];
  if (m->left >= 0) push(b->heap, n_heap, (fm_candidate){ m->rank, at, m->left, m->right });
}

static void merge_all(fm_bpe *b, int64_t len) {
  int64_t n_heap = 0;
  for (int64_t i = 0; i + 1 < len; i++) offer(b, &n_heap, (int32_t)i);
  while (n_heap) {
    fm_candidate c = pop(b->heap, &n_heap);
    fm_symbol *s = &b->sym[c.at];
    // stale when either side has merged since: ids only ever change, and a symbol that is gone has id -1
    if (s->id != c.left || s->next < 0 || b->sym[s->next].id != c.right) continue;
    fm_symbol *gone = &b->sym[s->next];
    s->id = b->merge[slot_of(b, c.left, c.right)].id;
    s->next = gone->next;
    gone->id = -1;
    if (s->next >= 0) b->sym[s->next].prev = c.at;
    offer(b, &n_heap, s->prev);
    offer(b, &n_heap, c.at);
  }
}

fm_status fm_bpe_encode(fm_bpe *b, const char *word, size_t len, int32_t **ids, int64_t *n, int64_t *cap,
                        fm_error *err) {
  if (len > INT32_MAX / 4) return fm_fail(err, FM_EOVERFLOW, "a word of %zu bytes is too long", len);
  int32_t known = fm_bpe_find(b, word, len);
  TRY(fm_grow(ids, cap, *n + (int64_t)len, sizeof **ids, err));
  if (known >= 0 && (len == 1 || b->ignore_merges)) {
    (*ids)[(*n)++] = known;
    return FM_OK;
  }
  TRY(fm_grow(&b->sym, &b->cap_sym, (int64_t)len, sizeof *b->sym, err));
  TRY(fm_grow(&b->heap, &b->cap_heap, 3 * (int64_t)len, sizeof *b->heap, err));   // a merge offers two more, once
  for (size_t i = 0; i < len; i++)
    b->sym[i] = (fm_symbol){ b->byte_id[(uint8_t)word[i]], (int32_t)i - 1, i + 1 < len ? (int32_t)i + 1 : -1 };
  merge_all(b, (int64_t)len);
  for (int32_t i = 0; i >= 0 && len; i = b->sym[i].next) (*ids)[(*n)++] = b->sym[i].id;
  return FM_OK;
}
