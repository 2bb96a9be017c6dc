/*
** model.h - the one forward pass there is: rows of several sequences through a list of blocks.
** A pass is advanced layer by layer, so that a host with a frame to draw can stop in between.
**
** Roles. Every position is `prompt` (given by the caller) or `generated` (sampled). The two take different
** paths through MLA: expanded keys and values, or absorbed queries. Within a role a row's bits depend on the ids
** before it and their roles only; never on how many rows run together. The rows of one pass have one role.
*/
#ifndef FM_MODEL_MODEL_H
#define FM_MODEL_MODEL_H

#include "model/kv.h"
#include "model/weights.h"
#include "op/comm.h"

typedef enum fm_role { FM_PROMPT, FM_GENERATED } fm_role;

typedef struct fm_ranks fm_ranks;      /* ranks.h */

enum { FM_FEW_ROWS = 32 };             /* of a prompt, for which the way of sampled rows is faster: 16 in 7 ms, not 15 (H100) */

typedef struct fm_net {
  const fm_config *cfg;
  const fm_weights *w;
  fm_kv *kv;
  int part;                            /* of kv, where its rank's rows are */
  fm_ctx *c;
  fm_ranks *ranks;                     /* passes are run by all of them; NULL: by c alone */
  const fm_shard *shard;               /* one rank of several: what of the model it has; else NULL */
  fm_comm *tp, *ep, *share, *pipe;     /* its groups, NULL where it is alone: rows' parts, experts, of these those with the same rows,
                                          and the same place in the other stages */
  const int64_t *home;                 /* (ranks of ep) rows of the pass that each of them is at home for; set with every pass */
  bool generated;                      /* shard: the role of the pass, which a rank without rows cannot know */
  fm_ctx *host;                        /* the CPU, where routed experts are computed; NULL: the device has them too */
  int64_t n_positions;                 /* the longest that a sequence may become */
  int64_t n_turns;                     /* rows of the rotation tables: a window moves on for a while before it is turned back */
  int64_t n_valid;                     /* ids from here on are padding, never drawn */
  float *cos, *sin;                    /* (n_turns, rope dim / 2), the device's, owned */
  int64_t *load;                       /* (layers, n_routed_experts) rows that chose each expert so far, the device's, owned; NULL: no experts */
} fm_net;

/* Rows of one sequence. Main pass: ids[0..n) stand at cache indices index .. index+n-1.
   MTP pass: h (n, hidden_size) final-normed states of the indices before, ids at index .. : row i joins
   h[i] (of index + i - 1) with ids[i] and is stored at index + i; it predicts index + i + 1. */
typedef struct fm_seg {
  fm_kv_seq *seq;
  const int32_t *ids;
  const float *h;                      /* host */
  int64_t index, n;
  fm_role role;
  int64_t n_logits;                    /* of the last n_logits rows */
  int64_t row, logits_row;             /* out: where its rows stand in pass.hidden, pass.logits */
} fm_seg;

typedef struct fm_pass {
  fm_net *net;
  fm_scratch_mark mark;                /* what to give back at the end */
  bool mtp;
  int64_t n, n_logits, layer, n_layers;   /* rows; next layer, end */
  int32_t *ids, *pos;                  /* (n) ids, rotation positions; host */
  fm_span *prompt, *decode; int64_t n_prompt, n_decode, n_span;   /* spans by role; all of them from `prompt` on */
  int32_t *logit_row;                  /* (n_logits) host */
  fm_draw_rule *rule;                  /* (n_logits) host, or NULL: the device does not draw */
  float *x;                            /* (n, hidden_size) residual stream */
  float *hidden;                       /* (n, hidden_size) final-normed, after the end */
  float *logits;                       /* (n_logits, vocab_size), after the end */
  fm_drawn *drawn;                     /* (n_logits) after the end, when there are rules */
} fm_pass;                             /* x, hidden, logits, drawn: the device's */

fm_status fm_net_init(fm_net *net, fm_ctx *c, const fm_config *cfg, const fm_weights *w, fm_kv *kv,
                      int64_t n_positions, int64_t n_valid, fm_error *err);
void      fm_net_free(fm_net *net);
/* Counts choices of experts from 0 on again. */
void      fm_net_forget_load(fm_net *net);
/* Moves a sequence's window: rows [keep, keep + n) go, n a multiple of FM_PAGE and keep + n < seq->len; the first `keep` are turned
   to stand before the rest, which is left alone (until the tables end: then it is turned back). What follows is computed as if the
   positions went on. On failure the rows are good for nothing:
   fm_kv_truncate them to 0. shift.c */
fm_status fm_net_shift(fm_net *net, fm_kv_seq *seq, int64_t keep, int64_t n, fm_error *err);

/* Begins a pass over segments whose cache rows are reserved; embeds the ids. Scratch is taken until fm_pass_end;
   segs are read only here. rule (n_logits): the device is to draw by them; NULL: it is not. Errors are in c->err. */
fm_status fm_pass_begin(fm_pass *p, fm_net *net, fm_seg *segs, int64_t n_segs, bool mtp, const fm_draw_rule *rule);
/* Runs the next layer; after the last one final norm and logits. *done tells. */
fm_status fm_pass_layer(fm_pass *p, bool *done);
/* The residual stream as it stands (n, hidden_size): p->x, or a copy in scratch of what the ranks have. */
fm_status fm_pass_states(fm_pass *p, float **x);
void      fm_pass_end(fm_pass *p);

fm_rope   fm_pass_rope(const fm_pass *p, int64_t dim);

/* Adds a product to p->x (all its rows): of a weight whose columns are split among ranks, the sum of all ranks' products. mm's out, ldo,
   n and add are set here. */
fm_status fm_pass_add(fm_pass *p, fm_mm mm);

/* Blocks; each adds to p->x. */
fm_status fm_block_mla(fm_pass *p, const fm_layer *l);
fm_status fm_block_gqa(fm_pass *p, const fm_layer *l);
fm_status fm_block_mlp(fm_pass *p, const fm_layer *l);
fm_status fm_block_moe(fm_pass *p, const fm_layer *l);
/* The routed experts where they are spread over ranks. spread.c */
fm_status fm_spread_experts(fm_pass *p, const fm_layer *l, const int32_t *id, const float *weight, const fm_experts *e);
/* x = eh_proj [enorm(embedding of id); hnorm(h)] for every row of a MTP pass. */
fm_status fm_mtp_join(fm_pass *p, const float *h);

#endif
