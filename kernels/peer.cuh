/*
** peer.cuh - what ranks do by kernels over each other's memory.
*/
#ifndef FM_KERNELS_PEER_CUH
#define FM_KERNELS_PEER_CUH

#include "comm.cuh"

constexpr int FM_PEERS = 16;             /* ranks of a group, at most */
constexpr int FM_TURNS = 64;             /* words in which kernels count their calls */

/* A rank's memory that the others write to; zeros at first. */
struct fm_mailbox { char *base; };
struct fm_peers {
  int me, n;
  fm_mailbox box[FM_PEERS];              /* of all ranks, this one included */
  uint32_t *turn;                        /* (FM_TURNS) this rank's own, zeros at first */
  volatile int *ended;                   /* the host's memory: not 0 ends all waits, and what was waited for is not there */
};

int64_t fm_mailbox_size(int n);          /* bytes, for n ranks */

/* x[i] += part of rank 0 [i] + part of rank 1 [i] + ..., in this order; only where can_add says so. FM_EINVAL: x or part is not
   aligned to 16 bytes. */
bool      fm_peer_can_add(int64_t len);
fm_status fm_peer_add(fm_ctx *c, const fm_peers *p, float *x, const float *part, int64_t len);
/* The same for many, where can_add_long says so; parts are rounded to bf16 unless the arithmetic is f32. */
bool      fm_peer_can_add_long(const fm_peers *p, int64_t len);
fm_status fm_peer_add_long(fm_ctx *c, const fm_peers *p, float *x, const float *mine, int64_t len);
/* fm_op_all_to_all, fm_op_all_gather; any sizes. */
fm_status fm_peer_swap(fm_ctx *c, const fm_peers *p, char *out, const int64_t *out_size, const char *in, const int64_t *in_size);
fm_status fm_peer_gather(fm_ctx *c, const fm_peers *p, char *out, const char *mine, const int64_t *size);
/* fm_op_all_combine. */
fm_status fm_peer_combine(fm_ctx *c, const fm_peers *p, float *out, const void *answers, const int32_t *id, const float *weight,
                          const fm_combine *j);
/* fm_op_all_columns, where can_columns says so. */
bool      fm_peer_can_columns(int64_t n, const int64_t *width, int ranks);
fm_status fm_peer_columns(fm_ctx *c, const fm_peers *p, float *out, const float *mine, int64_t n, const int64_t *width);

#endif
