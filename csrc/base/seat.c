/*
** seat.c - which of several processes this one is, by its environment.
**
** Names: torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, where its own store listens: ours is a port further. srun
** sets SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, and who began the step. Open MPI sets OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/wire.h"

enum { PORT = 29411, PORTS = 4096 };     /* where nobody says: one of so many, by the job's number */

typedef struct launcher { const char *name, *rank, *world, *local, *n_local, *addr, *port, *job; int further; } launcher;

static const launcher known[] = {
  { "fathom", "FATHOM_RANK", "FATHOM_WORLD", "FATHOM_LOCAL_RANK", "FATHOM_LOCAL_WORLD", "FATHOM_ADDR", NULL, NULL, 0 },
  { "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", NULL, 1 },
  { "srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, "SLURM_LAUNCH_NODE_IPADDR", NULL, "SLURM_JOB_ID", 0 },
  { "mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "OMPI_MCA_ess_base_jobid", 1 },
};

/* A number from a variable; -1: it is not set. */
static fm_status number(const char *name, int most, int *out, fm_error *err) {
  const char *said = name ? getenv(name) : NULL;
  char *end;
  *out = -1;
  if (!said || !*said) return FM_OK;
  long v = strtol(said, &end, 10);
  if (*end || v < 0 || v > most) return fm_fail(err, FM_EDEVICE, "$%s is \"%.40s\", expected a number from 0 to %d", name, said, most);
  *out = (int)v;
  return FM_OK;
}

/* "host", "host:port", "[v6]:port"; a bare v6 address has colons of its own. */
static fm_status address(fm_seat *s, const char *said, const char *name, fm_error *err) {
  const char *colon = strrchr(said, ':'), *host = said;
  size_t len = strlen(said);
  if (colon && (colon == strchr(said, ':') || colon[-1] == ']')) {
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (*end || port < 1 || port > 65535) return fm_fail(err, FM_EDEVICE, "$%s is \"%.80s\", expected host:port", name, said);
    s->port = (int)port;
    len = (size_t)(colon - said);
  }
  if (len > 2 && host[0] == '[' && host[len - 1] == ']') host++, len -= 2;
  if (len == 0 || len >= sizeof s->host) return fm_fail(err, FM_EDEVICE, "$%s is \"%.80s\", expected host:port", name, said);
  memcpy(s->host, host, len);
  s->host[len] = 0;
  return FM_OK;
}

static fm_status take(fm_seat *s, const launcher *l, fm_error *err) {
  const char *addr = getenv(l->addr), *job = l->job ? getenv(l->job) : NULL;
  int port;
  if (s->rank < 0) return fm_fail(err, FM_EDEVICE, "$%s is %d and $%s is not set", l->world, s->world, l->rank);
  if (s->rank >= s->world) return fm_fail(err, FM_EDEVICE, "$%s is %d of $%s = %d", l->rank, s->rank, l->world, s->world);
  TRY(number(l->local, 1 << 20, &s->local, err));
  TRY(number(l->port, 65535 - l->further, &port, err));
  TRY(number(l->n_local, 1 << 20, &s->n_local, err));
  if (s->n_local < 0) s->n_local = addr && *addr && strncmp(addr, "127.", 4) && strncmp(addr, "localhost", 9) ? 0 : s->world;
  strcpy(s->host, "127.0.0.1");
  s->port = port > 0 ? port + l->further : PORT + (job ? (int)(strtoul(job, NULL, 10) % PORTS) : 0);
  if (addr && *addr) TRY(address(s, addr, l->addr, err));
  return FM_OK;
}

fm_status fm_seat_find(fm_seat *out, fm_error *err) {
  *out = (fm_seat){ .world = 1, .local = -1 };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    fm_seat s = { .local = -1 };
    // names as common as these are torchrun's where its address is beside them
    if (strcmp(known[i].name, "torchrun") == 0 && !getenv(known[i].addr)) continue;
    TRY(number(known[i].world, 1 << 20, &s.world, err));
    if (s.world < 0) continue;
    TRY(number(known[i].rank, 1 << 20, &s.rank, err));
    if (s.world <= 1) return FM_OK;
    TRY(take(&s, &known[i], err));
    *out = s;
    return FM_OK;
  }
  return FM_OK;
}
