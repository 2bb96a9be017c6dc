/*
** grammar.h - structured output: grammars compiled for a vocabulary, and the guide that keeps one reply to its grammar.
** A guide draws under the mask of what may come next, so that nothing else ever gets out; it looks ahead to the shortest close,
** in tokens, and takes it when more would not fit into what is left.
** Owner: fm_grammars owns the trie and the grammars compiled last; a guide holds a count on its grammar and on nothing else, and
** fm_grammars must outlive it.
*/
#ifndef FM_RUN_GRAMMAR_H
#define FM_RUN_GRAMMAR_H

#include "run/mask.h"
#include "run/sampler.h"

typedef struct fm_grammars fm_grammars;
typedef struct fm_guide fm_guide;

/* For the tokens of tok below `limit`. tok must outlive it. */
fm_status fm_grammars_new (fm_grammars **out, const fm_tokenizer *tok, int64_t limit, fm_error *err);
void      fm_grammars_free(fm_grammars *gs);

typedef struct fm_guide_options {
  const char *grammar, *schema;          /* texts, exactly one of them: GBNF, or a JSON Schema */
  int32_t after;                         /* the grammar begins behind this id, and the reply cannot end before; -1: at once */
  const int32_t *ends; int32_t n_ends;   /* ids that end a reply: drawn only where the document is complete */
  const fm_logit_bias *bias; int32_t n_bias;       /* ids with a bias of minus infinity never come, not even to close a document */
} fm_guide_options;

/*
** A guide at the beginning of a reply. Compiled grammars are kept for the next guide with the same text.
** FM_EFORMAT: the text is malformed or matches nothing; FM_EUNSUPPORTED names what of it is not done.
*/
fm_status fm_guide_new (fm_guide **out, fm_grammars *gs, const fm_guide_options *o, fm_error *err);
void      fm_guide_free(fm_guide *u);

/* A reply has two heads: the real one, and one that runs ahead along drafts. */
typedef enum fm_head { FM_REAL, FM_AHEAD } fm_head;

/* Puts the head that runs ahead where the real one is. */
fm_status fm_guide_ahead(fm_guide *u, fm_error *err);
/* Draws the head's next id as fm_sampler_draw does, under the mask. left: how many more ids there is room for, this one included.
   free: the id that would be drawn without a mask, -1: not known; logits may be NULL beside it: where the mask forbids it,
   out->id is FM_UNDECIDED and the head stands where it stood. FM_ELIMIT: the grammar allows nothing that is not banned. */
fm_status fm_guide_draw(fm_guide *u, fm_head head, fm_sampler *s, const fm_generate_options *o, const float *logits, int32_t free,
                        fm_history h, int64_t left, bool want_logprob, fm_draw *out, fm_error *err);
enum { FM_UNDECIDED = -2 };
/* Moves the head past an id that was drawn for it. */
fm_status fm_guide_take(fm_guide *u, fm_head head, int32_t id, fm_error *err);

bool fm_guide_complete(const fm_guide *u, fm_head head);         /* the document may end here */
bool fm_guide_over(const fm_guide *u, fm_head head);             /* and has to: nothing can follow */

/* The bits of what may come next at the real head, (vocab_size + 63) / 64 words that live until the next call. */
fm_status fm_guide_mask(fm_guide *u, const uint64_t **bits, fm_error *err);

#endif
