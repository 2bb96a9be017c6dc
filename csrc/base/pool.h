/*
** pool.h - worker threads and a parallel for. Threads sleep outside fm_pool_enter/_leave; inside they
** spin for a moment, then sleep. A pool of one makes no threads. Which thread runs an item is not
** fixed: an item's result must not depend on it.
*/
#ifndef FM_BASE_POOL_H
#define FM_BASE_POOL_H

#include "base/status.h"

typedef struct fm_pool fm_pool;
typedef void (*fm_pool_fn)(void *arg, int64_t item, int worker);   /* worker in [0, n_threads) */

/* n_threads 0: one per core this process may use. FM_EMEMORY, FM_ELIMIT when threads are refused. */
fm_status fm_pool_new(fm_pool **out, int n_threads, fm_error *err);
void      fm_pool_free(fm_pool *p);
int       fm_pool_threads(const fm_pool *p);
/* Lets the pool's own threads (not the caller's) run on these CPUs only: "0-3,8". FM_EINVAL: no such list; FM_ELIMIT: the system
   refused it. */
fm_status fm_pool_pin(fm_pool *p, const char *cpus, fm_error *err);
/* How many CPUs a list names. */
fm_status fm_pool_count(const char *cpus, int *n, fm_error *err);
/* How many cores this process may use. */
int       fm_pool_cores(void);
/* Runs fn for items 0..n-1 and returns when all are done. Not reentrant. */
void      fm_pool_for(fm_pool *p, int64_t n, fm_pool_fn fn, void *arg);
/* Around many calls of fm_pool_for: keeps workers awake between them. Nests. */
void      fm_pool_enter(fm_pool *p);
void      fm_pool_leave(fm_pool *p);

#endif
