/*
** ranks.h - a model on several ranks: each has a context, its weights, its part of the cache, and runs every pass with the others.
** Whoever asks for a pass sees one model: segments are dealt to the ranks that hold their pages, and what the last stage computed comes
** back in the segments' order, to the caller's thread, which is rank 0's.
**
** Ranks are threads of this process, or each is a process (wire): then this one has its own rank only, knows the segments of all, as all
** ask for the same passes, and is told what came of the others'.
** Owner: fm_ranks owns its team, the contexts and weights of its other ranks, all nets and groups; the caller's context and weights are
** borrowed, as is the wire.
*/
#ifndef FM_MODEL_RANKS_H
#define FM_MODEL_RANKS_H

#include "model/model.h"
#include "op/team.h"

typedef struct fm_rank {
  fm_shard shard;
  fm_ctx *c, own;                        /* own: of ranks beside the caller's; c NULL: another process's */
  fm_config cfg;                         /* with this rank's heads only */
  fm_weights *w;
  fm_net net;
  bool met; unsigned epoch;              /* its groups have met, in this epoch of the hub */
  int64_t *home;                         /* net.home */
  fm_pass pass;
  fm_seg *seg; int64_t n_segs, cap_seg;  /* those of the pass that are this rank's, */
  struct fm_dealt { int64_t row, logits_row; } *place; int64_t cap_place;   /* where their rows stand in it, */
  fm_draw_rule *rule; int64_t cap_rule;  /* and how their rows are drawn */
} fm_rank;

/* n ranks, none of which is opened yet. c: of the caller's rank, which is rank 0, or the process's on the wire (NULL: there is none). */
fm_status fm_ranks_new (fm_ranks **out, const fm_config *cfg, fm_forms of, bool mtp, fm_ctx *c, fm_wire *wire, fm_error *err);
/* Ends their threads. false: one of them is lost, and may still use all of this, and cache and store: they are left to it. */
bool      fm_ranks_stop(fm_ranks *r);
void      fm_ranks_free(fm_ranks *r);    /* when they have stopped, and the cache is gone */
int       fm_ranks_size(const fm_ranks *r);
int       fm_ranks_me  (const fm_ranks *r);    /* the caller's */
fm_rank  *fm_ranks_at  (fm_ranks *r, int i);
fm_forms  fm_ranks_forms(const fm_ranks *r);
/* Parts of a cache for all of them; out has room for fm_ranks_size. */
void      fm_ranks_parts(fm_ranks *r, fm_kv_part *out);
/* When contexts are open and weights filled: nets and groups. *net is what passes are asked of. */
fm_status fm_ranks_ready(fm_ranks *r, fm_net *net, fm_kv *kv, int64_t n_positions, int64_t n_valid, fm_error *err);

/* model.c's pass on a net with ranks. */
fm_status fm_ranks_begin (fm_pass *p, fm_seg *segs, int64_t n_segs, const fm_draw_rule *rule);
fm_status fm_ranks_layer (fm_pass *p);
fm_status fm_ranks_states(fm_pass *p, float **x);
void      fm_ranks_end   (fm_pass *p);

#endif
