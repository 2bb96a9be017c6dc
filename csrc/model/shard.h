/*
** shard.h - what one rank holds of a model. Stages of layers (pp) are split into ranks that are data-parallel (dp) or tensor-parallel
** (tp) to each other; experts are spread over neighbours among a stage's ranks (ep). Rank (stage, d, t) has number
** (stage * dp + d) * tp + t.
**
**   tp   attention by heads, dense and shared MLP by the columns of down (and rows of gate and up), experts too when ep is 1; the head by ids
**   ep   whole experts
**   pp   whole layers; the first stage has the embedding, the last one norm, head, MTP layer and its embedding
**   dp   everything
*/
#ifndef FM_MODEL_SHARD_H
#define FM_MODEL_SHARD_H

#include "io/config.h"

enum { FM_MOST_STAGES = 64, FM_MOST_RANKS = 320 };

typedef struct fm_forms { int pp, dp, tp, ep; } fm_forms;

typedef struct fm_shard {
  int rank, stage, d, t, e;              /* e: which of ep */
  fm_forms of;
  int64_t layer, end;                    /* layers [layer, end) of n_layers, MTP's last */
  int64_t n_layers;
} fm_shard;

/* Where part i of n things in `parts` parts begins: as even as they go, the larger ones last. */
static inline int64_t fm_part(int64_t n, int parts, int i) { return n * i / parts; }

/* The same in runs of `unit`; what is left over is the last one's. */
static inline int64_t fm_part_of(int64_t n, int64_t unit, int parts, int i) {
  return i == parts ? n : unit * fm_part(n / unit, parts, i);
}
/* Which ids a rank's rows of the head are for: those from part t on. */
static inline int64_t fm_head_part(const fm_config *cfg, int tp, int t) {
  return fm_part_of(cfg->vocab_size, cfg->vocab_size / 128 >= tp ? 128 : 1, tp, t);
}

/* n_layers: MTP's included. Layers are split by number, the MTP layer stays with the last stage. */
void      fm_shard_make(fm_shard *s, const fm_config *cfg, fm_forms of, bool mtp, int rank);
/* Whether a model can be split like this over n devices; FM_EUNSUPPORTED says why not. */
fm_status fm_forms_check(const fm_forms *of, const fm_config *cfg, int n, fm_error *err);

#endif
