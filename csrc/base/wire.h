/*
** wire.h - processes that work together: which of them this one is, connections between all of them, exchanges with a limit.
** The first process waits at an address for the others and tells each where the rest are. Whoever fails or ends breaks all connections, so
** the others notice at once; who hangs is waited for no longer than the limit. What is broken stays broken.
** Owner: fm_wire owns its sockets. One thread uses it.
*/
#ifndef FM_BASE_WIRE_H
#define FM_BASE_WIRE_H

#include "base/status.h"

typedef struct fm_wire fm_wire;

enum { FM_WIRE_MOST = 320 };             /* processes */

/* Which process this is. world 1: it works alone, and nothing else is set. */
typedef struct fm_seat {
  int rank, world, local, n_local;       /* local: which of the n_local on this machine, -1 and 0 when nobody said */
  char host[256]; int port;              /* where rank 0 waits */
} fm_seat;

/* By $FATHOM_RANK, $FATHOM_WORLD and $FATHOM_ADDR ("host:port"), or by what srun, mpirun or torchrun have set. FM_EDEVICE: what they say
   makes no sense. */
fm_status fm_seat_find(fm_seat *out, fm_error *err);

/* Waits until all are there. FM_EDEVICE: not all were within limit_s seconds, which is also what every later wait may take. */
fm_status fm_wire_open (fm_wire **out, const fm_seat *seat, double limit_s, fm_error *err);
void      fm_wire_close(fm_wire *w);
int       fm_wire_me   (const fm_wire *w);
int       fm_wire_size (const fm_wire *w);
double    fm_wire_limit(const fm_wire *w);
/* in[i], in_size[i] bytes, goes to process rank[i], from which out[i] comes, i < n; this one may be among them. All of them call with
   the same list. FM_EDEVICE: somebody is gone, did not answer in time, or sends another size than is expected. */
fm_status fm_wire_swap (fm_wire *w, const int *rank, int n, void *const *out, const int64_t *out_size, const void *const *in,
                        const int64_t *in_size, fm_error *err);
/* Whether all are still there. */
fm_status fm_wire_look (fm_wire *w, fm_error *err);
/* This process gives up: the others notice. */
void      fm_wire_break(fm_wire *w, const char *why);

#endif
