/*
** apart.c - a device for specs: the CPU's arithmetic behind a memory of its own. Where there is no GPU it shows that nobody but
** an operation touches the device's memory, that transfers keep to the table's rules, and what happens when a device fails.
**   the memory   pages that can be read and written only while an operation or a transfer is under way
**   staging      a fresh block each time; the one before becomes unreadable
**   noted passes operations are done at once, but a transfer between record and play fails
** $APART_MEMORY: bytes it has (default 1 GiB). $APART_FAILS: the number of the operation from which on it is gone.
*/
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "op/backend.h"

typedef struct held { struct held *next; void *p; size_t size; } held;

typedef struct apart {
  fm_device device;                      /* first */
  fm_device *cpu;
  held *all;
  int64_t total, fails, ops;
  void *staged; size_t staged_size;
  bool noting;
} apart;

static int64_t taken;                    /* bytes, by all who opened it; what a closed one never released stays taken, as on a card */

static apart *of(fm_ctx *c) { return (apart *)c->dev; }

static int64_t setting(const char *name, int64_t otherwise) {
  const char *word = getenv(name);
  return word && *word ? atoll(word) : otherwise;
}

static void unlock(apart *d, bool open) {
  for (held *h = d->all; h; h = h->next) mprotect(h->p, h->size, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

/* ---- life and memory ---------------------------------------------------------------------------------- */

static const fm_backend *table(void);

static fm_status apart_open(fm_device **out, int index, int threads, fm_error *err) {
  if (index != 0) return fm_fail(err, FM_EDEVICE, "there is one apart, not an apart:%d", index);
  apart *d = calloc(1, sizeof *d);
  if (!d) return fm_no_memory(err, sizeof *d);
  d->device.ops = table();
  d->total = setting("APART_MEMORY", (int64_t)1 << 30);
  d->fails = setting("APART_FAILS", INT64_MAX);
  fm_status status = fm_cpu_backend()->open(&d->cpu, 0, threads, err);
  if (status != FM_OK) free(d);
  else *out = &d->device;
  return status;
}

static void apart_close(fm_device *dev) {
  apart *d = (apart *)dev;
  while (d->all) {
    held *h = d->all;
    d->all = h->next;
    munmap(h->p, h->size);
    free(h);
  }
  if (d->staged) munmap(d->staged, d->staged_size);
  fm_cpu_backend()->close(d->cpu);
  free(d);
}

static fm_status apart_memory(fm_device *dev, int64_t *total, int64_t *free_bytes) {
  apart *d = (apart *)dev;
  *total = d->total;
  *free_bytes = d->total - taken;
  return FM_OK;
}

static void apart_info(const fm_device *dev, const char **simd, int *threads) {
  fm_cpu_backend()->info(((const apart *)dev)->cpu, simd, threads);
}

static fm_status apart_alloc(fm_device *dev, void **out, int64_t size, fm_error *err) {
  apart *d = (apart *)dev;
  size_t whole = ((size_t)size + 4096) / 4096 * 4096;
  if ((int64_t)whole > d->total - taken)
    return fm_fail(err, FM_EMEMORY, "apart has no memory for %lld bytes", (long long)size);
  held *h = malloc(sizeof *h);
  void *p = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!h || p == MAP_FAILED) {
    free(h);
    return fm_no_memory(err, size);
  }
  *h = (held){ d->all, p, whole };
  d->all = h;
  taken += (int64_t)whole;
  *out = p;
  return FM_OK;
}

static void apart_release(fm_device *dev, void *p) {
  apart *d = (apart *)dev;
  for (held **at = &d->all; *at; at = &(*at)->next) {
    held *h = *at;
    if (h->p != p) continue;
    *at = h->next;
    taken -= (int64_t)h->size;
    munmap(p, h->size);
    free(h);
    return;
  }
}

static void apart_copy(fm_device *dev, void *dst, const void *src, int64_t size) {
  unlock((apart *)dev, true);
  memcpy(dst, src, (size_t)size);
  unlock((apart *)dev, false);
}

static void apart_clear(fm_device *dev, void *dst, int64_t size) {
  unlock((apart *)dev, true);
  memset(dst, 0, (size_t)size);
  unlock((apart *)dev, false);
}

static void apart_enter(fm_device *dev) { fm_cpu_backend()->enter(((apart *)dev)->cpu); }
static void apart_leave(fm_device *dev) { fm_cpu_backend()->leave(((apart *)dev)->cpu); }

/* ---- transfers and noted passes ------------------------------------------------------------------------- */

static fm_status begin(fm_ctx *c) {
  apart *d = of(c);
  if (++d->ops >= d->fails) return fm_fail(&c->err, FM_EDEVICE, "apart: the device is gone");
  unlock(d, true);
  return FM_OK;
}

static fm_status transfer(fm_ctx *c, void *dst, const void *src, int64_t size) {
  if (of(c)->noting) return fm_fail(&c->err, FM_EDEVICE, "apart: a transfer while a pass is noted");
  TRY(begin(c));
  memcpy(dst, src, (size_t)size);
  unlock(of(c), false);
  return FM_OK;
}

static fm_status apart_stage(fm_ctx *c, void **host, int64_t size) {
  apart *d = of(c);
  if (d->staged) munmap(d->staged, d->staged_size);
  d->staged_size = (size_t)size + 1;
  d->staged = mmap(NULL, d->staged_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (d->staged == MAP_FAILED) {
    d->staged = NULL;
    return fm_no_memory(&c->err, size);
  }
  *host = d->staged;
  return FM_OK;
}

static fm_status apart_send(fm_ctx *c) {
  (void)c;
  return FM_OK;
}

static fm_status apart_record(fm_ctx *c, const int64_t key[8], bool *known) {
  (void)key;
  *known = false;
  of(c)->noting = true;
  return FM_OK;
}

static fm_status apart_play(fm_ctx *c, bool good) {
  (void)good;
  of(c)->noting = false;
  return FM_OK;
}

/* ---- operations: the CPU's, behind open pages ------------------------------------------------------------- */

#define OP(name, params, ...)                                        \
  static fm_status name params {                                     \
    fm_device *dev = c->dev;                                         \
    TRY(begin(c));                                                   \
    c->dev = of(c)->cpu;                                             \
    fm_status status = fm_cpu_backend()->__VA_ARGS__;                \
    c->dev = dev;                                                    \
    unlock(of(c), false);                                            \
    return status;                                                   \
  }

OP(embed, (fm_ctx *c, float *out, const fm_mat *t, const int32_t *id, int64_t n), embed(c, out, t, id, n))
OP(rms_norm, (fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w, int64_t n, int64_t dim, float eps),
   rms_norm(c, out, ldo, x, ldx, w, n, dim, eps))
OP(matmul, (fm_ctx *c, const fm_mm *mm, int64_t n), matmul(c, mm, n))
OP(rope, (fm_ctx *c, float *x, int64_t ldx, int64_t heads, int64_t stride, int64_t n, const fm_rope *r),
   rope(c, x, ldx, heads, stride, n, r))
OP(cache_store, (fm_ctx *c, const fm_cache *k, const fm_span *s, int64_t n, const float *x, int64_t ldx),
   cache_store(c, k, s, n, x, ldx))
OP(turn, (fm_ctx *c, const fm_turn *t), turn(c, t))
OP(mla_store, (fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n, const fm_rope *r),
   mla_store(c, a, q, kv, norm, eps, n, r))
OP(mla_prompt, (fm_ctx *c, const fm_attn *a), mla_prompt(c, a))
OP(mla_decode, (fm_ctx *c, const fm_attn *a), mla_decode(c, a))
OP(gqa, (fm_ctx *c, const fm_attn *a), gqa(c, a))
OP(route, (fm_ctx *c, int32_t *id, float *weight, const float *logits, const float *bias, const fm_route *r, int64_t n),
   route(c, id, weight, logits, bias, r, n))
OP(experts, (fm_ctx *c, float *out, const float *x, const int32_t *id, const float *weight, const fm_experts *e, int64_t n),
   experts(c, out, x, id, weight, e, n))

static const fm_backend *table(void) {
  static const fm_backend t = {
    .abi = FM_BACKEND_ABI, .name = "apart", .arithmetic = 1u << FM_F32,
    .cache_dtypes = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3, .chunk = 512,
    .open = apart_open, .close = apart_close, .memory = apart_memory, .info = apart_info,
    .alloc = apart_alloc, .release = apart_release, .copy = apart_copy, .clear = apart_clear, .enter = apart_enter, .leave = apart_leave,
    .upload = transfer, .download = transfer, .stage = apart_stage, .send = apart_send, .record = apart_record,
    .play = apart_play, .embed = embed, .rms_norm = rms_norm, .matmul = matmul, .rope = rope, .cache_store = cache_store, .turn = turn,
    .mla_store = mla_store, .mla_prompt = mla_prompt, .mla_decode = mla_decode, .gqa = gqa, .route = route,
    .experts = experts };
  return &t;
}

__attribute__((visibility("default"))) const fm_backend *fm_backend_open_apart(void);
const fm_backend *fm_backend_open_apart(void) { return table(); }
