/*
** mem.c - checked allocation through the host's allocator, and an arena for scratch.
*/
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static void *libc_alloc(void *user, void *p, size_t size) {
  (void)user;
  if (size) return realloc(p, size);
  free(p);
  return NULL;
}

/* The one piece of global state: set before anything else runs, see fathom.h. */
static struct { fm_alloc_fn fn; void *user; } host = { libc_alloc, NULL };

void fm_set_allocator(fm_alloc_fn fn, void *user) {
  host.fn = fn ? fn : libc_alloc;
  host.user = fn ? user : NULL;
}

/* The block the host gave stands in the word before the aligned one that we give out. */
void *fm_alloc(int64_t size) {
  int64_t whole;
  if (size < 0 || !fm_add(size, FM_ALIGN + (int64_t)sizeof(void *), &whole)) return NULL;
  char *raw = host.fn(host.user, NULL, (size_t)whole);
  if (!raw) return NULL;
  uintptr_t at = ((uintptr_t)raw + sizeof(void *) + FM_ALIGN - 1) & ~(uintptr_t)(FM_ALIGN - 1);
  memcpy((void *)(at - sizeof(void *)), &raw, sizeof raw);
  return (void *)at;
}

void fm_free(void *p) {
  char *raw;
  if (!p) return;
  memcpy(&raw, (char *)p - sizeof raw, sizeof raw);
  host.fn(host.user, raw, 0);
}

void fm_release(void *p) { fm_free(p); }

void *fm_zalloc(int64_t size) {
  void *p = fm_alloc(size);
  if (p) memset(p, 0, (size_t)size);
  return p;
}

void *fm_array(int64_t n, int64_t size) {
  int64_t all;
  return fm_mul(n, size, &all) ? fm_zalloc(all) : NULL;
}

void *fm_realloc(void *p, int64_t old_size, int64_t size) {
  void *q = fm_alloc(size);
  if (!q) return NULL;
  if (p) memcpy(q, p, (size_t)(old_size < size ? old_size : size));
  fm_free(p);
  return q;
}

char *fm_strndup(const char *s, size_t len) {
  char *p = len < INT64_MAX ? fm_alloc((int64_t)len + 1) : NULL;
  if (!p) return NULL;
  memcpy(p, s, len);
  p[len] = 0;
  return p;
}

bool fm_mul(int64_t a, int64_t b, int64_t *out) {
  return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}

bool fm_add(int64_t a, int64_t b, int64_t *out) {
  return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out);
}

fm_status fm_grow(void *pp, int64_t *cap, int64_t want, int64_t elem_size, fm_error *err) {
  void *p;
  int64_t size, n = *cap < 8 ? 8 : *cap;
  if (want <= *cap) return FM_OK;
  while (n < want) n = n > INT64_MAX / 2 ? want : n * 2;
  if (!fm_mul(n, elem_size, &size)) return fm_fail(err, FM_EOVERFLOW, "%lld elements are too many", (long long)n);
  memcpy(&p, pp, sizeof p);
  void *q = fm_realloc(p, *cap * elem_size, size);
  if (!q) return fm_no_memory(err, size);
  memcpy(pp, &q, sizeof q);
  *cap = n;
  return FM_OK;
}

/* ---- arena ------------------------------------------------------------------------------------ */

struct fm_chunk { struct fm_chunk *next; int64_t used, size; char *data; };

static struct fm_chunk *chunk_new(int64_t size) {
  struct fm_chunk *c = fm_zalloc(sizeof *c);
  if (!c) return NULL;
  c->data = fm_alloc(size);
  c->size = size;
  if (c->data) return c;
  fm_free(c);
  return NULL;
}

void *fm_arena_alloc(fm_arena *a, int64_t size) {
  if (size < 0 || size > INT64_MAX - FM_ALIGN) return NULL;
  size = (size + FM_ALIGN - 1) / FM_ALIGN * FM_ALIGN;
  struct fm_chunk *c = a->now;
  while (c && c->size - c->used < size) {
    c = c->next;
    if (c) c->used = 0;
  }
  if (!c) {
    struct fm_chunk *last = a->now;
    while (last && last->next) last = last->next;
    int64_t least = last ? 2 * last->size : 1 << 20;
    c = chunk_new(size > least ? size : least);
    if (!c && size < least) c = chunk_new(size);
    if (!c) return NULL;
    if (last) last->next = c;
    else a->first = c;
  }
  a->now = c;
  void *p = c->data + c->used;
  c->used += size;
  return p;
}

fm_mark fm_arena_mark(fm_arena *a) {
  return (fm_mark){ a->now, a->now ? a->now->used : 0 };
}

void fm_arena_release(fm_arena *a, fm_mark m) {
  a->now = m.chunk ? m.chunk : a->first;
  if (a->now) a->now->used = m.used;
}

void fm_arena_free(fm_arena *a) {
  for (struct fm_chunk *c = a->first, *next; c; c = next) {
    next = c->next;
    fm_free(c->data);
    fm_free(c);
  }
  *a = (fm_arena){ 0 };
}

int64_t fm_arena_size(const fm_arena *a) {
  int64_t n = 0;
  for (const struct fm_chunk *c = a->first; c; c = c->next) n += c->size;
  return n;
}
