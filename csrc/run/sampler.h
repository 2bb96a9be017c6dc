/*
** sampler.h - from logits to one id: bias, penalties, temperature, top-k, top-p, min-p, the draw.
** The draw is Gumbel-max over what the filters left: argmax of logit / temperature + gumbel(noise), where the noise is keyed by
** (seed, sample, absolute index, id). A draft and the token that checks it use the same noise, so drafts never change the ids.
*/
#ifndef FM_RUN_SAMPLER_H
#define FM_RUN_SAMPLER_H

#include "base/mem.h"
#include "op/backend.h"

typedef struct fm_sampler {
  int64_t vocab_size;
  int64_t n_valid;                 /* ids from here on are padding, never drawn */
  float *logit;                    /* (vocab_size) working copy */
  int32_t *kept;                   /* (vocab_size) candidates */
  uint32_t *stamp, stamp_now;      /* (vocab_size) which ids were met in this draw */
  int32_t *count;                  /* (vocab_size) how often */
} fm_sampler;

typedef struct fm_draw {
  int32_t id;
  float logprob, logprob_filtered;         /* NaN unless want_logprob */
} fm_draw;

/* What a draw sees: the ids before the index it draws for; generated ones start at n_prompt. n_dropped more stood before. */
typedef struct fm_history { const int32_t *ids; int64_t n, n_prompt, n_dropped; } fm_history;

fm_status fm_sampler_new(fm_sampler **out, int64_t vocab_size, int64_t n_valid, fm_error *err);
void      fm_sampler_free(fm_sampler *s);
/* Index of the draw is history.n + n_dropped. Ties go to the lower id. Penalties: repeat (over all ids before), presence and frequency
   (over the generated ones). mask: a bit for each id that may be drawn, before any filter, as if the others had no
   probability; NULL: all. The id is -1 under a mask without a bit, and where biases ban all that is left. */
fm_draw   fm_sampler_draw(fm_sampler *s, const fm_generate_options *o, const float *logits, fm_history h,
                          const uint64_t *mask, bool want_logprob);
/* Whether the filters keep what a device has drawn from the whole row, so that it is the draw: noise belongs to ids. false: they do not,
   or only a look at the row can tell. */
bool      fm_sampler_keeps(const fm_generate_options *o, const fm_drawn *d);
/* The k best of the raw distribution, best first. */
void      fm_sampler_top(fm_sampler *s, const float *logits, int32_t k, fm_top_logprob *out);

/* log of the sum of exp over n logits. */
double fm_log_sum_exp(const float *logits, int64_t n);

#endif
