/*
** cuda.cu - the CUDA device: its life, memory, staging, noted passes, and its table of operations. The one exported symbol.
** A context has a stream of its own; everything is done on it in order, and only downloads wait.
*/
#include "comm.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 16 << 20 };                /* bytes of one of the two pinned upload buffers */

fm_status fm_cuda_check(fm_error *err, cudaError_t e, const char *what) {
  if (e == cudaSuccess) return FM_OK;
  if (e == cudaErrorMemoryAllocation) return fm_fail(err, FM_EMEMORY, "cuda: %s: no memory on the device", what);
  return fm_fail(err, FM_EDEVICE, "cuda: %s: %s", what, cudaGetErrorString(e));
}

/* ---- life --------------------------------------------------------------------------------------------- */

static void cuda_close(fm_device *dev) {
  fm_cuda *d = (fm_cuda *)dev;
  if (!d) return;
  cudaSetDevice(d->index);
  if (d->stream) cudaStreamSynchronize(d->stream);
  fm_cuda_forget(d);
  fm_cuda_lt_close(d);
  for (int i = 0; i < 2; i++) {
    if (d->ring.buf[i]) cudaFreeHost(d->ring.buf[i]);
    if (d->ring.free[i]) cudaEventDestroy(d->ring.free[i]);
  }
  if (d->stage.host) cudaFreeHost(d->stage.host);
  if (d->stage.dev) cudaFree(d->stage.dev);
  if (d->stream) cudaStreamDestroy(d->stream);
  free(d);
}

__global__ void probe_kernel() {}

static fm_status open_parts(fm_cuda *d, fm_error *err) {
  cudaFuncAttributes found;
  TRY(fm_cuda_check(err, cudaSetDevice(d->index), "choosing the device"));
  cudaDeviceGetAttribute(&d->n_sm, cudaDevAttrMultiProcessorCount, d->index);
  cudaDeviceGetAttribute(&d->major, cudaDevAttrComputeCapabilityMajor, d->index);
  cudaDeviceGetAttribute(&d->minor, cudaDevAttrComputeCapabilityMinor, d->index);
  snprintf(d->compute, sizeof d->compute, "%d.%d", d->major, d->minor);
  if (d->major < 8) return fm_fail(err, FM_EDEVICE, "cuda:%d has compute capability %s, 8.0 is the least", d->index, d->compute);
  if (cudaFuncGetAttributes(&found, probe_kernel) != cudaSuccess) {
    cudaGetLastError();
    return fm_fail(err, FM_EDEVICE, "cuda:%d has compute capability %s, for which this build has no kernels (make CUDA_ARCH=...)",
                   d->index, d->compute);
  }
  return fm_cuda_check(err, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "making a stream");
}

extern "C" __attribute__((visibility("default"))) const fm_backend *fm_backend_open_cuda(void);

static fm_status cuda_open(fm_device **out, int index, int threads, fm_error *err) {
  int n = 0;
  (void)threads;
  cudaError_t e = cudaGetDeviceCount(&n);
  if (e != cudaSuccess) return fm_fail(err, FM_EDEVICE, "cuda: %s", cudaGetErrorString(e));
  if (index >= n) return fm_fail(err, FM_EDEVICE, "there are %d CUDA devices, no cuda:%d", n, index);
  fm_cuda *d = (fm_cuda *)calloc(1, sizeof *d);
  if (!d) return fm_no_memory(err, sizeof *d);
  d->device.ops = fm_backend_open_cuda();
  d->index = index;
  fm_status status = open_parts(d, err);
  if (status == FM_OK) *out = &d->device;
  else cuda_close(&d->device);
  return status;
}

static fm_status cuda_memory(fm_device *dev, int64_t *total, int64_t *free_bytes) {
  size_t f = 0, t = 0;
  cudaSetDevice(((fm_cuda *)dev)->index);
  cudaError_t e = cudaMemGetInfo(&f, &t);
  *total = (int64_t)t;
  *free_bytes = (int64_t)f;
  return e == cudaSuccess ? FM_OK : FM_EDEVICE;
}

static void cuda_info(const fm_device *dev, const char **simd, int *threads) {
  *simd = ((const fm_cuda *)dev)->compute;
  *threads = ((const fm_cuda *)dev)->n_sm;
}

static fm_status cuda_alloc(fm_device *dev, void **out, int64_t size, fm_error *err) {
  cudaSetDevice(((fm_cuda *)dev)->index);
  if (cudaMalloc(out, (size_t)(size ? size : 1)) == cudaSuccess) return FM_OK;
  cudaGetLastError();
  return fm_fail(err, FM_EMEMORY, "cuda:%d has no memory for %lld bytes", ((fm_cuda *)dev)->index, (long long)size);
}

static void cuda_release(fm_device *dev, void *p) {
  cudaSetDevice(((fm_cuda *)dev)->index);
  cudaStreamSynchronize(((fm_cuda *)dev)->stream);
  cudaFree(p);
}

static void cuda_copy(fm_device *dev, void *dst, const void *src, int64_t size) {
  cudaMemcpyAsync(dst, src, (size_t)size, cudaMemcpyDeviceToDevice, ((fm_cuda *)dev)->stream);
}

static void cuda_clear(fm_device *dev, void *dst, int64_t size) {
  cudaMemsetAsync(dst, 0, (size_t)size, ((fm_cuda *)dev)->stream);
}

static void cuda_enter(fm_device *dev) { cudaSetDevice(((fm_cuda *)dev)->index); }
static void cuda_leave(fm_device *dev) { (void)dev; }

/* ---- up and down ---------------------------------------------------------------------------------------- */

static fm_status ring_open(fm_ctx *c, fm_cuda *d) {
  for (int i = 0; i < 2 && !d->ring.buf[i]; i++) {
    TRY(fm_cuda_check(&c->err, cudaMallocHost((void **)&d->ring.buf[i], RING), "pinned memory"));
    TRY(fm_cuda_check(&c->err, cudaEventCreateWithFlags(&d->ring.free[i], cudaEventDisableTiming), "an event"));
  }
  return FM_OK;
}

/* Through two pinned buffers: one is filled while the other travels. */
static fm_status cuda_upload(fm_ctx *c, void *dst, const void *src, int64_t size) {
  fm_cuda *d = fm_cuda_of(c);
  cudaSetDevice(d->index);
  TRY(ring_open(c, d));
  for (int64_t at = 0; at < size; at += RING) {
    int64_t n = size - at < RING ? size - at : RING;
    int i = d->ring.next;
    d->ring.next = !i;
    if (d->members) TRY(fm_cuda_sync(d, &c->err, "the work before an upload"));
    TRY(fm_cuda_check(&c->err, cudaEventSynchronize(d->ring.free[i]), "an upload"));
    memcpy(d->ring.buf[i], (const char *)src + at, (size_t)n);
    TRY(fm_cuda_check(&c->err, cudaMemcpyAsync((char *)dst + at, d->ring.buf[i], (size_t)n, cudaMemcpyHostToDevice, d->stream),
                      "an upload"));
    TRY(fm_cuda_check(&c->err, cudaEventRecord(d->ring.free[i], d->stream), "an upload"));
  }
  return FM_OK;
}

static fm_status cuda_download(fm_ctx *c, void *dst, const void *src, int64_t size) {
  fm_cuda *d = fm_cuda_of(c);
  cudaSetDevice(d->index);
  if (d->members) TRY(fm_cuda_sync(d, &c->err, "the work before a download"));   // a copy to the host's memory waits without a limit
  TRY(fm_cuda_check(&c->err, cudaMemcpyAsync(dst, src, (size_t)size, cudaMemcpyDeviceToHost, d->stream), "a download"));
  return fm_cuda_sync(d, &c->err, "the work before a download");
}

static fm_status cuda_poll(fm_ctx *c, bool *done) { return fm_cuda_look(fm_cuda_of(c), &c->err, "the work before a look", done); }

static fm_status cuda_stage(fm_ctx *c, void **host, int64_t size) {
  fm_cuda *d = fm_cuda_of(c);
  TRY(fm_cuda_sync(d, &c->err, "the work before a pass"));       // the block may be under way
  if (size > d->stage.size) {
    int64_t want = 2 * size > 1 << 20 ? 2 * size : 1 << 20;
    fm_cuda_forget(d);                      // they know the old block's address
    cudaFreeHost(d->stage.host), cudaFree(d->stage.dev);
    d->stage.host = d->stage.dev = NULL, d->stage.size = 0;
    TRY(fm_cuda_check(&c->err, cudaMallocHost((void **)&d->stage.host, (size_t)want), "pinned memory"));
    TRY(fm_cuda_check(&c->err, cudaMalloc((void **)&d->stage.dev, (size_t)want), "a staging block"));
    d->stage.size = want;
  }
  d->stage.used = size;
  *host = d->stage.host;
  return FM_OK;
}

static fm_status cuda_send(fm_ctx *c) {
  fm_cuda *d = fm_cuda_of(c);
  return fm_cuda_check(&c->err, cudaMemcpyAsync(d->stage.dev, d->stage.host, (size_t)d->stage.used, cudaMemcpyHostToDevice,
                                                d->stream), "sending a pass");
}

fm_status fm_cuda_take(fm_ctx *c, void **out, int64_t size) {
  int64_t at = (c->slab_used + 255) / 256 * 256;
  if (size < 0 || size > c->slab_size - at)
    return fm_fail(&c->err, FM_EMEMORY, "device scratch: %lld bytes wanted, %lld of %lld taken", (long long)size,
                   (long long)at, (long long)c->slab_size);
  *out = c->slab + at;
  c->slab_used = at + size;
  return FM_OK;
}

static bool is_staged(const fm_cuda *d, const void *p) {
  return (const char *)p >= d->stage.host && (const char *)p < d->stage.host + d->stage.used;
}

fm_status fm_cuda_staged(fm_ctx *c, const void **out, const void *host, int64_t size) {
  fm_cuda *d = fm_cuda_of(c);
  if (is_staged(d, host)) {
    *out = d->stage.dev + ((const char *)host - d->stage.host);
    return FM_OK;
  }
  void *copy;
  TRY(fm_cuda_take(c, &copy, size));
  TRY(cuda_upload(c, copy, host, size));
  *out = copy;
  return FM_OK;
}

fm_status fm_cuda_spans(fm_ctx *c, fm_dspans *out, const fm_span *span, int64_t n) {
  fm_cuda *d = fm_cuda_of(c);
  const void *p;
  *out = { NULL, 0, n };
  if (n == 0) return FM_OK;
  if (is_staged(d, span)) {
    TRY(fm_cuda_staged(c, &p, span, n * (int64_t)sizeof *span));
    *out = { (const fm_span *)p, d->stage.dev - d->stage.host, n };
    return FM_OK;
  }
  fm_span *copy = (fm_span *)malloc((size_t)n * sizeof *copy);
  if (!copy) return fm_no_memory(&c->err, n * (int64_t)sizeof *copy);
  fm_status status = FM_OK;
  for (int64_t i = 0; i < n && status == FM_OK; i++) {
    copy[i] = span[i];
    status = fm_cuda_staged(c, &p, span[i].pages, (span[i].index + span[i].n + FM_PAGE - 1) / FM_PAGE * 4);
    copy[i].pages = (const int32_t *)p;
  }
  if (status == FM_OK) status = fm_cuda_staged(c, &p, copy, n * (int64_t)sizeof *copy);
  out->span = (const fm_span *)p;
  free(copy);
  return status;
}

/* ---- noted passes --------------------------------------------------------------------------------------- */

struct fm_graph { int64_t key[8]; cudaGraphExec_t exec; struct fm_graph *next; };

void fm_cuda_forget(fm_cuda *d) {
  for (fm_graph *g = d->graphs, *next; g; g = next) {
    next = g->next;
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g);
  }
  d->graphs = NULL;
}

enum { GRAPHS = 64, KEYS = 512 };        /* passes noted, and sizes remembered: batches of many sizes would fill the memory */

/* The pass of this key, brought to the front; NULL: it was not met, or long ago. */
static fm_graph *find(fm_cuda *d, const int64_t key[8]) {
  fm_graph **at = &d->graphs, *g;
  while (*at && memcmp((*at)->key, key, sizeof (*at)->key) != 0) at = &(*at)->next;
  g = *at;
  if (!g) return NULL;
  *at = g->next;
  g->next = d->graphs;
  return d->graphs = g;
}

/* Forgets those that were used longest ago. */
static fm_status trim(fm_ctx *c, fm_cuda *d) {
  int keys = 0, graphs = 0;
  for (fm_graph **at = &d->graphs, *g; (g = *at);) {
    graphs += g->exec != NULL;
    if (g->exec && graphs > GRAPHS) {
      TRY(fm_cuda_sync(d, &c->err, "the work before a pass"));
      cudaGraphExecDestroy(g->exec);
      g->exec = NULL;
    }
    if (++keys <= KEYS) {
      at = &g->next;
      continue;
    }
    *at = g->next;
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g);
  }
  return FM_OK;
}

/* A size that is met for the second time is noted; once is no habit. */
static fm_status cuda_record(fm_ctx *c, const int64_t key[8], bool *known) {
  fm_cuda *d = fm_cuda_of(c);
  fm_graph *g = find(d, key);
  cudaSetDevice(d->index);
  *known = g && g->exec;
  d->noting = g;
  if (g) return g->exec ? FM_OK : fm_cuda_check(&c->err, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal), "noting a pass");
  g = (fm_graph *)calloc(1, sizeof *g);
  if (!g) return fm_no_memory(&c->err, sizeof *g);
  memcpy(g->key, key, sizeof g->key);
  g->next = d->graphs;
  d->graphs = g;
  return trim(c, d);
}

static fm_status end_noting(fm_ctx *c, fm_cuda *d, fm_graph *g) {
  cudaGraph_t graph = NULL;
  fm_status status = fm_cuda_check(&c->err, cudaStreamEndCapture(d->stream, &graph), "noting a pass");
  if (status == FM_OK) status = fm_cuda_check(&c->err, cudaGraphInstantiate(&g->exec, graph, 0), "making a graph");
  if (graph) cudaGraphDestroy(graph);
  return status == FM_OK ? trim(c, d) : status;
}

static void drop_noting(fm_cuda *d) {
  cudaGraph_t graph = NULL;
  cudaStreamEndCapture(d->stream, &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}

static fm_status cuda_play(fm_ctx *c, bool good) {
  fm_cuda *d = fm_cuda_of(c);
  fm_graph *g = d->noting;
  d->noting = NULL;
  if (!g) return FM_OK;                  // run as it was asked for
  if (!good) {
    if (!g->exec) drop_noting(d);
    return FM_OK;
  }
  if (!g->exec) TRY(end_noting(c, d, g));
  return fm_cuda_check(&c->err, cudaGraphLaunch(g->exec, d->stream), "a pass");
}

/* ---- the table ------------------------------------------------------------------------------------------ */

/* Operations take scratch from the slab and give it back when they return: what follows on the stream waits its turn. */
template <auto op> struct guarded;
template <typename... A, fm_status (*op)(fm_ctx *, A...)> struct guarded<op> {
  static fm_status call(fm_ctx *c, A... a) {
    int64_t used = c->slab_used;
    fm_status status = op(c, a...);
    c->slab_used = used;
    return status;
  }
};

const fm_backend *fm_backend_open_cuda(void) {
  static fm_backend t;
  t.abi = FM_BACKEND_ABI, t.name = "cuda";
  t.arithmetic = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3;
  t.cache_dtypes = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3;
  t.chunk = 4096;
  t.open = cuda_open, t.close = cuda_close, t.memory = cuda_memory, t.info = cuda_info;
  t.alloc = cuda_alloc, t.release = cuda_release, t.copy = cuda_copy, t.clear = cuda_clear, t.enter = cuda_enter, t.leave = cuda_leave;
  t.upload = cuda_upload, t.download = cuda_download, t.poll = cuda_poll, t.stage = cuda_stage, t.send = cuda_send;
  t.record = cuda_record, t.play = cuda_play;
  t.draw = guarded<fm_cuda_draw>::call;
  t.embed = guarded<fm_cuda_embed>::call, t.rms_norm = guarded<fm_cuda_rms_norm>::call;
  t.matmul = guarded<fm_cuda_matmul>::call, t.rope = guarded<fm_cuda_rope>::call;
  t.cache_store = guarded<fm_cuda_cache_store>::call, t.turn = guarded<fm_cuda_turn>::call, t.mla_store = guarded<fm_cuda_mla_store>::call;
  t.mla_prompt = guarded<fm_cuda_mla_prompt>::call, t.mla_decode = guarded<fm_cuda_mla_decode>::call;
  t.gqa = guarded<fm_cuda_gqa>::call, t.route = guarded<fm_cuda_route>::call;
  t.experts = guarded<fm_cuda_experts>::call, t.experts_of = guarded<fm_cuda_experts_of>::call;
  t.comm = &fm_cuda_collectives;
  return &t;
}
