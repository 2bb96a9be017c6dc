/*
** weights.h - checkpoint names -> slots. Matrices stay in the mapped file in their stored dtype; norms and
** biases, which are small, become f32. Owner: fm_weights owns the store and the f32 copies.
** A rank among others (shard.h) takes its own slices: rows are where they are in the mapping, columns are copied.
*/
#ifndef FM_MODEL_WEIGHTS_H
#define FM_MODEL_WEIGHTS_H

#include "io/config.h"
#include "io/safetensors.h"
#include "model/shard.h"
#include "op/backend.h"

typedef struct fm_mlp_weights { fm_mat gate, up, down; } fm_mlp_weights;

typedef struct fm_layer {
  const float *input_norm, *post_norm;
  /* attention */
  fm_mat q, q_a, q_b, kv_a, kv_b, o;             /* MLA: q or q_a, q_b */
  fm_mat k, v;                                   /* qwen2, with q and o */
  const float *q_bias, *k_bias, *v_bias;
  const float *q_a_norm, *kv_a_norm;
  /* feed-forward */
  bool moe;
  fm_mlp_weights mlp;                            /* dense, or the shared experts (gate.data NULL: none) */
  fm_mat router;
  const float *router_bias;                      /* noaux_tc, else NULL */
  fm_mat *gate, *up, *down;                      /* (n_routed_experts) each; those of other ranks are empty */
  const float *host_norm;                        /* post_norm where the host can read it, for experts that stay there */
} fm_layer;

typedef struct fm_mtp_weights { const float *enorm, *hnorm, *norm; fm_mat eh_proj; } fm_mtp_weights;

typedef struct fm_weights {
  fm_store *store;
  bool borrows;                                  /* the store is somebody else's */
  fm_shard shard;                                /* how much of it all is filled: everything unless set before */
  fm_mat embed, head;                            /* head: of ids from head_first on; tied: those rows of embed */
  int64_t head_first;
  bool tied;
  const float *norm;
  fm_layer *layer;                               /* num_hidden_layers, then the MTP layer when asked for */
  int64_t n_layers;
  bool has_mtp;
  fm_mtp_weights mtp;
  struct { void **p; int64_t n, cap; } owned;
  /* what the last filled slot holds, and the device's blocks that placed slots lie in */
  struct fm_placing { fm_mat *mat; const float **vector; int64_t len; bool exact, expert; } *fresh;
  int64_t n_fresh, cap_fresh, n_placed;
  char *place;                  /* where the next of them goes */
  fm_ctx *device;
  bool experts_stay;                             /* routed experts are not moved: they are the host's to compute */
  struct { void **p; int64_t n, cap; } block;
} fm_weights;

/* How much of a checkpoint is read: its headers, its scales and vectors too, or every weight. */
typedef enum fm_reading { FM_HEADERS, FM_SCALES, FM_ALL } fm_reading;

/* Takes over store (also when it fails). Nothing but the header is read until _layer. */
fm_status fm_weights_new (fm_weights **out, fm_store *store, const fm_config *cfg, bool mtp, fm_error *err);
/* Fills slot i of 0 .. n_layers: the layers, then embedding, head and final norm. Checks names, shapes, dtypes; scales and biases for
   finite values, all weights too when they are read. *bytes: of the tensors it took. */
fm_status fm_weights_fill(fm_weights *w, const fm_config *cfg, int64_t i, fm_reading reading, int64_t *bytes,
                          fm_error *err);
/* Bytes of all that a rank takes from the store, which stays the caller's; names, shapes and dtypes are checked. NULL: one rank. */
fm_status fm_weights_size(fm_store *store, const fm_config *cfg, bool mtp, const fm_shard *shard, int64_t *size, fm_error *err);
/* Moves the slot filled last into the memory of c's device, in the dtype of its arithmetic; nothing to do where that is the
   host's. A piece of it a call, until *done. The experts of a layer stand at equal distances, or stay (w->experts_stay). */
fm_status fm_weights_place(fm_weights *w, fm_ctx *c, bool *done, fm_error *err);
/* Bytes of the routed experts among what loading takes. */
int64_t   fm_weights_expert_bytes(const fm_store *store, const fm_config *cfg, bool mtp);
void      fm_weights_free(fm_weights *w);

#endif
