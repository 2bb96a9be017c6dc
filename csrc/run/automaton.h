/*
** automaton.h - where a text stands in a grammar: a set of places, each a node and the stack of what is to follow its rule.
** Stacks are numbers of frames that name their parent; equal stacks have equal numbers. Stack 0 is empty: for a document the
** end, for a piece of a grammar that is looked at by itself the unknown below it.
** Owner: fm_machine owns frames and scratch; places belong to whoever keeps them and mean something to their machine alone.
*/
#ifndef FM_RUN_AUTOMATON_H
#define FM_RUN_AUTOMATON_H

#include "run/rules.h"

/* Ways of reading one text, and nodes that are followed since `work` was last set to 0 (about 20 ms): what needs more is refused. */
enum { FM_MAX_PLACES = 1 << 14, FM_MAX_WORK = 1 << 19 };

/* What is to happen when a rule ends. Of a repetition: how many more of its body there must and may be, the running one included. */
typedef struct fm_frame {
  int32_t next, body;                    /* body -1: a call */
  int32_t min, max;
  int32_t parent, depth;
  int64_t least;                         /* bytes of the shortest way from here to the end of everything */
} fm_frame;

typedef struct fm_place { int32_t node, stack; } fm_place;      /* node: FM_BYTES, or FM_END with stack 0 */
typedef struct fm_places { fm_place *at; int64_t n, cap; } fm_places;

typedef struct fm_machine {
  const fm_rules *r;
  fm_frame *frame; int64_t n, cap;       /* frame 0 is the empty stack */
  int32_t *slot; int64_t n_slots;
  struct fm_open *open; int64_t n_open, cap_open;               /* scratch: places still to be followed */
  uint64_t *seen; uint32_t *stamp, stamp_now; int64_t n_seen, cap_seen;   /* scratch: those that were */
  int64_t work;                          /* nodes followed; whoever has a bound sets it to 0 where that begins */
  fm_error err;
} fm_machine;

fm_status fm_machine_init(fm_machine *x, const fm_rules *r, fm_error *err);
void      fm_machine_free(fm_machine *x);
/* Forgets all stacks. */
void      fm_machine_reset(fm_machine *x);

/* Stack number of a frame over parent; -1 without memory (err is filled). */
int32_t   fm_machine_push(fm_machine *x, int32_t next, int32_t body, int32_t min, int32_t max, int32_t parent);
/* The places that node leads to without a byte, sorted by stack and node. */
fm_status fm_machine_start(fm_machine *x, fm_places *out, int32_t node);
/* The same for the end of what stands on `stack`, which is not 0. */
fm_status fm_machine_return(fm_machine *x, fm_places *out, int32_t stack);
/* The places after a byte; none: the byte cannot come here. FM_ELIMIT: the grammar is too ambiguous, and so for all that follow places. */
fm_status fm_machine_step(fm_machine *x, const fm_places *in, uint8_t byte, fm_places *out);

/* Whether the document may end here, and the bytes of the shortest way to where it may. */
bool      fm_places_end(const fm_places *p);
int64_t   fm_places_least(const fm_machine *x, const fm_places *p, int64_t *which);
fm_status fm_places_copy(fm_places *to, const fm_places *from, fm_error *err);
/* FM_ELIMIT with what to say of it. */
fm_status fm_too_ambiguous(fm_error *err);

#endif
