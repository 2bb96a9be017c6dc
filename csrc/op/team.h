/*
** team.h - one thread a rank, all running the same step. Rank 0 is the caller's own thread.
** A step that fails anywhere fails everywhere, within the limit: waits of the others are aborted. When all ranks came back from it the
** next step may go well; when one did not, the team is lost, and every later step fails at once.
** For specs: $FATHOM_FAULT = "fail:R:K", "hang:R:K" or "die:R:K" makes rank R do that in its K-th step.
** Owner: fm_team owns threads and hub.
*/
#ifndef FM_OP_TEAM_H
#define FM_OP_TEAM_H

#include "base/hub.h"

typedef struct fm_team fm_team;
/* What each rank does; FM_OK, or its message in *err. */
typedef fm_status (*fm_team_fn)(void *arg, int rank, fm_error *err);

/* limit_s: how long anybody may wait for another that is there, in seconds; 0: $FATHOM_RANK_SECONDS, or 60. */
fm_status fm_team_new (fm_team **out, int n, double limit_s, fm_error *err);
/* false: a rank did not come back. What it was given (everything its fn may reach) is its own then, and must not be freed. */
bool      fm_team_free(fm_team *t);
int       fm_team_size(const fm_team *t);
fm_hub   *fm_team_hub (fm_team *t);
/* Runs fn(arg, rank) on every rank and waits for all. arg must outlive a rank that is lost: never the caller's stack. */
fm_status fm_team_run (fm_team *t, fm_team_fn fn, void *arg, fm_error *err);
bool      fm_team_lost(const fm_team *t);
double    fm_team_limit(double limit_s);         /* what fm_team_new makes of it */

#endif
