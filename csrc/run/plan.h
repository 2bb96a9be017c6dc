/*
** plan.h - what follows from config, options and devices before any weight is read.
*/
#ifndef FM_RUN_PLAN_H
#define FM_RUN_PLAN_H

#include "run/engine.h"

typedef struct fm_setup {
  fm_dtype cache, arithmetic;
  int64_t ctx, seqs, n_pages, prefix_pages, chunk, budget;
  int drafts;
  bool host_experts;
  fm_forms forms;
  int n_ranks;
} fm_setup;

/* The numbers among the options, before any device is opened. */
fm_status fm_setup_check(const fm_config *g, const fm_load_options *o, fm_error *err);
/* ops: of the devices; stored: fm_stored_dtype. */
fm_status fm_setup_make(fm_setup *s, const fm_backend *ops, const fm_config *g, fm_dtype stored, const fm_load_options *o, fm_error *err);
/* Bytes of activations of one pass at its widest: a prompt's chunk, or all sequences decoding. */
int64_t   fm_setup_scratch(const fm_config *g, const fm_backend *ops, const fm_setup *s);
/* What a checkpoint counts as: f8 where any of it is, else bf16 where any is of 16 bits. */
fm_dtype  fm_stored_dtype(const fm_store *store);
/* c: the first device, or only its table for cards that are not here. *p begins as zeros, and is the caller's to free in any case. */
fm_status fm_plan_fill(fm_plan *p, fm_ctx *c, fm_store *store, const fm_config *g, const fm_setup *s, const fm_load_options *o,
                       fm_error *err);

#endif
