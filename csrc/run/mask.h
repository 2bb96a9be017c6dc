/*
** mask.h - which tokens may come next: places of an automaton -> one bit a token.
**
** Places on one stack are looked at together, as if nothing were below the topmost frames: the tokens that stay above depend on
** the places alone, so that they are found once by a walk over the whole trie and kept (a sheet). Tokens that end the frames in
** their middle are few; where they leave is kept too, and from there each mask walks on by what really stands below.
** The walks run on a deterministic automaton whose states are made when first met. Strings that may have so and so many
** characters share the sheet of those without bounds: tokens of plain characters are told by how many they have.
** Owner: fm_masks owns its sheets and states; rules and trie must outlive it.
*/
#ifndef FM_RUN_MASK_H
#define FM_RUN_MASK_H

#include "run/automaton.h"
#include "run/trie.h"

typedef struct fm_masks fm_masks;

fm_status fm_masks_new (fm_masks **out, const fm_rules *r, const fm_trie *trie, fm_error *err);
void      fm_masks_free(fm_masks *k);

/*
** Sets the bit of every token that may come next and clears the others. Where the document may end is the caller's to see.
**   bits    ((n_ids + 63) / 64) u64, out
**   x, now  the machine and the places in it
*/
fm_status fm_masks_fill(fm_masks *k, const fm_machine *x, const fm_places *now, uint64_t *bits, fm_error *err);

#endif
