/*
** close.h - the shortest way to the end of a document, in tokens.
** Owner: fm_close owns its scratch and the plan.
*/
#ifndef FM_RUN_CLOSE_H
#define FM_RUN_CLOSE_H

#include "run/automaton.h"
#include "run/trie.h"

typedef struct fm_close {
  int32_t *id; int64_t n, cap;           /* the plan: tokens that end the document */
  char *bytes; int64_t n_bytes, cap_bytes;
  int32_t *best, *step; int64_t cap_best, cap_step;
} fm_close;

/* What takes more bytes is not planned. */
enum { FM_CLOSE_BYTES = 1 << 14 };

/*
** Plans the tokens from `now` to the end: the fewest that spell the bytes of a shortest way. FM_ELIMIT: it is too long to plan, or its
** bytes are no tokens outside of `banned` (a bit each, or NULL). Bytes left open by the grammar are spaces where that is possible.
*/
fm_status fm_close_plan(fm_close *c, fm_machine *x, const fm_places *now, const fm_trie *t, const uint64_t *banned,
                         fm_error *err);
void      fm_close_free(fm_close *c);

#endif
