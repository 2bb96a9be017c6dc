/*
** hub.h - where threads that work together meet. Waiting blocks, never spins; every wait has a limit, and an abort word ends all of
** them at once. Threads are started here too, and a thread that does not come back is left behind after a while, not waited for.
*/
#ifndef FM_BASE_HUB_H
#define FM_BASE_HUB_H

#include "base/status.h"

typedef struct fm_hub fm_hub;
typedef struct fm_worker fm_worker;

/* A place where n threads wait for each other; zero but for n at first. One hub may have many. */
typedef struct fm_door { int n, arrived; unsigned round, epoch; } fm_door;

/* limit_s: how long a wait may take, in seconds. */
fm_status fm_hub_new (fm_hub **out, double limit_s, fm_error *err);
void      fm_hub_free(fm_hub *h);
/* Waits until all n of the door have come. FM_EDEVICE: one did not come in time, which aborts the hub; or the hub was aborted. */
fm_status fm_hub_meet(fm_hub *h, fm_door *d, fm_error *err);
/* Ends all waits, those to come as well. who: whose fault it is; the first one counts. */
void      fm_hub_abort(fm_hub *h, int who);
/* Whose fault the abort was, -1: a limit; -2: there was none. */
int       fm_hub_culprit(fm_hub *h);
double fm_hub_limit(const fm_hub *h);
/* How many resets there were: what an abort has broken belongs to an earlier one. */
unsigned fm_hub_epoch(fm_hub *h);
/* As if there had been no abort. Nobody may be waiting. */
void      fm_hub_reset(fm_hub *h);

/* A thread that runs fn(arg) once for each fm_worker_go; arg must live until fm_worker_free says true. fn's result false: the thread
   ends there, which aborts the hub. FM_ELIMIT: the system refused it. */
typedef bool (*fm_worker_fn)(void *arg);
fm_status fm_worker_new (fm_worker **out, fm_hub *h, fm_worker_fn fn, void *arg, fm_error *err);
void      fm_worker_go  (fm_worker *w);
/* Waits for seconds at most until the thread has done what it was told; false: it has not. For one that is gone nobody waits. */
bool      fm_worker_wait(fm_worker *w, double seconds);
bool      fm_worker_gone(fm_worker *w);
/* Ends the thread. false: it does not come back within a second, and goes on to use what it was given: leave that to it. */
bool      fm_worker_free(fm_worker *w);

#endif
