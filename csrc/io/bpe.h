/*
** bpe.h - the vocabulary of a byte-level BPE and its merging; tokenizer.c does JSON, splitting and added tokens.
*/
#ifndef FM_IO_BPE_H
#define FM_IO_BPE_H

#include "base/mem.h"

typedef struct fm_piece { char *bytes; int32_t len; bool added; } fm_piece;   /* bytes NULL: nobody has this id */

typedef struct fm_merge { int32_t left, right, rank, id; } fm_merge;          /* left -1: an empty slot */

/* Symbols of one word while it is merged: a doubly linked list in an array, and a heap of possible merges. */
typedef struct fm_symbol { int32_t id, prev, next; } fm_symbol;
typedef struct fm_candidate { int32_t rank, at, left, right; } fm_candidate;

typedef struct fm_bpe {
  fm_piece *piece; int64_t n, cap;       /* by id */
  int32_t byte_id[256];
  bool ignore_merges;                    /* a word that is a token is that token */
  fm_merge *merge; int64_t n_slots;      /* open addressing, a power of two */
  int32_t *by_bytes; int64_t n_bytes;    /* ids by their bytes, open addressing; -1: empty. For ignore_merges and JSON */
  fm_symbol *sym; int64_t cap_sym;       /* scratch */
  fm_candidate *heap; int64_t cap_heap;
} fm_bpe;

void      fm_bpe_free(fm_bpe *b);
/* Gives id its bytes (copied). FM_EFORMAT when it has some already. */
fm_status fm_bpe_set(fm_bpe *b, int64_t id, const char *bytes, size_t len, bool added, fm_error *err);
/* After all are set: index by bytes. */
fm_status fm_bpe_index(fm_bpe *b, fm_error *err);
int32_t   fm_bpe_find(const fm_bpe *b, const char *bytes, size_t len);        /* -1: none */
fm_status fm_bpe_make_merges(fm_bpe *b, int64_t n, fm_error *err);            /* room for n merges */
fm_status fm_bpe_add_merge(fm_bpe *b, int32_t left, int32_t right, int32_t rank, int32_t id, fm_error *err);
/* Appends the ids of one word. Added tokens never come out. */
fm_status fm_bpe_encode(fm_bpe *b, const char *word, size_t len, int32_t **ids, int64_t *n, int64_t *cap, fm_error *err);

#endif
