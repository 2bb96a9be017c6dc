/*
** mem.h - checked allocation through the host's allocator, and an arena for scratch.
** Everything is aligned to FM_ALIGN bytes. All functions return NULL when out of memory.
*/
#ifndef FM_BASE_MEM_H
#define FM_BASE_MEM_H

#include "base/status.h"

#define FM_ALIGN 64

void *fm_alloc(int64_t size);                          /* size 0 gives a valid pointer */
void *fm_zalloc(int64_t size);                         /* zeroed */
void *fm_array(int64_t n, int64_t size);               /* zeroed; NULL when n * size overflows */
void *fm_realloc(void *p, int64_t old_size, int64_t size);   /* p may be NULL */
void  fm_free(void *p);
char *fm_strndup(const char *s, size_t len);           /* zero-terminated */

/* a * b and a + b of non-negative sizes; false when the result does not fit. */
bool fm_mul(int64_t a, int64_t b, int64_t *out);
bool fm_add(int64_t a, int64_t b, int64_t *out);

/* Grows *p (n_elem_size bytes an element) to hold at least `want` elements, doubling. */
fm_status fm_grow(void *pp, int64_t *cap, int64_t want, int64_t elem_size, fm_error *err);

/* Scratch that is given back in the order it was taken. Chunks are kept for the next use. */
typedef struct fm_arena { struct fm_chunk *first, *now; } fm_arena;
typedef struct fm_mark  { struct fm_chunk *chunk; int64_t used; } fm_mark;

void *fm_arena_alloc(fm_arena *a, int64_t size);       /* not zeroed; NULL when out of memory */
fm_mark fm_arena_mark(fm_arena *a);
void  fm_arena_release(fm_arena *a, fm_mark m);
void  fm_arena_free(fm_arena *a);                      /* gives all chunks back */
int64_t fm_arena_size(const fm_arena *a);              /* bytes held */

#endif
