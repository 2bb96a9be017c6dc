/*
** comm.cu - collectives over NCCL, which is opened when ranks first meet, and where all reach each other's memory over our kernels (peer.cu).
**
** Nothing waits on a device for ever. A rank's host thread looks at its stream, the hub's abort word and the clock (fm_cuda_sync,
** fm_cuda_look); when it is time it sets the word that our kernel looks at and aborts NCCL's communicator. What was aborted is made anew when
** all meet again: each reset of the hub is an epoch, and a communicator belongs to one.
**
** Ranks that are processes have NCCL alone. They meet over their wire, and a group is one member's, with a hub of its own.
*/
#include "comm.cuh"
#include "peer.cuh"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#if __has_include(<nccl.h>)
#include <nccl.h>

/* ---- the library ---- */

struct nccl_lib {
  void *lib;
#define FN(name) decltype(&nccl##name) name
  FN(GetUniqueId); FN(CommInitRankConfig); FN(CommAbort); FN(CommGetAsyncError); FN(AllReduce); FN(AllGather); FN(Broadcast);
  FN(Send); FN(Recv); FN(GroupStart); FN(GroupEnd); FN(GetErrorString);
#undef FN
};

static nccl_lib open_lib() {
  nccl_lib n = {};
  bool good = true;
  for (const char *name : { "libnccl.so.2", "libnccl.so" })
    if (!n.lib) n.lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (!n.lib) return n;
#define FN(name) good = (n.name = (decltype(n.name))dlsym(n.lib, "nccl" #name)) != NULL && good
  FN(GetUniqueId); FN(CommInitRankConfig); FN(CommAbort); FN(CommGetAsyncError); FN(AllReduce); FN(AllGather); FN(Broadcast);
  FN(Send); FN(Recv); FN(GroupStart); FN(GroupEnd); FN(GetErrorString);
#undef FN
  if (!good) n.lib = NULL;
  return n;
}

static const nccl_lib &nccl() {
  static const nccl_lib lib = open_lib();
  return lib;
}

/* ---- groups and their members ---- */

struct fm_member {
  fm_comm comm;                          /* first */
  fm_group *group;
  fm_cuda *d;
  fm_member *next;                       /* of this device */
  ncclComm_t nccl;                       /* NULL: not met yet, or aborted */
  unsigned epoch;
  fm_mailbox mine;
  bool reached;                          /* all reach each other's memory */
  fm_peers peers;
};

struct fm_group {
  fm_hub *hub;
  fm_wire *wire;                         /* of processes: what each one's group has in place of the others' threads */
  int rank[FM_PEERS];                    /* which of the wire's they are */
  fm_door door;
  ncclUniqueId id;
  bool good;                             /* rank 0 had an id to give */
  fm_member *at[FM_PEERS];
};

static fm_status found(fm_group **out, fm_hub *hub, int n, fm_error *err) {
  if (n > FM_PEERS) return fm_fail(err, FM_EUNSUPPORTED, "%d ranks in a group, %d are the most", n, FM_PEERS);
  if (!nccl().lib)
    return fm_hint(err, fm_fail(err, FM_EDEVICE, "cuda: several GPUs need NCCL, and there is no libnccl.so.2"),
                   "install NCCL 2.18 or newer, or name its folder in LD_LIBRARY_PATH");
  fm_group *g = (fm_group *)calloc(1, sizeof *g);
  if (!g) return fm_no_memory(err, sizeof *g);
  g->hub = hub;
  g->door.n = n;
  *out = g;
  return FM_OK;
}

static std::atomic<int> aborting;        /* communicators on their way out */

static std::atomic<int> far;             /* members of groups of processes */

/* NCCL's threads do not live through the ends of static objects, its own among them: a process that leaves before they are gone leaves at
   once, with what it wrote. */
static void leave_at_once(int status, void *) {
  if (!far && !aborting) return;
  fflush(NULL);
  _exit(status);
}

static void nap_ms() {
  timespec t = { 0, 1000000 };
  nanosleep(&t, NULL);
}

static void dissolve(fm_group *g) {
  for (int i = 0; i < 2000 && aborting; i++) nap_ms();
  free(g);
}

static fm_status join(fm_comm **out, fm_group *g, fm_device *dev, int me, fm_error *err) {
  fm_member *m = (fm_member *)calloc(1, sizeof *m);
  if (!m) return fm_no_memory(err, sizeof *m);
  m->comm = { me, g->door.n, &fm_cuda_collectives };
  m->group = g;
  m->d = (fm_cuda *)dev;
  m->next = m->d->members;
  m->d->members = m;
  g->at[me] = m;
  *out = &m->comm;
  return FM_OK;
}

static fm_status join_far(fm_comm **out, fm_wire *w, const int *rank, int n, int me, fm_device *dev, fm_error *err) {
  fm_group *g;
  fm_hub *hub;
  TRY(fm_hub_new(&hub, fm_wire_limit(w), err));
  fm_status status = found(&g, hub, n, err);
  if (status != FM_OK) {
    fm_hub_free(hub);
    return status;
  }
  g->wire = w;
  for (int r = 0; r < n; r++) g->rank[r] = rank[r];
  static int told = on_exit(leave_at_once, NULL);
  (void)told;
  status = join(out, g, dev, me, err);
  far += status == FM_OK;
  return status;
}

/* What NCCL has on the device ends soon; the rest of its farewell waits for the other ranks, so a thread of its own does. */
static void abort_nccl(fm_member *m) {
  if (!m->nccl) return;
  aborting++;
  std::thread([](ncclComm_t comm, int device) {
    cudaSetDevice(device);
    nccl().CommAbort(comm);
    aborting--;
  }, m->nccl, m->d->index).detach();
  m->nccl = NULL;
}

static void leave(fm_comm *comm) {
  fm_member *m = (fm_member *)comm, **at = &m->d->members;
  cudaSetDevice(m->d->index);
  while (*at != m) at = &(*at)->next;
  *at = m->next;
  abort_nccl(m);
  cudaFree(m->mine.base), cudaFree(m->peers.turn);
  if (m->peers.ended) cudaFreeHost((void *)m->peers.ended);
  if (m->group->wire) {
    fm_hub *hub = m->group->hub;
    dissolve(m->group);
    fm_hub_free(hub);
    far--;
  }
  free(m);
}

/* ---- waiting ---- */

static double now_s() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void nap(double begun) {
  if (now_s() - begun < 2e-3) return;    // a step's own time: look again at once
  timespec t = { 0, 20000 };
  nanosleep(&t, NULL);
}

/* Whether a wait that began then is over; the hub is told when it was too long. */
static bool given_up(fm_group *g, double begun) {
  fm_hub *hub = g->hub;
  double waited = now_s() - begun;
  if (fm_hub_culprit(hub) != -2) return true;
  bool gone = g->wire && waited > 2e-3 && fm_wire_look(g->wire, NULL) != FM_OK;
  if (!gone && waited < fm_hub_limit(hub)) return false;
  fm_hub_abort(hub, -1);
  return true;
}

static fm_status end_all(fm_cuda *d, fm_error *err, const char *what) {
  for (fm_member *m = d->members; m; m = m->next) {
    if (m->peers.ended) *m->peers.ended = 1;
    abort_nccl(m);
  }
  cudaStreamSynchronize(d->stream);
  cudaGetLastError();
  for (fm_member *m = d->members; m; m = m->next)
    if (m->peers.ended) *m->peers.ended = 0;               // nobody waits any more
  return fm_fail(err, FM_EDEVICE, "cuda:%d: %s: another rank failed, or did not come in time", d->index, what);
}

/* A kernel's own limit passed while nobody looked. */
static fm_status check_ended(fm_cuda *d, fm_error *err, const char *what) {
  for (fm_member *m = d->members; m; m = m->next)
    if (m->peers.ended && *m->peers.ended) return end_all(d, err, what);
  return FM_OK;
}

fm_status fm_cuda_look(fm_cuda *d, fm_error *err, const char *what, bool *done) {
  cudaSetDevice(d->index);
  cudaError_t e = cudaStreamQuery(d->stream);
  *done = e != cudaErrorNotReady;
  if (*done) {
    TRY(fm_cuda_check(err, e, what));
    return check_ended(d, err, what);
  }
  cudaGetLastError();                    // "not ready" is no failure, but the next launch would find it
  return d->members && fm_hub_culprit(d->members->group->hub) != -2 ? end_all(d, err, what) : FM_OK;
}

fm_status fm_cuda_sync(fm_cuda *d, fm_error *err, const char *what) {
  bool done = false;
  double begun = now_s();
  if (!d->members) {
    cudaSetDevice(d->index);
    return fm_cuda_check(err, cudaStreamSynchronize(d->stream), what);
  }
  for (;;) {
    TRY(fm_cuda_look(d, err, what, &done));
    if (done) return FM_OK;
    if (given_up(d->members->group, begun)) return end_all(d, err, what);
    nap(begun);
  }
}

/* ---- meeting ---- */

/* Over the wire; size bytes of data are what the first of them tells all. */
static fm_status meet_far(fm_ctx *c, fm_member *m, void *data, int64_t size) {
  void *to[FM_PEERS];
  const void *from[FM_PEERS];
  int64_t in[FM_PEERS], out[FM_PEERS];
  int me = m->comm.me;
  for (int r = 0; r < m->comm.n; r++) to[r] = data, from[r] = data, out[r] = r == 0 && me ? size : 0, in[r] = me == 0 && r ? size : 0;
  return fm_wire_swap(m->group->wire, m->group->rank, m->comm.n, to, out, from, in, &c->err);
}

static fm_status meet(fm_ctx *c, fm_member *m) {
  return m->group->wire ? meet_far(c, m, NULL, 0) : fm_hub_meet(m->group->hub, &m->group->door, &c->err);
}

/* What NCCL said; communicators do not block, so it may have to be waited for. */
static fm_status said(fm_ctx *c, fm_member *m, ncclResult_t r, const char *what) {
  double begun = now_s();
  while (r == ncclInProgress) {
    ncclResult_t asked = nccl().CommGetAsyncError(m->nccl, &r);
    if (asked != ncclSuccess) r = asked;
    if (r != ncclInProgress) break;
    if (given_up(m->group, begun)) return end_all(m->d, &c->err, what);
    nap(begun);
  }
  return r == ncclSuccess ? FM_OK : fm_fail(&c->err, FM_EDEVICE, "nccl: %s: %s", what, nccl().GetErrorString(r));
}

static fm_status open_mailbox(fm_ctx *c, fm_member *m) {
  fm_peers *p = &m->peers;
  int64_t size = fm_mailbox_size(m->comm.n);
  if (!p->ended) {
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&m->mine.base, (size_t)size), "a rank's mailbox"));
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&p->turn, FM_TURNS * sizeof *p->turn), "a rank's turns"));
    TRY(fm_cuda_check(&c->err, cudaMallocHost((void **)&p->ended, sizeof *p->ended), "a word that ends waits"));
  }
  p->me = m->comm.me, p->n = m->comm.n;
  *p->ended = 0;
  cudaMemset(m->mine.base, 0, (size_t)size);
  cudaMemset(p->turn, 0, FM_TURNS * sizeof *p->turn);
  return fm_cuda_check(&c->err, cudaDeviceSynchronize(), "a rank's mailbox");
}

/* The others' memory. Each looks at all pairs, so all come to the same answer. */
static fm_status reach_others(fm_ctx *c, fm_member *m) {
  m->reached = !m->group->wire;
  if (m->group->wire) return FM_OK;
  for (int a = 0; a < m->comm.n; a++)
    for (int b = 0; b < m->comm.n; b++) {
      int can = 1, from = m->group->at[a]->d->index, to = m->group->at[b]->d->index;
      if (from != to) TRY(fm_cuda_check(&c->err, cudaDeviceCanAccessPeer(&can, from, to), "looking at a peer"));
      m->reached = m->reached && can;
    }
  for (int r = 0; r < m->comm.n && m->reached; r++) {
    cudaError_t e = r == m->comm.me ? cudaSuccess : cudaDeviceEnablePeerAccess(m->group->at[r]->d->index, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) e = (cudaGetLastError(), cudaSuccess);
    TRY(fm_cuda_check(&c->err, e, "reaching a peer"));
    m->peers.box[r] = m->group->at[r]->mine;
  }
  return FM_OK;
}

static fm_status make_again(fm_ctx *c, fm_member *m, unsigned epoch) {
  fm_group *g = m->group;
  ncclConfig_t cfg = NCCL_CONFIG_INITIALIZER;
  cfg.blocking = 0;
  if (m->d->noting) return fm_fail(&c->err, FM_EINVAL, "ranks have to meet before a pass is noted");
  cudaSetDevice(m->d->index);
  abort_nccl(m);
  fm_cuda_forget(m->d);
  if (!g->wire) TRY(open_mailbox(c, m));
  TRY(meet(c, m));
  if (m->comm.me == 0) g->good = nccl().GetUniqueId(&g->id) == ncclSuccess;
  if (g->wire && m->comm.me) g->good = true;
  TRY(g->wire ? meet_far(c, m, &g->id, sizeof g->id) : meet(c, m));
  if (!g->good) return fm_fail(&c->err, FM_EDEVICE, "nccl: no id for a group");
  TRY(reach_others(c, m));
  TRY(said(c, m, nccl().CommInitRankConfig(&m->nccl, m->comm.n, g->id, m->comm.me, &cfg), "ranks meet"));
  m->epoch = epoch;
  return meet(c, m);
}

static fm_status ready(fm_ctx *c, fm_comm *comm, fm_member **out) {
  fm_member *m = *out = (fm_member *)comm;
  unsigned epoch = fm_hub_epoch(m->group->hub);
  return m->nccl && m->epoch == epoch ? FM_OK : make_again(c, m, epoch);
}

static fm_status barrier(fm_ctx *c, fm_comm *comm) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  TRY(fm_cuda_sync(m->d, &c->err, "the work before a barrier"));
  return meet(c, m);
}

/* ---- sums ---- */

__global__ void __launch_bounds__(256) add_kernel(float *x, const float *sum, int64_t len) {
  fm_wait();
  fm_go_on();
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < len; i += (int64_t)gridDim.x * 256) x[i] += sum[i];
}

static fm_status all_reduce(fm_ctx *c, fm_comm *comm, float *x, const float *part, int64_t len) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  if (m->reached && fm_peer_can_add(len)) return fm_peer_add(c, &m->peers, x, part, len);
  if (m->reached && fm_peer_can_add_long(&m->peers, len)) return fm_peer_add_long(c, &m->peers, x, part, len);
  int64_t used = c->slab_used;
  float *sum;
  TRY(fm_cuda_take_n(c, &sum, len));
  fm_status status = said(c, m, nccl().AllReduce(part, sum, (size_t)len, ncclFloat32, ncclSum, m->nccl, m->d->stream), "all_reduce");
  int64_t blocks = (len + 1023) / 1024;
  if (status == FM_OK) fm_launch(c, add_kernel, (unsigned)(blocks < 4096 ? blocks : 4096), 256, 0, x, sum, len);
  c->slab_used = used;                   // what follows on the stream waits its turn
  return status == FM_OK ? fm_cuda_launched(c, "all_reduce") : status;
}

/* ---- the others ---- */

static fm_status all_gather(fm_ctx *c, fm_comm *comm, void *out, const void *mine, const int64_t *size) {
  fm_member *m;
  bool even = true;
  char *to = (char *)out;
  TRY(ready(c, comm, &m));
  if (m->reached) return fm_peer_gather(c, &m->peers, to, (const char *)mine, size);
  for (int r = 1; r < comm->n; r++) even = even && size[r] == size[0];
  if (even) return said(c, m, nccl().AllGather(mine, out, (size_t)size[0], ncclInt8, m->nccl, m->d->stream), "all_gather");
  nccl().GroupStart();
  for (int r = 0; r < comm->n; to += size[r++])
    if (size[r]) nccl().Broadcast(r == comm->me ? mine : to, to, (size_t)size[r], ncclInt8, r, m->nccl, m->d->stream);
  return said(c, m, nccl().GroupEnd(), "all_gather");
}

static fm_status all_to_all(fm_ctx *c, fm_comm *comm, void *out, const int64_t *out_size, const void *in, const int64_t *in_size) {
  fm_member *m;
  char *to = (char *)out;
  const char *from = (const char *)in;
  TRY(ready(c, comm, &m));
  if (in_size[comm->me] != out_size[comm->me])
    return fm_fail(&c->err, FM_EINVAL, "all_to_all: rank %d expects %lld bytes of itself and has %lld", comm->me,
                   (long long)out_size[comm->me], (long long)in_size[comm->me]);
  if (m->reached) return fm_peer_swap(c, &m->peers, to, out_size, from, in_size);
  nccl().GroupStart();
  for (int r = 0; r < comm->n; to += out_size[r], from += in_size[r++]) {
    if (r == comm->me) {
      cudaMemcpyAsync(to, from, (size_t)in_size[r], cudaMemcpyDeviceToDevice, m->d->stream);
      continue;
    }
    if (in_size[r]) nccl().Send(from, (size_t)in_size[r], ncclInt8, r, m->nccl, m->d->stream);
    if (out_size[r]) nccl().Recv(to, (size_t)out_size[r], ncclInt8, r, m->nccl, m->d->stream);
  }
  return said(c, m, nccl().GroupEnd(), "all_to_all");
}

static fm_status broadcast(fm_ctx *c, fm_comm *comm, void *data, int64_t size, int root) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  return said(c, m, nccl().Broadcast(data, data, (size_t)size, ncclInt8, root, m->nccl, m->d->stream), "broadcast");
}

/* By NCCL all parts one behind the other, and then each to its columns. */
static fm_status columns_by_nccl(fm_ctx *c, fm_member *m, float *out, const float *mine, int64_t n, const int64_t *width) {
  int64_t size[FM_PEERS], all = 0, first = 0, used = c->slab_used;
  float *parts;
  for (int r = 0; r < m->comm.n; r++) size[r] = n * width[r] * 4, all += width[r];
  TRY(fm_cuda_take_n(c, &parts, n * all));
  TRY(all_gather(c, &m->comm, parts, mine, size));
  for (int r = 0; r < m->comm.n && out; r++) {
    cudaMemcpy2DAsync(out + first, (size_t)all * 4, parts + n * first, (size_t)width[r] * 4, (size_t)width[r] * 4, (size_t)n,
                      cudaMemcpyDeviceToDevice, m->d->stream);
    first += width[r];
  }
  c->slab_used = used;
  return fm_cuda_launched(c, "all_columns");
}

static fm_status all_columns(fm_ctx *c, fm_comm *comm, float *out, const float *mine, int64_t n, const int64_t *width) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  if (m->reached && fm_peer_can_columns(n, width, comm->n)) return fm_peer_columns(c, &m->peers, out, mine, n, width);
  return columns_by_nccl(c, m, out, mine, n, width);
}

static fm_status all_combine(fm_ctx *c, fm_comm *comm, float *out, const void *answers, const int32_t *id, const float *weight,
                             const fm_combine *j) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  if (m->reached) return fm_peer_combine(c, &m->peers, out, answers, id, weight, j);
  return fm_hint(&c->err, fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: ep is for GPUs of one process that reach each other's memory"),
                 "parallel = { tp = %d } splits each expert", comm->n);
}

const fm_collectives fm_cuda_collectives = {
  .found = found, .dissolve = dissolve, .join = join, .join_far = join_far, .leave = leave, .barrier = barrier, .all_reduce = all_reduce,
  .all_gather = all_gather, .all_to_all = all_to_all, .broadcast = broadcast, .all_columns = all_columns, .all_combine = all_combine,
};

#else

/* Built without NCCL's header: a device works alone. */
static fm_status found(fm_group **out, fm_hub *hub, int n, fm_error *err) {
  (void)out, (void)hub, (void)n;
  return fm_fail(err, FM_EUNSUPPORTED, "cuda: this build has no NCCL (nccl.h was not found)");
}
const fm_collectives fm_cuda_collectives = { .found = found };

fm_status fm_cuda_look(fm_cuda *d, fm_error *err, const char *what, bool *done) {
  cudaSetDevice(d->index);
  cudaError_t e = cudaStreamQuery(d->stream);
  *done = e != cudaErrorNotReady;
  if (*done) return fm_cuda_check(err, e, what);
  cudaGetLastError();
  return FM_OK;
}

fm_status fm_cuda_sync(fm_cuda *d, fm_error *err, const char *what) {
  cudaSetDevice(d->index);
  return fm_cuda_check(err, cudaStreamSynchronize(d->stream), what);
}

#endif
