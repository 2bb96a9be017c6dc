/*
** comm.cu - collectives over NCCL, which is opened when ranks first meet, and sums of a few rows by a kernel over peer memory.
**
** Nothing waits on a device for ever. A rank's host thread looks at its stream, the hub's abort word and the clock (fm_cuda_sync,
** fm_cuda_look); when it is time it sets the word that our kernel looks at and aborts NCCL's communicator. What was aborted is made anew when
** all meet again: each reset of the hub is an epoch, and a communicator belongs to one.
**
** few_kernel: each rank writes its part into all others' memory, two floats and twice the number of the sum to 16 bytes, and looks at its
** own until both numbers are there: half of what travels is flags, but nothing is waited for twice.
**
** all_reduce_kernel, for more: each rank writes its part into all others' memory, raises a flag there, waits for theirs, and adds all parts in
** the order of the ranks. Two halves take turns in both: a rank that writes a half again has seen what the others sent after they had
** read it. A block's elements are always the same ones.
*/
#include "comm.cuh"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <atomic>
#include <thread>

#if __has_include(<nccl.h>)
#include <nccl.h>

constexpr int RANKS = 16;                /* of a group that adds by our kernel */
constexpr int BLOCKS = 32;
constexpr int64_t SHORT = 64 << 10;      /* floats; longer sums are NCCL's */
constexpr int64_t FEW = 4 << 10;         /* pairs of floats */
constexpr int FEW_BLOCKS = FEW / 256;
constexpr int64_t TICKS = 20000000000;   /* ns a kernel waits at most, should its host be gone */

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

struct mailbox { float *inbox; uint32_t *flag; uint4 *few; };     /* inbox (2, n, SHORT); flag (n, BLOCKS); few (2, n, FEW) */
struct mailboxes { mailbox of[RANKS]; };

struct fm_member {
  fm_comm comm;                          /* first */
  fm_group *group;
  fm_cuda *d;
  fm_member *next;                       /* of this device */
  ncclComm_t nccl;                       /* NULL: not met yet, or aborted */
  unsigned epoch;
  mailbox mine;
  uint32_t *turn;                        /* (BLOCKS + FEW_BLOCKS) how many sums each block has made, on the device */
  int *ended;                            /* the word that ends our kernel's waits: the host's memory */
  mailboxes all;
};

struct fm_group {
  fm_hub *hub;
  fm_door door;
  ncclUniqueId id;
  bool good;                             /* rank 0 had an id to give */
  fm_member *at[RANKS];
};

static fm_status found(fm_group **out, fm_hub *hub, int n, fm_error *err) {
  if (n > RANKS) return fm_fail(err, FM_EUNSUPPORTED, "%d ranks in a group, %d are the most", n, RANKS);
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
  m->comm = { me, g->door.n };
  m->group = g;
  m->d = (fm_cuda *)dev;
  m->next = m->d->members;
  m->d->members = m;
  g->at[me] = m;
  *out = &m->comm;
  return FM_OK;
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
  cudaFree(m->mine.inbox), cudaFree(m->mine.flag), cudaFree(m->mine.few), cudaFree(m->turn);
  if (m->ended) cudaFreeHost(m->ended);
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
static bool given_up(fm_hub *hub, double begun) {
  if (fm_hub_culprit(hub) != -2) return true;
  if (now_s() - begun < fm_hub_limit(hub)) return false;
  fm_hub_abort(hub, -1);
  return true;
}

static fm_status end_all(fm_cuda *d, fm_error *err, const char *what) {
  for (fm_member *m = d->members; m; m = m->next) {
    if (m->ended) *(volatile int *)m->ended = 1;
    abort_nccl(m);
  }
  cudaStreamSynchronize(d->stream);
  cudaGetLastError();
  return fm_fail(err, FM_EDEVICE, "cuda:%d: %s: another rank failed, or did not come in time", d->index, what);
}

/* A kernel's own limit passed while nobody looked. */
static fm_status check_ended(fm_cuda *d, fm_error *err, const char *what) {
  for (fm_member *m = d->members; m; m = m->next)
    if (m->ended && *(volatile int *)m->ended) return end_all(d, err, what);
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
    if (given_up(d->members->group->hub, begun)) return end_all(d, err, what);
    nap(begun);
  }
}

/* ---- meeting ---- */

static fm_status meet(fm_ctx *c, fm_member *m) { return fm_hub_meet(m->group->hub, &m->group->door, &c->err); }

/* What NCCL said; communicators do not block, so it may have to be waited for. */
static fm_status said(fm_ctx *c, fm_member *m, ncclResult_t r, const char *what) {
  double begun = now_s();
  while (r == ncclInProgress) {
    ncclResult_t asked = nccl().CommGetAsyncError(m->nccl, &r);
    if (asked != ncclSuccess) r = asked;
    if (r != ncclInProgress) break;
    if (given_up(m->group->hub, begun)) return end_all(m->d, &c->err, what);
    nap(begun);
  }
  return r == ncclSuccess ? FM_OK : fm_fail(&c->err, FM_EDEVICE, "nccl: %s: %s", what, nccl().GetErrorString(r));
}

static fm_status open_mailbox(fm_ctx *c, fm_member *m) {
  int64_t n = m->comm.n;
  int64_t inbox = 2 * n * SHORT * (int64_t)sizeof(float), flags = n * BLOCKS * 4, few = 2 * n * FEW * 16, turns = (BLOCKS + FEW_BLOCKS) * 4;
  if (!m->ended) {
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&m->mine.inbox, (size_t)inbox), "a rank's inbox"));
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&m->mine.flag, (size_t)flags), "a rank's flags"));
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&m->mine.few, (size_t)few), "a rank's inbox"));
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&m->turn, (size_t)turns), "a rank's turns"));
    TRY(fm_cuda_check(&c->err, cudaMallocHost((void **)&m->ended, sizeof *m->ended), "a word that ends waits"));
  }
  *m->ended = 0;
  cudaMemset(m->mine.flag, 0, (size_t)flags);
  cudaMemset(m->mine.few, 0, (size_t)few);
  cudaMemset(m->turn, 0, (size_t)turns);
  return fm_cuda_check(&c->err, cudaDeviceSynchronize(), "a rank's mailbox");
}

/* The others' memory, where this device can reach it; a group with one that cannot adds through NCCL. */
static fm_status reach_others(fm_ctx *c, fm_member *m) {
  memset(&m->all, 0, sizeof m->all);
  for (int r = 0; r < m->comm.n; r++) {
    int can = 1, other = m->group->at[r]->d->index;
    if (other != m->d->index) {
      TRY(fm_cuda_check(&c->err, cudaDeviceCanAccessPeer(&can, m->d->index, other), "looking at a peer"));
      cudaError_t e = can ? cudaDeviceEnablePeerAccess(other, 0) : cudaSuccess;
      if (e == cudaErrorPeerAccessAlreadyEnabled) e = (cudaGetLastError(), cudaSuccess);
      TRY(fm_cuda_check(&c->err, e, "reaching a peer"));
    }
    if (can) m->all.of[r] = m->group->at[r]->mine;
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
  TRY(open_mailbox(c, m));
  TRY(meet(c, m));
  if (m->comm.me == 0) g->good = nccl().GetUniqueId(&g->id) == ncclSuccess;
  TRY(meet(c, m));
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

__device__ __forceinline__ void raise(uint32_t *flag, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t seen(const uint32_t *flag) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
__device__ __forceinline__ int64_t clock_ns() {
  int64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

/* Looks every now and then whether a wait is to end; false: it is. */
struct patience {
  volatile int *ended;
  int64_t begun;
  int looks;
  __device__ bool left() {
    if (++looks % 256) return true;
    if (!begun) begun = clock_ns();
    if (clock_ns() - begun > TICKS) *ended = 1;
    return !*ended;
  }
};

__device__ bool await(const uint32_t *flag, uint32_t turn, volatile int *ended) {
  patience p = { ended, 0, 0 };
  while ((int32_t)(seen(flag) - turn) < 0)
    if (!p.left()) return false;
  return true;
}

__device__ __forceinline__ void put_line(uint4 *to, float2 v, uint32_t turn) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(__float_as_uint(v.x)), "r"(turn),
               "r"(__float_as_uint(v.y)) : "memory");
}
__device__ __forceinline__ uint4 get_line(const uint4 *from) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}

__global__ void __launch_bounds__(256) few_kernel(float2 *x, const float2 *part, int64_t len, mailboxes box, int me, int n,
                                                  uint32_t *turns, volatile int *ended) {
  int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  patience p = { ended, 0, 0 };
  fm_wait();
  fm_go_on();
  uint32_t turn = turns[blockIdx.x] + 1;
  int64_t half = (int64_t)(turn & 1) * n * FEW;
  __syncthreads();                       // all have read the turn
  if (threadIdx.x == 0) turns[blockIdx.x] = turn;
  if (i >= len) return;
  float2 mine = part[i], was = x[i], sum = { 0, 0 };
  for (int r = 0; r < n; r++)
    if (r != me) put_line(box.of[r].few + half + me * FEW + i, mine, turn);
  for (int r = 0; r < n; r++) {
    float2 v = mine;
    if (r != me) {
      uint4 line = get_line(box.of[me].few + half + r * FEW + i);
      while (line.y != turn || line.w != turn) {
        if (!p.left()) return;
        line = get_line(box.of[me].few + half + r * FEW + i);
      }
      v = { __uint_as_float(line.x), __uint_as_float(line.z) };
    }
    sum = r ? float2{ sum.x + v.x, sum.y + v.y } : v;
  }
  x[i] = { was.x + sum.x, was.y + sum.y };
}

__global__ void __launch_bounds__(256) all_reduce_kernel(float4 *x, const float4 *part, int64_t len, mailboxes box, int me, int n,
                                                         uint32_t *turns, volatile int *ended) {
  int b = blockIdx.x, t = threadIdx.x;
  int64_t first = (int64_t)b * 256 + t, step = BLOCKS * 256, row = SHORT / 4;
  fm_wait();
  fm_go_on();
  uint32_t turn = turns[b] + 1;
  int64_t half = (int64_t)(turn & 1) * n * row;
  for (int64_t i = first; i < len; i += step) {
    float4 v = part[i];
    for (int r = 0; r < n; r++)
      if (r != me) ((float4 *)box.of[r].inbox)[half + me * row + i] = v;
  }
  bool good = true;
  if ((int64_t)b * 256 < len) {          // the block has elements: the same for all ranks
    __threadfence_system();
    __syncthreads();
    if (t < n && t != me) {
      raise(box.of[t].flag + me * BLOCKS + b, turn);
      good = await(box.of[me].flag + t * BLOCKS + b, turn, ended);
    }
  }
  good = __syncthreads_and(good);
  if (t == 0) turns[b] = turn;
  const float4 *inbox = (const float4 *)box.of[me].inbox + half;
  for (int64_t i = first; i < len && good; i += step) {
    float4 sum = me == 0 ? part[i] : __ldcg(inbox + i);
    for (int r = 1; r < n; r++) {
      float4 v = r == me ? part[i] : __ldcg(inbox + r * row + i);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    float4 was = x[i];
    x[i] = { was.x + sum.x, was.y + sum.y, was.z + sum.z, was.w + sum.w };
  }
}

__global__ void __launch_bounds__(256) add_kernel(float *x, const float *sum, int64_t len) {
  fm_wait();
  fm_go_on();
  for (int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x; i < len; i += (int64_t)gridDim.x * 256) x[i] += sum[i];
}

static bool by_our_kernel(const fm_member *m, const float *x, const float *part, int64_t len) {
  bool reach = true;
  for (int r = 0; r < m->comm.n; r++) reach = reach && m->all.of[r].inbox;
  return reach && len <= SHORT && len % 4 == 0 && ((uintptr_t)x | (uintptr_t)part) % 16 == 0;
}

static fm_status all_reduce(fm_ctx *c, fm_comm *comm, float *x, const float *part, int64_t len) {
  fm_member *m;
  TRY(ready(c, comm, &m));
  bool ours = by_our_kernel(m, x, part, len);
  if (ours && len <= 2 * FEW) {
    fm_launch(c, few_kernel, (unsigned)((len / 2 + 255) / 256), 256, 0, (float2 *)x, (const float2 *)part, len / 2, m->all, m->comm.me,
              m->comm.n, m->turn + BLOCKS, m->ended);
    return fm_cuda_launched(c, "all_reduce");
  }
  if (ours) {
    fm_launch(c, all_reduce_kernel, BLOCKS, 256, 0, (float4 *)x, (const float4 *)part, len / 4, m->all, m->comm.me, m->comm.n, m->turn,
              m->ended);
    return fm_cuda_launched(c, "all_reduce");
  }
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

const fm_collectives fm_cuda_collectives = {
  .found = found, .dissolve = dissolve, .join = join, .leave = leave, .barrier = barrier, .all_reduce = all_reduce,
  .all_gather = all_gather, .all_to_all = all_to_all, .broadcast = broadcast,
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
