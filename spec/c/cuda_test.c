/*
** cuda_test.c - the CUDA device's operations against their twins on the CPU, over random shapes, with poisoned outputs; and the
** rule that a row's bits hang on its own inputs alone. Without a GPU every line is a skip.
**
** Tolerances, as |difference| / norm of the reference over the whole output:
**   f32     1e-5: sums of at most some thousand products in another order, 6e-8 a step
**   bf16    6e-3: inputs rounded to eight bits (2^-9 each, uncorrelated), twice in a chain of two products; weights are exact
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "op/load.h"
#include "op/op.h"

#define F32_TOL 1e-5
#define BF16_TOL 6e-3

static int failures;
static fm_ctx cpu, gpu;

static void check(bool good, const char *what, double off) {
  printf("%s - cuda %s (off %.2g)\n", good ? "ok" : "not ok", what, off);
  failures += !good;
}
#define RUN(c, call) do { if ((call) != FM_OK) { printf("# %s: %s\n", #call, (c)->err.message); check(false, #call, NAN); } } while (0)

static uint64_t state = 7;
static uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}
static int64_t between(int64_t lo, int64_t hi) { return lo + draw() % (hi - lo + 1); }
static float unit(void) { return (float)draw() / 1073741824.0f - 1.0f; }

static void *need(size_t size) {
  void *p = malloc(size ? size : 1);
  if (!p) exit(2);
  return p;
}
static float *floats(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = unit();
  return p;
}
static float *poison(int64_t n) {
  float *p = need((size_t)n * sizeof *p);
  for (int64_t i = 0; i < n; i++) p[i] = NAN;
  return p;
}

/* ---- device copies, all released at the end of a case ---- */

static void *held[4096];
static int n_held;

static void *up(const void *src, int64_t size) {
  void *p;
  fm_error err;
  if (gpu.ops->alloc(gpu.dev, &p, size ? size : 16, &err) != FM_OK || gpu.ops->upload(&gpu, p, src, size) != FM_OK) exit(3);
  held[n_held++] = p;
  return p;
}
static float *upf(const float *src, int64_t n) { return src ? up(src, n * 4) : NULL; }
static void release(void) {
  while (n_held) gpu.ops->release(gpu.dev, held[--n_held]);
}
static float *down(const float *src, int64_t n) {
  float *p = need((size_t)n * 4);
  if (gpu.ops->download(&gpu, p, src, n * 4) != FM_OK) printf("# download: %s\n", gpu.err.message);
  return p;
}

/* |a - b| / |b|; NaN anywhere in the result where the reference has none makes it NaN. */
static double distance(const float *got, const float *want, int64_t n) {
  double d = 0, w = 0;
  for (int64_t i = 0; i < n; i++) d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]), w += (double)want[i] * want[i];
  return sqrt(d / (w > 0 ? w : 1));
}

typedef struct weight { fm_mat host, dev; } weight;

static weight new_weight(int64_t rows, int64_t cols, fm_dtype t) {
  weight w = { .host = { .dtype = t, .rows = rows, .cols = cols } };
  int64_t n = rows * cols, blocks = (rows + 127) / 128 * ((cols + 127) / 128), size = fm_dtype_size(t);
  char *data = need((size_t)(n * 4));
  float amplitude = 1 / sqrtf((float)cols);
  for (int64_t i = 0; i < n; i++) {
    float v = unit() * amplitude;
    if (t == FM_F32) ((float *)(void *)data)[i] = v;
    if (t == FM_BF16) ((uint16_t *)(void *)data)[i] = fm_f32_to_bf16(v);
    if (t == FM_F16) ((uint16_t *)(void *)data)[i] = fm_f32_to_f16(v);
    if (t == FM_F8_E4M3) data[i] = (char)fm_f32_to_f8(unit() * 300);
  }
  w.host.data = data;
  w.dev = w.host;
  w.dev.data = up(data, n * size);
  if (t == FM_F8_E4M3) {
    float *s = need((size_t)blocks * 4);
    for (int64_t i = 0; i < blocks; i++) s[i] = amplitude * (0.5f + 0.25f * unit()) / 200;
    w.host.scale = s;
    w.dev.scale = upf(s, blocks);
  }
  return w;
}
static void drop_weight(weight *w) { free((void *)(uintptr_t)w->host.data), free((void *)(uintptr_t)w->host.scale); }

/* ---- products ---- */

typedef struct product { int64_t n, rows, cols; fm_dtype t; bool norm, gate, add, bias; float amplitude; } product;

static double run_product(const product *p, bool generated, bool *alone) {
  int64_t ld = p->cols + (p->cols % 4 ? 1 : 4), ldo = p->rows % 8 ? p->rows + 2 : p->rows + 4;
  weight w = new_weight(p->rows, p->cols, p->t);
  float *x = floats(p->n * ld), *u = floats(p->n * ld), *nw = floats(p->cols), *b = floats(p->rows);
  float *out = floats(p->n * ldo), *start = p->add ? out : poison(p->n * ldo);
  for (int64_t i = 0; i < p->n * ld; i++) x[i] *= p->amplitude;
  float *dx = upf(x, p->n * ld), *du = upf(u, p->n * ld), *dn = upf(nw, p->cols), *db = upf(b, p->rows);
  float *dout = upf(start, p->n * ldo), *done = upf(start, p->n * ldo);
  fm_mm m = { .w = &w.host, .x = x, .ldx = ld, .norm = p->norm ? nw : NULL, .eps = 1e-6f, .up = p->gate ? u : NULL, .out = out,
              .ldo = ldo, .bias = p->bias ? b : NULL, .n = p->n, .add = p->add };
  fm_mm d = m, one;
  d.w = &w.dev, d.x = dx, d.norm = p->norm ? dn : NULL, d.up = p->gate ? du : NULL, d.out = dout, d.bias = p->bias ? db : NULL;
  gpu.generated = generated;
  RUN(&gpu, fm_op_matmul(&gpu, &d, 1));
  for (int64_t i = 0; i < p->n; i += p->n > 40 ? 17 : 1) {       // rows alone, or a few together
    one = d, one.n = p->n > 40 ? (p->n - i < 17 ? p->n - i : 17) : 1;
    one.x += i * ld, one.out = done + i * ldo;
    if (one.up) one.up += i * ld;
    RUN(&gpu, fm_op_matmul(&gpu, &one, 1));
  }
  float *got = down(dout, p->n * ldo), *single = down(done, p->n * ldo);
  RUN(&cpu, fm_op_matmul(&cpu, &m, 1));
  double d2 = 0, w2 = 0;
  for (int64_t i = 0; i < p->n; i++) {
    if (memcmp(got + i * ldo, single + i * ldo, (size_t)p->rows * 4) != 0) *alone = false;
    for (int64_t r = 0; r < p->rows; r++) {
      double want = out[i * ldo + r], e = got[i * ldo + r] - want;
      d2 += e * e, w2 += want * want;
    }
  }
  if (!p->add) free(start);
  free(x), free(u), free(nw), free(b), free(out), free(got), free(single), drop_weight(&w), release();
  return sqrt(d2 / (w2 > 0 ? w2 : 1));
}

static void test_products(void) {
  static const fm_dtype types[4] = { FM_F32, FM_BF16, FM_F16, FM_F8_E4M3 };
  static const char *const names[2][2] = { { "prompt products", "prompt products give the same bits in any company" },
                                           { "sampled rows' products", "sampled rows' products give the same bits in any company" } };
  for (int arithmetic = 0; arithmetic < 2; arithmetic++)
    for (int role = 0; role < 2; role++) {
      double worst = 0;
      bool alone = true;
      gpu.arithmetic = arithmetic ? FM_BF16 : FM_F32;
      for (int t = 0; t < 40; t++) {
        int64_t n = t % 4 == 0 ? 1 : t % 4 == 1 ? between(2, 9) : t % 4 == 2 ? between(9, 70) : between(70, 300);
        bool odd = t % 5 == 4;
        product p = { n, odd ? between(1, 200) : 8 * between(1, 60), odd ? between(1, 300) : 16 * between(1, 90), types[t / 4 % 4],
                      t % 3 == 0, t % 3 == 1, t % 2 == 0, t % 7 == 3, 1 };
        if (t % 6 == 5) p.amplitude = 1e6f;      // beyond what f16 holds
        if (t % 6 == 3 && !p.add) p.amplitude = 1e-6f;
        if (arithmetic && (p.t == FM_F32 || p.t == FM_F16)) p.t = FM_BF16;
        double off = run_product(&p, role == 1, &alone);
        if (!(off < (arithmetic ? BF16_TOL : F32_TOL)))
          printf("# n %d rows %d cols %d dtype %d norm %d gate %d add %d bias %d: off %g\n", (int)n, (int)p.rows, (int)p.cols, p.t,
                 p.norm, p.gate, p.add, p.bias, off);
        worst = off > worst || isnan(off) ? off : worst;
      }
      printf("# arithmetic %s\n", arithmetic ? "bf16" : "f32");
      check(worst < (arithmetic ? BF16_TOL : F32_TOL), names[role][0], worst);
      check(alone, names[role][1], 0);
    }
}

/* Scores of experts for rows of a prompt, in f32 whatever the arithmetic: sizes of V2-Lite, V3 and V2, odd numbers of rows. */
static void test_router(void) {
  static const product p[] = { { 300, 64, 2048, FM_F32, .norm = true, .amplitude = 1 }, { 33, 256, 7168, FM_F32, .norm = true, .amplitude = 1e3f },
                               { 45, 160, 5120, FM_F32, .amplitude = 1e-3f } };
  double worst = 0;
  bool alone = true;
  gpu.arithmetic = FM_F32;
  for (size_t i = 0; i < sizeof p / sizeof *p; i++) worst = fmax(worst, run_product(&p[i], false, &alone));
  check(worst < F32_TOL, "a router's products", worst);
  check(alone, "a router's products give the same bits in any company", 0);
}

/* ---- norm, embed, rope, cache ---- */

static void test_small(void) {
  double worst = 0;
  for (int t = 0; t < 10; t++) {
    int64_t n = between(1, 40), dim = between(1, 900), ld = dim + 3;
    float *x = floats(n * ld), *w = floats(dim), *out = poison(n * ld), *dx = upf(x, n * ld), *dw = upf(w, dim), *dout = upf(out, n * ld);
    RUN(&cpu, fm_op_rms_norm(&cpu, out, ld, x, ld, w, n, dim, 1e-6f));
    RUN(&gpu, fm_op_rms_norm(&gpu, dout, ld, dx, ld, dw, n, dim, 1e-6f));
    float *got = down(dout, n * ld);
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, distance(got + i * ld, out + i * ld, dim));
    free(x), free(w), free(out), free(got), release();
  }
  check(worst < F32_TOL, "rms_norm", worst);
  static const fm_dtype types[4] = { FM_F32, FM_BF16, FM_F16, FM_F8_E4M3 };
  worst = 0;
  for (int t = 0; t < 4; t++) {
    int64_t rows = 300, cols = between(1, 400);
    weight w = new_weight(rows, cols, types[t]);
    int32_t id[20];
    for (int i = 0; i < 20; i++) id[i] = (int32_t)between(0, rows - 1);
    float *out = poison(20 * cols), *dout = upf(out, 20 * cols);
    RUN(&cpu, fm_op_embed(&cpu, out, &w.host, id, 20));
    RUN(&gpu, fm_op_embed(&gpu, dout, &w.dev, id, 20));
    float *got = down(dout, 20 * cols);
    worst = fmax(worst, distance(got, out, 20 * cols));
    free(out), free(got), drop_weight(&w), release();
  }
  check(worst == 0, "embed", worst);
}

/* A cache on both sides: every page NaN, then rows 0 .. len-1 stored. */
typedef struct paged { fm_cache host, dev; int32_t *page; int64_t len, n_pages; float *rows; } paged;

static paged new_cache(int64_t len, int64_t width, fm_dtype t, int64_t latent) {
  paged c = { .len = len, .n_pages = (len + FM_PAGE - 1) / FM_PAGE, .rows = floats(len * width) };
  c.host = (fm_cache){ .width = width, .dtype = t, .latent = latent, .page_stride = FM_PAGE * fm_cache_row_size(t, width, latent) + 64 };
  int64_t size = c.host.page_stride * (c.n_pages + 1);
  c.host.base = need((size_t)size);
  memset(c.host.base, 0xff, (size_t)size);
  c.dev = c.host;
  c.dev.base = up(c.host.base, size);
  c.page = need((size_t)c.n_pages * sizeof *c.page);
  for (int64_t i = 0; i < c.n_pages; i++) c.page[i] = (int32_t)(c.n_pages - i);
  fm_span s = { .n = len, .pages = c.page };
  float *dx = upf(c.rows, len * width);
  RUN(&cpu, fm_op_cache_store(&cpu, &c.host, &s, 1, c.rows, width));
  RUN(&gpu, fm_op_cache_store(&gpu, &c.dev, &s, 1, dx, width));
  return c;
}
static void drop_cache(paged *c) { free(c->host.base), free(c->page), free(c->rows); }

/* Rows turned in place: the same bytes on both devices. */
static void test_turn(void) {
  bool same = true;
  static const fm_dtype types[3] = { FM_F32, FM_BF16, FM_F8_E4M3 };
  for (int t = 0; t < 12; t++) {
    bool gqa = t % 4 == 3;
    fm_dtype type = types[gqa ? t % 2 : t % 3];
    int64_t n = between(1, 200), dim = 2 * between(1, 32), heads = gqa ? between(1, 4) : 1, latent = gqa ? 0 : 4 * between(1, 60);
    int64_t width = gqa ? 2 * heads * dim : latent + dim;
    paged c = new_cache(n, width, type, latent);
    double cs[32], sn[32];
    for (int i = 0; i < dim / 2; i++) cs[i] = cos(i + t), sn[i] = sin(i + t);
    fm_turn turn = { .cache = &c.host, .from = c.page, .to = c.page, .index = n / 3, .n = n - n / 3, .at = latent, .n_heads = heads,
                     .dim = dim, .cos = cs, .sin = sn, .interleaved = t % 2 };
    fm_turn dev = turn;
    dev.cache = &c.dev;
    RUN(&cpu, fm_op_turn(&cpu, &turn));
    RUN(&gpu, fm_op_turn(&gpu, &dev));
    int64_t size = c.host.page_stride * (c.n_pages + 1);
    char *bytes = need((size_t)size);
    gpu.ops->download(&gpu, bytes, c.dev.base, size);
    same = same && memcmp(bytes, c.host.base, (size_t)size) == 0;
    free(bytes), drop_cache(&c), release();
  }
  check(same, "turn: cached rows become the same bytes", 0);
}

static void test_store(void) {
  bool good = true;
  double worst = 0;
  for (int t = 0; t < 8; t++) {
    int64_t n = between(1, 100), heads = between(1, 6), nope = between(1, 40), dim = 2 * between(1, 20), rank = between(1, 90);
    int64_t width = rank + dim, ldq = heads * (nope + dim), index = between(0, 80);
    paged c = new_cache(index + n, width, t % 3 == 2 ? FM_F8_E4M3 : t % 2 ? FM_BF16 : FM_F32, rank);
    float *q = floats(n * ldq), *kv = floats(n * width), *w = floats(rank), *cs = floats(300 * dim / 2), *sn = floats(300 * dim / 2);
    float *dq = upf(q, n * ldq), *dkv = upf(kv, n * width), *dw = upf(w, rank);
    int32_t *pos = need((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)(index + i);
    fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = dim, .interleaved = t % 3 != 0 }, dturn = turn;
    dturn.cos = upf(cs, 300 * dim / 2), dturn.sin = upf(sn, 300 * dim / 2);
    fm_span s = { .n = n, .index = index, .pages = c.page };
    fm_attn a = { .cache = &c.host, .span = &s, .n_spans = 1, .ldq = ldq, .n_heads = heads, .nope = nope, .rope = dim, .rank = rank };
    fm_attn d = a;
    d.cache = &c.dev;
    RUN(&cpu, fm_op_mla_store(&cpu, &a, q, kv, w, 1e-6f, n, &turn));
    RUN(&gpu, fm_op_mla_store(&gpu, &d, dq, dkv, dw, 1e-6f, n, &dturn));
    float *gq = down(dq, n * ldq), *gkv = down(dkv, n * width);
    worst = fmax(worst, fmax(distance(gq, q, n * ldq), distance(gkv, kv, n * width)));
    int64_t size = c.host.page_stride * (c.n_pages + 1);
    char *bytes = need((size_t)size);
    gpu.ops->download(&gpu, bytes, c.dev.base, size);
    for (int64_t j = 0; c.host.dtype != FM_F8_E4M3 && j < c.n_pages * FM_PAGE; j++) {     // the same places hold something
      int64_t at = c.page[j / FM_PAGE] * c.host.page_stride + j % FM_PAGE * width * fm_dtype_size(c.host.dtype);
      float u, v;
      fm_to_f32(&u, bytes + at, c.host.dtype, 1), fm_to_f32(&v, c.host.base + at, c.host.dtype, 1);
      good = good && isnan(u) == isnan(v) && (isnan(u) || fabsf(u - v) < 0.01f);
    }
    free(q), free(kv), free(w), free(cs), free(sn), free(pos), free(gq), free(gkv), free(bytes), drop_cache(&c), release();
  }
  check(worst < F32_TOL, "mla_store: norm and rotation", worst);
  check(good, "mla_store writes the same places of the cache", 0);
}

/* The same rows make the same bytes of an f8 cache on both devices, those of what is not finite included. */
static void test_store8(void) {
  bool same = true;
  for (int t = 0; t < 12; t++) {
    int64_t n = between(1, 90), latent = t ? between(1, 600) : 512, width = latent + 2 * between(0, 40);
    paged c = new_cache(n, width, FM_F8_E4M3, latent);
    for (int64_t i = 0; i < n * width; i++) c.rows[i] *= ldexpf(1, (int)between(-20, 9));
    if (t % 3 == 1) c.rows[between(0, latent - 1)] = t % 2 ? NAN : INFINITY;
    for (int64_t i = 0; t % 3 == 2 && i < latent; i++) c.rows[i] = 0;
    fm_span s = { .n = n, .pages = c.page };
    RUN(&cpu, fm_op_cache_store(&cpu, &c.host, &s, 1, c.rows, width));
    RUN(&gpu, fm_op_cache_store(&gpu, &c.dev, &s, 1, upf(c.rows, n * width), width));
    int64_t size = c.host.page_stride * (c.n_pages + 1), row = fm_cache_row_size(FM_F8_E4M3, width, latent);
    char *bytes = need((size_t)size);
    gpu.ops->download(&gpu, bytes, c.dev.base, size);
    for (int64_t j = 0; j < n; j++) {
      const char *got = bytes + c.page[j / FM_PAGE] * c.host.page_stride + j % FM_PAGE * row;
      const char *want = c.host.base + (got - bytes);
      float by = 1, its = 1;
      for (int64_t at = 0; at < latent; at += FM_CACHE_TILE) {   // a tile whose scale is NaN may hold anything
        int64_t end = at + FM_CACHE_TILE < latent ? at + FM_CACHE_TILE : latent, scale = fm_cache_scales(latent) + at / FM_CACHE_TILE * 4;
        memcpy(&by, want + scale, 4), memcpy(&its, got + scale, 4);
        same = same && (isnan(by) ? isnan(its) : by == its && !memcmp(got + at, want + at, (size_t)(end - at)));
      }
      same = same && !memcmp(got + fm_cache_rest(latent), want + fm_cache_rest(latent), (size_t)(width - latent) * 2);
    }
    free(bytes), drop_cache(&c), release();
  }
  check(same, "an f8 cache holds the cpu's bytes", 0);
}

/* ---- attention ---- */

typedef struct sizes { int64_t heads, kv_heads, nope, rope, v, rank; } sizes;

static double run_attention(fm_status (*fn)(fm_ctx *, const fm_attn *), const sizes *z, fm_dtype kt, fm_dtype cache, const int64_t (*at)[3],
                            int64_t n_spans, bool *alone) {
  bool mla = z->rank > 0;
  int64_t width = mla ? z->rank + z->rope : 2 * z->kv_heads * z->nope, rows = 0, longest = 0, v = mla ? z->v : z->nope;
  for (int64_t i = 0; i < n_spans; i++) {
    rows += at[i][1];
    longest = at[i][0] + at[i][1] > longest ? at[i][0] + at[i][1] : longest;
  }
  paged c = new_cache(longest, width, cache, z->rank);
  weight w = new_weight(mla ? z->heads * (z->nope + z->v) : 8, mla ? z->rank : 8, kt);
  int64_t ldq = z->heads * (z->nope + z->rope), ldo = z->heads * v;
  float *q = floats(rows * ldq), *out = poison(rows * ldo), *dq = upf(q, rows * ldq), *dout = upf(out, rows * ldo), *dalone = upf(out, rows * ldo);
  fm_span *s = need((size_t)n_spans * sizeof *s);
  for (int64_t i = 0, row = 0; i < n_spans; row += at[i++][1])
    s[i] = (fm_span){ .row = row, .n = at[i][1], .index = at[i][0], .first_key = at[i][2], .pages = c.page };
  fm_attn a = { .cache = &c.host, .span = s, .n_spans = n_spans, .q = q, .ldq = ldq, .out = out, .ldo = ldo, .n_heads = z->heads,
                .n_kv_heads = z->kv_heads, .nope = z->nope, .rope = z->rope, .v_head_dim = z->v, .rank = z->rank,
                .scale = 1 / sqrtf((float)(z->nope + z->rope)), .kv_b = mla ? &w.host : NULL };
  fm_attn d = a;
  d.cache = &c.dev, d.q = dq, d.out = dout, d.kv_b = mla ? &w.dev : NULL;
  RUN(&cpu, fn(&cpu, &a));
  RUN(&gpu, fn(&gpu, &d));
  d.out = dalone;
  for (int64_t i = 0; i < n_spans; i++)                          // each span alone, and in two halves
    for (int64_t r = 0; r < s[i].n; r += (s[i].n + 1) / 2) {
      fm_span part = s[i];
      part.row += r, part.index += r, part.n = s[i].n - r < (s[i].n + 1) / 2 ? s[i].n - r : (s[i].n + 1) / 2;
      d.span = &part, d.n_spans = 1;
      RUN(&gpu, fn(&gpu, &d));
    }
  float *got = down(dout, rows * ldo), *single = down(dalone, rows * ldo);
  if (memcmp(got, single, (size_t)(rows * ldo) * 4) != 0) *alone = false;
  double off = distance(got, out, rows * ldo);
  free(q), free(out), free(s), free(got), free(single), drop_cache(&c), drop_weight(&w), release();
  return off;
}

static const char *words = "";
static void test_attention(void) {
  static const sizes lite = { 16, 0, 128, 64, 128, 512 }, v3 = { 128, 0, 128, 64, 128, 512 }, pocket = { 8, 0, 32, 16, 32, 128 };
  static const sizes twenty = { 20, 0, 128, 64, 128, 512 };
  static const sizes odd = { 5, 0, 13, 6, 11, 37 }, gqa = { 12, 2, 128, 0, 0, 0 }, small = { 6, 3, 17, 0, 0, 0 };
  static const sizes seven = { 28, 4, 128, 0, 0, 0 }, own = { 40, 40, 128, 0, 0, 0 };
  static const int64_t batch[][3] = { { 0, 1, 0 }, { 5, 1, 0 }, { 63, 1, 0 }, { 64, 2, 0 }, { 511, 3, 0 }, { 700, 8, 0 }, { 1500, 4, 1 }, { 200, 1, 130 } };
  static const int64_t prompts[][3] = { { 0, 200, 0 }, { 130, 70, 0 }, { 1, 65, 1 }, { 300, 100, 70 }, { 0, 600, 0 } };
  static const int64_t little[][3] = { { 0, 7, 0 }, { 60, 9, 0 }, { 2046, 4, 0 }, { 1100, 1, 70 } };
  static const int64_t ones[][3] = { { 0, 1, 0 }, { 127, 1, 0 }, { 128, 1, 0 }, { 2047, 1, 0 }, { 2048, 1, 1 }, { 4095, 1, 0 }, { 900, 1, 700 } };
  static const int64_t twos[][3] = { { 0, 2, 0 }, { 2047, 2, 0 }, { 300, 2, 0 }, { 64, 1, 1 } };
  static const int64_t drafts[][3] = { { 10, 3, 0 }, { 2044, 8, 0 }, { 63, 5, 0 }, { 4093, 7, 1 }, { 900, 6, 700 } };
  struct { const char *name; fm_status (*fn)(fm_ctx *, const fm_attn *); const sizes *z; fm_dtype kt, cache, arithmetic; const int64_t (*at)[3]; int64_t n; } cases[] = {
    { "mla_decode f32, odd sizes", fm_op_mla_decode, &odd, FM_F32, FM_F32, FM_F32, batch, 8 },
    { "mla_decode f32, pocket's sizes, f8", fm_op_mla_decode, &pocket, FM_F8_E4M3, FM_F32, FM_F32, batch, 8 },
    { "mla_prompt f32, odd sizes", fm_op_mla_prompt, &odd, FM_BF16, FM_F32, FM_F32, prompts, 4 },
    { "mla_decode f32, odd sizes, f8 cache", fm_op_mla_decode, &odd, FM_F32, FM_F8_E4M3, FM_F32, batch, 8 },
    { "mla_prompt f32, pocket's sizes, f8 cache", fm_op_mla_prompt, &pocket, FM_BF16, FM_F8_E4M3, FM_F32, prompts, 5 },
    { "mla_decode, pocket's sizes, bf16 cache", fm_op_mla_decode, &pocket, FM_F8_E4M3, FM_BF16, FM_BF16, batch, 8 },
    { "mla_prompt, pocket's sizes, bf16 cache", fm_op_mla_prompt, &pocket, FM_F8_E4M3, FM_BF16, FM_F8_E4M3, prompts, 5 },
    { "gqa f32, odd sizes", fm_op_gqa, &small, FM_F32, FM_F32, FM_F32, batch, 8 },
    { "gqa f32, head_dim 128, bf16 cache", fm_op_gqa, &gqa, FM_F32, FM_BF16, FM_F32, prompts, 4 },
    { "gqa bf16, a prompt, groups of 6", fm_op_gqa, &gqa, FM_F32, FM_BF16, FM_BF16, prompts, 5 },
    { "gqa bf16, a prompt, groups of 7", fm_op_gqa, &seven, FM_F32, FM_BF16, FM_BF16, prompts, 5 },
    { "gqa bf16, few rows, groups of 6", fm_op_gqa, &gqa, FM_F32, FM_BF16, FM_BF16, batch, 8 },
    { "gqa bf16, few rows, groups of 7, up to eight rows", fm_op_gqa, &seven, FM_F32, FM_BF16, FM_BF16, drafts, 5 },
    { "gqa bf16, a row a sequence, every head its own", fm_op_gqa, &own, FM_F32, FM_BF16, FM_BF16, ones, 7 },
    { "mla_decode bf16, V2-Lite's sizes", fm_op_mla_decode, &lite, FM_BF16, FM_BF16, FM_BF16, batch, 8 },
    { "mla_decode bf16, V2-Lite's sizes, f8", fm_op_mla_decode, &lite, FM_F8_E4M3, FM_BF16, FM_BF16, batch, 7 },
    { "mla_decode bf16, V3's sizes", fm_op_mla_decode, &v3, FM_BF16, FM_BF16, FM_BF16, little, 4 },
    { "mla_decode bf16, V3's sizes, a row a sequence", fm_op_mla_decode, &v3, FM_BF16, FM_BF16, FM_BF16, ones, 7 },
    { "mla_decode bf16, V2-Lite's sizes, a row a sequence", fm_op_mla_decode, &lite, FM_BF16, FM_BF16, FM_BF16, ones, 7 },
    { "mla_decode bf16, V2-Lite's sizes, two rows a sequence", fm_op_mla_decode, &lite, FM_BF16, FM_BF16, FM_BF16, twos, 4 },
    { "mla_decode bf16, 20 heads, up to eight rows", fm_op_mla_decode, &twenty, FM_BF16, FM_BF16, FM_BF16, drafts, 5 },
    { "mla_decode bf16, 20 heads, f8 cache", fm_op_mla_decode, &twenty, FM_BF16, FM_F8_E4M3, FM_BF16, drafts, 5 },
    { "mla_decode bf16, V2-Lite's sizes, f8 cache", fm_op_mla_decode, &lite, FM_BF16, FM_F8_E4M3, FM_BF16, batch, 8 },
    { "mla_decode bf16, V3's sizes, f8 cache", fm_op_mla_decode, &v3, FM_F8_E4M3, FM_F8_E4M3, FM_BF16, little, 2 },
    { "mla_prompt bf16, V2-Lite's sizes, f8 cache", fm_op_mla_prompt, &lite, FM_BF16, FM_F8_E4M3, FM_BF16, prompts, 5 },
    { "mla_prompt bf16, V2-Lite's sizes", fm_op_mla_prompt, &lite, FM_BF16, FM_BF16, FM_BF16, prompts, 5 },
    { "mla_prompt bf16, V2-Lite's sizes, f8", fm_op_mla_prompt, &lite, FM_F8_E4M3, FM_BF16, FM_BF16, prompts, 5 } };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    bool alone = true;
    if (!strstr(cases[i].name, words)) continue;
    gpu.arithmetic = cases[i].arithmetic;
    gpu.generated = cases[i].fn == fm_op_mla_decode || (cases[i].fn == fm_op_gqa && cases[i].at != prompts);
    double off = run_attention(cases[i].fn, cases[i].z, cases[i].kt, cases[i].cache, cases[i].at, cases[i].n, &alone);
    check(off < (cases[i].arithmetic == FM_F32 ? F32_TOL : 1.5 * BF16_TOL), cases[i].name, off);   // weights of the softmax are rounded too
    check(alone, "... the same bits alone and in parts", 0);
  }
}

/* Rows that mla_decode stores for itself: beside the cpu's, and the bits of storing and decoding one after the other. */
static void run_fresh(const sizes *z, fm_dtype kt, fm_dtype cache, const int64_t (*at)[3], int64_t n_spans, double *worst, bool *same) {
  int64_t width = z->rank + z->rope, ldq = z->heads * (z->nope + z->rope), ldo = z->heads * z->v, rows = 0, most = 0;
  for (int64_t i = 0; i < n_spans; i++) rows += at[i][1], most = at[i][0] + at[i][1] > most ? at[i][0] + at[i][1] : most;
  int64_t per = (most + FM_PAGE - 1) / FM_PAGE, n_pages = n_spans * per;
  paged c = new_cache(n_pages * FM_PAGE, width, cache, z->rank);       // every sequence has pages of its own
  weight w = new_weight(z->heads * (z->nope + z->v), z->rank, kt);
  int64_t size = c.host.page_stride * (c.n_pages + 1);
  float *q = floats(rows * ldq), *kv = floats(rows * width), *norm = floats(z->rank), *cs = floats(2 * most * z->rope), *sn = floats(2 * most * z->rope);
  float *out = poison(rows * ldo), *got[2], *dout[2] = { upf(out, rows * ldo), upf(out, rows * ldo) };
  float *dq[2] = { upf(q, rows * ldq), upf(q, rows * ldq) }, *dkv[2] = { upf(kv, rows * width), upf(kv, rows * width) };
  char *pages[2] = { c.dev.base, up(c.host.base, size) }, *bytes[2] = { need((size_t)size), need((size_t)size) };
  int32_t *pos = need((size_t)rows * 4);
  fm_span *s = need((size_t)n_spans * sizeof *s);
  for (int64_t i = 0, row = 0; i < n_spans; row += at[i++][1]) {
    s[i] = (fm_span){ .row = row, .n = at[i][1], .index = at[i][0], .first_key = at[i][2], .pages = c.page + i * per };
    for (int64_t j = 0; j < at[i][1]; j++) pos[row + j] = (int32_t)(at[i][0] + j);
  }
  fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = z->rope, .interleaved = rows % 2 == 0 }, dturn = turn;
  dturn.cos = upf(cs, 2 * most * z->rope), dturn.sin = upf(sn, 2 * most * z->rope);
  fm_fresh f = { q, kv, norm, 1e-6f, rows, &turn }, df = { NULL, NULL, upf(norm, z->rank), 1e-6f, rows, &dturn };
  fm_attn a = { .cache = &c.host, .span = s, .n_spans = n_spans, .q = q, .ldq = ldq, .out = out, .ldo = ldo, .n_heads = z->heads, .nope = z->nope,
                .rope = z->rope, .v_head_dim = z->v, .rank = z->rank, .scale = 1 / sqrtf((float)(z->nope + z->rope)), .kv_b = &w.host, .fresh = &f };
  RUN(&cpu, fm_op_mla_decode(&cpu, &a));
  for (int i = 0; i < 2; i++) {
    fm_attn d = a;
    c.dev.base = pages[i], df.q = dq[i], df.kv = dkv[i];
    d.cache = &c.dev, d.q = dq[i], d.out = dout[i], d.kv_b = &w.dev, d.fresh = i ? NULL : &df;
    if (i) RUN(&gpu, fm_op_mla_store(&gpu, &d, dq[i], dkv[i], df.norm, 1e-6f, rows, &dturn));
    RUN(&gpu, fm_op_mla_decode(&gpu, &d));
    got[i] = down(dout[i], rows * ldo);
    gpu.ops->download(&gpu, bytes[i], pages[i], size);
  }
  *worst = fmax(*worst, distance(got[0], out, rows * ldo));
  *same = *same && !memcmp(got[0], got[1], (size_t)(rows * ldo) * 4) && !memcmp(bytes[0], bytes[1], (size_t)size);
  for (int i = 0; i < 2; i++) free(got[i]), free(bytes[i]);
  free(q), free(kv), free(norm), free(cs), free(sn), free(out), free(pos), free(s), drop_cache(&c), drop_weight(&w), release();
}

static void test_fresh(void) {
  static const sizes lite = { 16, 0, 128, 64, 128, 512 }, v3 = { 128, 0, 128, 64, 128, 512 }, pocket = { 8, 0, 32, 16, 32, 128 };
  static const int64_t one[][3] = { { 1023, 1, 0 } }, many[][3] = { { 0, 1, 0 }, { 5, 1, 0 }, { 63, 3, 0 }, { 64, 2, 0 }, { 127, 8, 0 }, { 300, 1, 70 } };
  double worst = 0;
  bool same = true;
  gpu.arithmetic = FM_BF16, gpu.generated = true;
  for (int f8 = 0; f8 < 2; f8++) {
    fm_dtype cache = f8 ? FM_F8_E4M3 : FM_BF16;
    run_fresh(&lite, f8 ? FM_F8_E4M3 : FM_BF16, cache, one, 1, &worst, &same);
    run_fresh(&lite, f8 ? FM_BF16 : FM_F8_E4M3, cache, many, 6, &worst, &same);
    run_fresh(&pocket, FM_F8_E4M3, cache, many, 6, &worst, &same);
  }
  run_fresh(&v3, FM_BF16, FM_BF16, many, 6, &worst, &same);
  check(worst < 1.5 * BF16_TOL, "mla_decode of rows that it stores itself", worst);
  check(same, "... the bits of storing them first, in the cache too", 0);
}

/* A NaN among the queries of a head makes all of its answer NaN, one among the keys that of every head that sees it; other
   sequences' rows stay what they are. Rows: the first two of one, of which row 0 sees one key; the last two of a longer one, of which
   the very last has a planted key (beside it nothing times NaN may be NaN, too). */
static bool nan_comes_through(fm_status (*fn)(fm_ctx *, const fm_attn *), const sizes *z, fm_dtype kt, fm_dtype cache, int64_t len) {
  bool mla = z->rank > 0, good = true;
  int64_t width = mla ? z->rank + z->rope : 2 * z->kv_heads * z->nope, v = mla ? z->v : z->nope, qk = z->nope + z->rope, rows = 4;
  paged c = new_cache(len, width, cache, z->rank);
  weight w = new_weight(mla ? z->heads * (z->nope + z->v) : 8, mla ? z->rank : 8, kt);
  fm_span s[2] = { { .row = 0, .n = 2, .index = 0, .pages = c.page }, { .row = 2, .n = 2, .index = len - 2, .pages = c.page } };
  for (int64_t i = (len - 1) * width; i < len * width; i++) c.rows[i] = NAN;
  fm_span all = { .n = len, .pages = c.page };
  RUN(&gpu, fm_op_cache_store(&gpu, &c.dev, &all, 1, upf(c.rows, len * width), width));
  float *q = floats(rows * z->heads * qk), *out = poison(rows * z->heads * v);
  q[qk - 1] = NAN;                                               // row 0, head 0; row 2, the last head
  q[(2 * z->heads + z->heads - 1) * qk] = NAN;
  fm_attn a = { .cache = &c.dev, .span = s, .n_spans = 2, .q = upf(q, rows * z->heads * qk), .ldq = z->heads * qk,
                .out = upf(out, rows * z->heads * v), .ldo = z->heads * v, .n_heads = z->heads, .n_kv_heads = z->kv_heads, .nope = z->nope,
                .rope = z->rope, .v_head_dim = z->v, .rank = z->rank, .scale = 1 / sqrtf((float)qk), .kv_b = mla ? &w.dev : NULL };
  RUN(&gpu, fn(&gpu, &a));
  float *got = down(a.out, rows * z->heads * v);
  for (int64_t i = 0; i < rows * z->heads * v; i++) {
    int64_t row = i / (z->heads * v), h = i / v % z->heads;
    bool planted = (row == 0 && h == 0) || (row == 2 && h == z->heads - 1) || row == 3;
    good = good && (planted ? isnan(got[i]) : row == 2 || !isnan(got[i]));
  }
  free(q), free(out), free(got), drop_cache(&c), drop_weight(&w), release();
  return good;
}

static void test_nan(void) {
  static const sizes lite = { 16, 0, 128, 64, 128, 512 }, v3 = { 128, 0, 128, 64, 128, 512 }, pocket = { 8, 0, 32, 16, 32, 128 };
  static const sizes odd = { 5, 0, 13, 6, 11, 37 }, gqa = { 12, 2, 128, 0, 0, 0 };
  struct { const char *name; fm_status (*fn)(fm_ctx *, const fm_attn *); const sizes *z; fm_dtype kt, cache, arithmetic; } c[] = {
    { "f32, odd sizes", fm_op_mla_decode, &odd, FM_F32, FM_F32, FM_F32 },
    { "bf16, pocket's sizes", fm_op_mla_prompt, &pocket, FM_F8_E4M3, FM_BF16, FM_BF16 },
    { "f32, pocket's sizes, f8 cache", fm_op_mla_decode, &pocket, FM_F8_E4M3, FM_F8_E4M3, FM_F32 },
    { "gqa, bf16 cache", fm_op_gqa, &gqa, FM_F32, FM_BF16, FM_F32 },
    { "gqa in bf16", fm_op_gqa, &gqa, FM_F32, FM_BF16, FM_BF16 },
    { "mla_decode, V2-Lite's sizes", fm_op_mla_decode, &lite, FM_BF16, FM_BF16, FM_BF16 },
    { "mla_decode, V2-Lite's sizes, f8 cache", fm_op_mla_decode, &lite, FM_F8_E4M3, FM_F8_E4M3, FM_BF16 },
    { "mla_decode, V3's sizes", fm_op_mla_decode, &v3, FM_BF16, FM_BF16, FM_BF16 },
    { "mla_prompt, V2-Lite's sizes", fm_op_mla_prompt, &lite, FM_BF16, FM_BF16, FM_BF16 },
    { "mla_prompt, V2-Lite's sizes, f8 cache", fm_op_mla_prompt, &lite, FM_F8_E4M3, FM_F8_E4M3, FM_BF16 } };
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    char line[128];
    gpu.arithmetic = c[i].arithmetic;
    bool good = true;
    for (int way = 0; way < 2; way++) {            // grouped queries as rows of a prompt and as few
      gpu.generated = way || c[i].fn == fm_op_mla_decode;
      if (way && c[i].fn != fm_op_gqa) break;
      good = nan_comes_through(c[i].fn, c[i].z, c[i].kt, c[i].cache, 100) && nan_comes_through(c[i].fn, c[i].z, c[i].kt, c[i].cache, 1100) && good;
    }
    snprintf(line, sizeof line, "a NaN comes through attention: %s", c[i].name);
    check(good, line, 0);
  }
}

/* ---- drawing ---- */

static int32_t best_of(const float *logit, const fm_draw_rule *r, int64_t n_valid) {
  double most = -INFINITY;
  int32_t best = 0;
  for (int32_t i = 0; i < n_valid; i++) {
    double v = logit[i];
    if (r->temperature > 0) v = v / r->temperature - log(-log(fm_noise(r->seed, r->sample, r->index, i)));
    if (logit[i] > -INFINITY && v > most) most = v, best = i;
  }
  return best;
}

static bool placed(const fm_drawn *a, const fm_drawn *b) {
  return a->n_before == b->n_before && a->logit == b->logit && a->best == b->best && fabsf(a->before - b->before) <= 1e-5f * b->all &&
         fabsf(a->all - b->all) <= 1e-5f * b->all;
}

/* Flat logits (noise decides, also where it is close to its ends), steep ones, masked ones, ties. */
static void test_draw(void) {
  enum { N = 24, VOCAB = 20003, VALID = 20000 };
  static const float temperature[4] = { 1, 0, 0.01f, 30 };
  float *logit = floats((int64_t)N * VOCAB);
  fm_draw_rule rule[N];
  fm_drawn none[N] = { { 0 } };
  int wrong = 0, misplaced = 0;
  for (int i = 0; i < N; i++) {
    rule[i] = (fm_draw_rule){ .seed = draw(), .index = draw(), .sample = (uint32_t)i, .temperature = temperature[i % 4], .stands = i % 4 != 1 && i % 3 };
    for (int j = 0; j < VOCAB; j++) {
      float *l = &logit[i * VOCAB + j];
      *l = i / 4 == 0 ? 0 : i / 4 == 1 ? *l * 20 : i / 4 == 2 && j % 3 ? -INFINITY : i / 4 == 3 ? (float)(j % 7) : *l;
    }
  }
  float *dlogit = upf(logit, (int64_t)N * VOCAB);
  fm_drawn *out = up(none, sizeof none);
  for (int64_t at = 0, n = 1; at < N; at += n, n = 5) {          // a row alone, then a few, then all
    RUN(&gpu, gpu.ops->draw(&gpu, out + at, dlogit + at * VOCAB, rule + at, at + n > N ? N - at : n, VOCAB, VALID));
  }
  for (int turn = 0; turn < 2; turn++) {
    if (turn) RUN(&gpu, gpu.ops->draw(&gpu, out, dlogit, rule, N, VOCAB, VALID));
    fm_drawn *got = (fm_drawn *)(void *)down((float *)(void *)out, N * (int64_t)(sizeof *got / sizeof(float))), same[N];
    if (turn) RUN(&cpu, cpu.ops->draw(&cpu, same, logit, rule, N, VOCAB, VALID));
    for (int i = 0; i < N; i++) {
      wrong += got[i].id != best_of(logit + i * VOCAB, &rule[i], VALID);
      misplaced += turn && rule[i].stands && !placed(&got[i], &same[i]);
    }
    free(got);
  }
  free(logit), release();
  check(wrong == 0, "draws what the sampler would", wrong);
  check(misplaced == 0, "and says how it stands among all", misplaced);
}

/* ---- routing and experts ---- */

static void test_route(void) {
  double worst = 0;
  int64_t wrong = 0;
  for (int t = 0; t < 60; t++) {
    int64_t groups = between(1, 4), size = between(2, 40), n = between(1, 50);
    fm_route r = { .n_experts = groups * size, .n_group = groups, .topk_group = between(1, groups), .sigmoid = t % 2, .group_top2 = t % 4 > 1,
                   .norm_topk_prob = t % 3 == 0, .routed_scaling_factor = 1.5f };
    int64_t most = groups > 1 ? r.topk_group * size : size;
    r.top_k = between(1, most < 8 ? most : 8);
    float *z = floats(n * r.n_experts), *bias = floats(r.n_experts), *w = poison(n * r.top_k);
    for (int64_t i = 0; t % 5 == 0 && i < n * r.n_experts; i++) z[i] = (float)between(-1, 1);
    int32_t *id = need((size_t)(n * r.top_k) * 4);
    float *dz = upf(z, n * r.n_experts), *db = upf(bias, r.n_experts), *dw = upf(w, n * r.top_k);
    int32_t *did = up(id, n * r.top_k * 4);
    RUN(&cpu, fm_op_route(&cpu, id, w, z, t % 2 ? bias : NULL, &r, n));
    RUN(&gpu, fm_op_route(&gpu, did, dw, dz, t % 2 ? db : NULL, &r, n));
    float *gw = down(dw, n * r.top_k);
    int32_t *gid = (int32_t *)(void *)down((float *)(void *)did, n * r.top_k);
    for (int64_t i = 0; i < n * r.top_k; i++) wrong += gid[i] != id[i];
    worst = fmax(worst, distance(gw, w, n * r.top_k));
    free(z), free(bias), free(w), free(id), free(gw), free(gid), release();
  }
  check(wrong == 0, "route chooses what the cpu chooses", (double)wrong);
  check(worst < 1e-6, "route's weights", worst);
}

static fm_mat *stack(weight *all, int64_t n, bool dev) {
  fm_mat *m = need((size_t)n * sizeof *m);
  for (int64_t i = 0; i < n; i++) {
    m[i] = dev ? all->dev : all->host;
    int64_t rows = m[i].rows / n;
    m[i].data = (const char *)m[i].data + i * rows * m[i].cols * fm_dtype_size(m[i].dtype);
    if (m[i].scale) m[i].scale += i * ((rows + 127) / 128) * ((m[i].cols + 127) / 128);
    m[i].rows = rows;
  }
  return m;
}

/* As ranks make it, to the same bits: each half of the experts answers, slots are added in their order, the shared expert is products of
   its own. before (n, hidden): what they are added to; dx, did: on the device. */
static float *run_spread(const fm_experts *e, const float *before, const float *dx, const int32_t *did, const float *w, int64_t n) {
  int64_t d = e->hidden_size, k = e->top_k, slots = n * k, size = fm_answers_size(slots, d), wide = e->shared_gate ? e->shared_gate->rows : 0;
  float *sum = need((size_t)(n * d) * 4), *gate, *second;
  memset(sum, 0, (size_t)(n * d) * 4);
  int32_t *id = (int32_t *)(void *)down((const float *)(const void *)did, slots), *place[2];
  float *answers[2];
  for (int r = 0; r < 2; r++) {
    int64_t first = r ? e->n_experts / 2 : 0;
    fm_experts mine = *e;
    mine.n_experts = r ? e->n_experts - first : e->n_experts / 2;
    mine.gate += first, mine.up += first, mine.down += first;
    mine.shared_gate = mine.shared_up = mine.shared_down = NULL, mine.choose = NULL;
    float *nothing = poison(size / 4), *at = upf(nothing, size / 4);
    RUN(&gpu, gpu.ops->experts_of(&gpu, at, dx, did, first, &mine, n));
    answers[r] = down(at, size / 4), place[r] = (int32_t *)(void *)answers[r];
    free(nothing);
  }
  for (int64_t s = 0; s < slots; s++) {
    int r = id[s] >= e->n_experts / 2;
    const float *y = (const float *)(const void *)((char *)answers[r] + fm_answers_at(slots)) + place[r][s] * d;
    for (int64_t i = 0; i < d; i++) sum[s / k * d + i] = fmaf(w[s], y[i], sum[s / k * d + i]);
  }
  for (int64_t i = 0; i < n * d; i++) sum[i] += before[i];
  float *to = upf(sum, n * d);
  if (wide) {
    float *room = need((size_t)(n * wide) * 4);
    gate = upf(room, n * wide), second = upf(room, n * wide);
    fm_mm in[2] = { { .w = e->shared_gate, .x = dx, .ldx = d, .norm = e->norm, .eps = e->eps, .out = gate, .ldo = wide, .n = n },
                    { .w = e->shared_up, .x = dx, .ldx = d, .norm = e->norm, .eps = e->eps, .out = second, .ldo = wide, .n = n } };
    fm_mm last = { .w = e->shared_down, .x = gate, .ldx = wide, .up = second, .out = to, .ldo = d, .n = n, .add = true };
    RUN(&gpu, fm_op_matmul(&gpu, in, 2));
    RUN(&gpu, fm_op_matmul(&gpu, &last, 1));
    free(room);
  }
  free(sum), free(id), free(answers[0]), free(answers[1]);
  return down(to, n * d);
}

/* choose: by the call itself, from logits; else ids stand there, all rows' the same when skew. */
static double run_experts(int64_t n, int64_t n_exp, int64_t k, int64_t d, int64_t m, int64_t wide, fm_dtype t, int skew, bool choose, bool *alone, bool *spread) {
  weight g = new_weight(n_exp * m, d, t), u = new_weight(n_exp * m, d, t), o = new_weight(n_exp * d, m, t);
  weight sg = new_weight(wide ? wide : 1, d, t), su = new_weight(wide ? wide : 1, d, t), so = new_weight(d, wide ? wide : 16, t);
  float *x = floats(n * d), *nw = floats(d), *w = floats(n * k), *out = floats(n * d);
  for (int64_t i = 0; i < n * d; i++) out[i] *= 0.01f;           // what is added to must not drown what is added
  int32_t *id = need((size_t)(n * k) * 4);
  float *before = need((size_t)(n * d) * 4);
  memcpy(before, out, (size_t)(n * d) * 4);
  for (int64_t i = 0; i < n; i++)
    for (int64_t s = 0, e = skew ? 0 : between(0, n_exp - k); s < k; s++) id[i * k + s] = (int32_t)(e + s);
  float *logits = floats(n * n_exp), *dlogits = upf(logits, n * n_exp), *dx = upf(x, n * d), *dn = upf(nw, d), *dw = upf(w, n * k), *dout = upf(out, n * d), *done = upf(out, n * d);
  int32_t *did = up(id, n * k * 4);
  fm_experts a = { .n_experts = n_exp, .top_k = k, .hidden_size = d, .moe_intermediate_size = m, .gate = stack(&g, n_exp, false),
                   .up = stack(&u, n_exp, false), .down = stack(&o, n_exp, false), .norm = nw, .eps = 1e-6f };
  fm_experts b = a;
  b.gate = stack(&g, n_exp, true), b.up = stack(&u, n_exp, true), b.down = stack(&o, n_exp, true), b.norm = dn;
  if (wide) {
    a.shared_gate = &sg.host, a.shared_up = &su.host, a.shared_down = &so.host;
    b.shared_gate = &sg.dev, b.shared_up = &su.dev, b.shared_down = &so.dev;
  }
  fm_route rule = { .n_experts = n_exp, .top_k = k, .n_group = 1, .topk_group = 1, .routed_scaling_factor = 1.5f };
  fm_gate ga = { &rule, logits, NULL, id, w }, gb = { &rule, dlogits, NULL, did, dw };
  if (choose) a.choose = &ga, b.choose = &gb;
  RUN(&cpu, fm_op_experts(&cpu, out, x, id, w, &a, n));
  RUN(&gpu, fm_op_experts(&gpu, dout, dx, did, dw, &b, n));
  int32_t *chosen = (int32_t *)(void *)down((float *)(void *)did, n * k);
  int64_t step = n > 60 ? 29 : n > 3 ? 3 : 1;
  for (int64_t i = 0; i < n; i += step) {
    gb = (fm_gate){ &rule, dlogits + i * n_exp, NULL, did + i * k, dw + i * k };
    RUN(&gpu, fm_op_experts(&gpu, done + i * d, dx + i * d, did + i * k, dw + i * k, &b, n - i < step ? n - i : step));
  }
  for (int64_t i = 0; i < n && i < 4; i++) {       // a row by itself goes another way: into another array, from what was there before
    float *apart = upf(before + i * d, d);
    gb = (fm_gate){ &rule, dlogits + i * n_exp, NULL, did + i * k, dw + i * k };
    RUN(&gpu, fm_op_experts(&gpu, apart, dx + i * d, did + i * k, dw + i * k, &b, 1));
    float *one = down(apart, d), *all = down(dout + i * d, d);
    if (memcmp(one, all, (size_t)d * 4) != 0) *alone = false;
    free(one), free(all);
  }
  float *got = down(dout, n * d), *single = down(done, n * d);
  if (memcmp(got, single, (size_t)(n * d) * 4) != 0) *alone = false;
  float *weights = down(dw, n * k), *ranks = run_spread(&b, before, dx, did, weights, n);
  *spread = memcmp(got, ranks, (size_t)(n * d) * 4) == 0;
  free(logits), free(before), free(weights), free(ranks);
  double off = memcmp(chosen, id, (size_t)(n * k) * 4) == 0 ? distance(got, out, n * d) : INFINITY;
  free(chosen);
  free((void *)(uintptr_t)a.gate), free((void *)(uintptr_t)a.up), free((void *)(uintptr_t)a.down);
  free((void *)(uintptr_t)b.gate), free((void *)(uintptr_t)b.up), free((void *)(uintptr_t)b.down);
  free(x), free(nw), free(w), free(out), free(id), free(got), free(single);
  drop_weight(&g), drop_weight(&u), drop_weight(&o), drop_weight(&sg), drop_weight(&su), drop_weight(&so), release();
  return off;
}

static void test_experts(void) {
  struct { const char *name; int64_t n, n_exp, k, d, m, wide; fm_dtype t, arithmetic; int skew; } c[] = {
    { "experts f32, odd sizes", 13, 7, 3, 45, 33, 21, FM_F32, FM_F32, 0 },
    { "experts f32, f8 weights", 9, 4, 2, 256, 128, 0, FM_F8_E4M3, FM_F32, 1 },
    { "experts bf16, one row", 1, 64, 6, 512, 352, 704, FM_BF16, FM_BF16, 0 },
    { "experts bf16, eight rows", 8, 16, 4, 512, 352, 704, FM_BF16, FM_BF16, 0 },
    { "experts bf16, 64 rows", 64, 64, 6, 512, 352, 704, FM_BF16, FM_BF16, 0 },
    { "experts bf16, all rows to the same", 70, 16, 2, 256, 128, 0, FM_BF16, FM_BF16, 1 },
    { "experts bf16, 1500 rows", 1500, 32, 4, 256, 128, 256, FM_BF16, FM_BF16, 0 },
    { "experts bf16, odd sizes", 13, 7, 3, 45, 33, 21, FM_BF16, FM_BF16, 0 },
    { "experts f8, one row", 1, 64, 6, 512, 384, 768, FM_F8_E4M3, FM_F8_E4M3, 0 },
    { "experts f8, 70 rows of V2-Lite's sizes", 70, 8, 6, 2048, 1408, 2816, FM_F8_E4M3, FM_F8_E4M3, 0 },
    { "experts f8, 40 rows", 40, 32, 6, 512, 384, 768, FM_F8_E4M3, FM_F8_E4M3, 0 },
    { "experts f8, 600 rows", 600, 16, 4, 256, 128, 0, FM_F8_E4M3, FM_F8_E4M3, 0 },
    { "experts f8, 300 rows, wide", 300, 8, 3, 1024, 640, 256, FM_F8_E4M3, FM_F8_E4M3, 0 },
    { "experts bf16, 300 rows, wide", 300, 8, 3, 1024, 648, 264, FM_BF16, FM_BF16, 0 } };
  for (int role = 0; role < 2; role++)
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
      bool alone = true, spread = true, choose = !c[i].skew && (i + (size_t)role) % 2 == 0;
      gpu.arithmetic = c[i].arithmetic;
      gpu.generated = role == 1;
      // f8 arithmetic of prompts rounds activations to four bits: 2^-5 a product, some of it in each of three
      double tol = c[i].arithmetic == FM_F32 ? F32_TOL : c[i].arithmetic == FM_F8_E4M3 && role == 0 ? 0.06 : BF16_TOL;
      double off = run_experts(c[i].n, c[i].n_exp, c[i].k, c[i].d, c[i].m, c[i].wide, c[i].t, c[i].skew, choose, &alone, &spread);
      check(off < tol, c[i].name, off);
      check(alone, "... the same bits alone and in parts", 0);
      // a prompt's shared expert goes another way where the routed ones cannot be grouped or it is small: none of the released models' does
      if (role == 1 || c[i].arithmetic == FM_F32 || !c[i].wide || c[i].d == 2048) check(spread, "... and spread over ranks", 0);
    }
}

/* ---- what the device cannot give ---- */

static void test_memory(void) {
  fm_error err = { 0 };
  void *p = NULL;
  float *f = NULL, x = 1, y = 0;
  check(gpu.ops->alloc(gpu.dev, &p, (int64_t)1 << 50, &err) == FM_EMEMORY && !p && err.message[0], "a petabyte is refused by name", 0);
  check(fm_scratch(&gpu, &f, 1 << 20, 1 << 20) == FM_EMEMORY, "scratch beyond what was taken is refused", 0);
  float *d = upf(&x, 1);
  check(gpu.ops->download(&gpu, &y, d, 4) == FM_OK && y == 1, "and the device goes on", 0);
  release();
}

/* usage: cuda_test [group [words]]: one group alone, of attention the cases whose names hold these words, for tools that watch every
   access and take their time */
int main(int argc, char **argv) {
  static const struct { const char *name; void (*run)(void); } group[] = { { "small", test_small }, { "store", test_store },
    { "store8", test_store8 }, { "turn", test_turn }, { "products", test_products }, { "router", test_router }, { "attention", test_attention },
    { "fresh", test_fresh }, { "nan", test_nan }, { "draw", test_draw }, { "route", test_route }, { "experts", test_experts }, { "memory", test_memory } };
  fm_error err;
  if (fm_ctx_open(&gpu, "cuda", 0, &err) != FM_OK) {
    printf("skip - the CUDA device: %s\n", err.message);
    return 0;
  }
  if (fm_ctx_open(&cpu, "cpu", 0, &err) != FM_OK || fm_ctx_reserve(&gpu, (int64_t)2 << 30, &err) != FM_OK) {
    printf("# %s\n", err.message);
    return 2;
  }
  if (argc > 2) words = argv[2];
  for (size_t i = 0; i < sizeof group / sizeof *group; i++)
    if (argc < 2 || strcmp(argv[1], group[i].name) == 0) group[i].run();
  fm_ctx_close(&gpu);
  fm_ctx_close(&cpu);
  return failures != 0;
}
