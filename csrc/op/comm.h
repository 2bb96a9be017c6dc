/*
** comm.h - what ranks say to each other: the collectives a device offers.
** Ranks form groups; a rank's end of a group is its fm_comm. All ranks of a group call the same collectives in the same order, with
** sizes that agree. A rank that fails aborts the hub, and the others' calls return FM_EDEVICE; so they do when somebody does not come
** within the hub's limit. Data is the device's memory; sizes are host memory. Results do not hang on who comes first.
** Ranks are threads of one process that share a hub, or each a process of its own (join_far), whose wire takes the hub's place.
*/
#ifndef FM_OP_COMM_H
#define FM_OP_COMM_H

#include "base/hub.h"
#include "base/wire.h"
#include "op/backend.h"

typedef struct fm_group fm_group;      /* what its ranks share; a device's own */
typedef struct fm_comm fm_comm;

/* Which answers are combined: experts of rank r are those from n_experts * r / ranks on. */
typedef struct fm_combine { int64_t n, row, all, top_k, n_experts, hidden_size; } fm_combine;

struct fm_collectives {
  fm_status (*found)(fm_group **out, fm_hub *hub, int n, fm_error *err);
  void      (*dissolve)(fm_group *g);                        /* when all have left */
  fm_status (*join)(fm_comm **out, fm_group *g, fm_device *dev, int me, fm_error *err);
  /* The end of a group of processes of which rank[0 .. n - 1] are the numbers and rank[me] is this one's. NULL: not offered. */
  fm_status (*join_far)(fm_comm **out, fm_wire *w, const int *rank, int n, int me, fm_device *dev, fm_error *err);
  void      (*leave)(fm_comm *m);

  fm_status (*barrier)(fm_ctx *c, fm_comm *m);
  /* x[i] += part of rank 0 [i] + part of rank 1 [i] + ..., i < len, summed in this order: every rank gets the same bits.
     On GPUs x and part begin at multiples of 16 bytes; when they are long, parts are rounded to bf16 first where the arithmetic is not
     f32, and sums of many are NCCL's, in its own order. */
  fm_status (*all_reduce)(fm_ctx *c, fm_comm *m, float *x, const float *part, int64_t len);
  /* out: the parts of all ranks one behind the other, size[r] bytes each; `mine` may already stand in its place there. */
  fm_status (*all_gather)(fm_ctx *c, fm_comm *m, void *out, const void *mine, const int64_t *size);
  /* in: parts for rank 0, 1, ..., in_size[r] bytes each, one behind the other; out: those that the ranks have for this one. */
  fm_status (*all_to_all)(fm_ctx *c, fm_comm *m, void *out, const int64_t *out_size, const void *in, const int64_t *in_size);
  fm_status (*broadcast)(fm_ctx *c, fm_comm *m, void *data, int64_t size, int root);
  /* out (n, width[0] + width[1] + ...) f32: the ranks' columns side by side; mine (n, width[me]). out NULL: this rank has no use for them. */
  fm_status (*all_columns)(fm_ctx *c, fm_comm *m, float *out, const float *mine, int64_t n, const int64_t *width);
  /* out[i] += sum over k of weight[i,k] * what the rank that has expert id[i,k] answered, in order, i < j->n; every rank has answered all
     rows (j->all, top_k), of which this one's begin at j->row. NULL: not offered. */
  fm_status (*all_combine)(fm_ctx *c, fm_comm *m, float *out, const void *answers, const int32_t *id, const float *weight, const fm_combine *j);
};

/* The front door: a NULL comm is a group of one. */
int       fm_comm_size(const fm_comm *m);
int       fm_comm_me(const fm_comm *m);
fm_status fm_op_barrier   (fm_ctx *c, fm_comm *m);
fm_status fm_op_all_reduce(fm_ctx *c, fm_comm *m, float *x, const float *part, int64_t len);
fm_status fm_op_all_gather(fm_ctx *c, fm_comm *m, void *out, const void *mine, const int64_t *size);
fm_status fm_op_all_to_all(fm_ctx *c, fm_comm *m, void *out, const int64_t *out_size, const void *in, const int64_t *in_size);
fm_status fm_op_broadcast (fm_ctx *c, fm_comm *m, void *data, int64_t size, int root);
fm_status fm_op_all_combine(fm_ctx *c, fm_comm *m, float *out, const void *answers, const int32_t *id, const float *weight, const fm_combine *j);
fm_status fm_op_all_columns(fm_ctx *c, fm_comm *m, float *out, const float *mine, int64_t n, const int64_t *width);

struct fm_comm { int me, n; const fm_collectives *ops; };   /* first member of every device's own struct */

#endif
