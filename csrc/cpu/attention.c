/*
** attention.c - attention over the paged cache: MLA expanded (prompts), MLA absorbed (decoding), GQA.
** Keys are taken in blocks of FM_PAGE at absolute indices, by an online softmax that keeps a maximum, a sum and
** an output for each query. A query's bits hang on its own blocks alone: in a block where it sees keys lo..hi the
** scores are dots, the output takes p[j] * v[j] in increasing j, and the sum of p is taken by FM_CPU_PARTS partial sums.
** So neither the cut into chunks nor the queries beside it nor the thread matter.
*/
#include "cpu/cpu.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
  TILE = 32,            /* queries whose scores stand in scratch at once */
  PANEL = 16,           /* rows of kv_b converted at once when queries are absorbed */
  HEADS = 8,            /* heads that share a page's rows in a decode item */
  ROWS = 32,            /* rows of a decode item, at most */
  FEW = 4,              /* rows up to which converting weights as we go is faster */
  SCALED = 128,         /* rows and columns that share a scale */
  FEW_ROWS = 4,         /* and at least, where threads have as many: each item converts kv_b again */
  GQA_ROWS = 64         /* rows of a gqa item */
};

/* ---- o += p v ---- */

/* o[i] += sum over j < keys of p[i*ldp + j] * v[j*ldv ..], in increasing j, one fused multiply-add each; i < n.
   Same bits in every form below: they differ in how many elements go side by side. `ask` is asked for meanwhile. */
typedef struct asked { const char *p; int64_t size; } asked;
typedef void (*mix_fn)(const fm_simd *s, float *o, int64_t ldo, int64_t n, const float *p, int64_t ldp,
                       const float *v, int64_t ldv, int64_t keys, int64_t dim, asked ask);

static void mix_plain(const fm_simd *s, float *o, int64_t ldo, int64_t n, const float *p, int64_t ldp,
                      const float *v, int64_t ldv, int64_t keys, int64_t dim, asked ask) {
  (void)ask;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < keys; j++) s->axpy(o + i * ldo, p[i * ldp + j], v + j * ldv, dim);
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,fma")))

/* n queries x 16 elements in registers; n is known when it is inlined. Twelve sums hide the time that one takes. */
AVX2 static inline __attribute__((always_inline))
void mix_nx16(float *o, int64_t ldo, const float *p, int64_t ldp, const float *v, int64_t ldv, int64_t keys, const int n) {
  __m256 a[6], b[6];
  _Pragma("GCC unroll 6") for (int i = 0; i < n; i++) a[i] = _mm256_loadu_ps(o + i * ldo), b[i] = _mm256_loadu_ps(o + i * ldo + 8);
  for (int64_t j = 0; j < keys; j++, v += ldv) {
    __m256 v0 = _mm256_loadu_ps(v), v1 = _mm256_loadu_ps(v + 8);
    __builtin_prefetch(v + 16);          // the next column's turn: a stride of ldv hides it from the hardware
    _Pragma("GCC unroll 6") for (int i = 0; i < n; i++) {
      __m256 f = _mm256_broadcast_ss(p + i * ldp + j);
      a[i] = _mm256_fmadd_ps(f, v0, a[i]);
      b[i] = _mm256_fmadd_ps(f, v1, b[i]);
    }
  }
  _Pragma("GCC unroll 6") for (int i = 0; i < n; i++) _mm256_storeu_ps(o + i * ldo, a[i]), _mm256_storeu_ps(o + i * ldo + 8, b[i]);
}

/* One query x 64 elements. */
AVX2 static void mix_1x64(float *o, const float *p, const float *v, int64_t ldv, int64_t keys) {
  __m256 acc[8];
  for (int i = 0; i < 8; i++) acc[i] = _mm256_loadu_ps(o + 8 * i);
  for (int64_t j = 0; j < keys; j++) {
    __m256 a = _mm256_broadcast_ss(p + j);
    for (int i = 0; i < 8; i++) acc[i] = _mm256_fmadd_ps(a, _mm256_loadu_ps(v + j * ldv + 8 * i), acc[i]);
  }
  for (int i = 0; i < 8; i++) _mm256_storeu_ps(o + 8 * i, acc[i]);
}

AVX2 static void mix_wide(const fm_simd *s, float *o, int64_t ldo, int64_t n, const float *p, int64_t ldp,
                     const float *v, int64_t ldv, int64_t keys, int64_t dim, asked ask) {
  int64_t fours = n / 4 * 4, done4 = dim / 16 * 16, done1 = dim / 64 * 64, at = 0;
  for (int64_t c = 0; c < done4; c += 16) {
    for (; at < ask.size * (c + 16) / done4; at += 64) __builtin_prefetch(ask.p + at, 0, 2);
    int64_t i = 0;
    for (int64_t sixes = fours / 12 * 12; i < sixes; i += 6) mix_nx16(o + i * ldo + c, ldo, p + i * ldp, ldp, v + c, ldv, keys, 6);
    for (; i < fours; i += 4) mix_nx16(o + i * ldo + c, ldo, p + i * ldp, ldp, v + c, ldv, keys, 4);
  }
  for (int64_t i = fours; i < n; i++)
    for (int64_t c = 0; c < done1; c += 64) mix_1x64(o + i * ldo + c, p + i * ldp, v + c, ldv, keys);
  if (done4 < dim) mix_plain(s, o + done4, ldo, fours, p, ldp, v + done4, ldv, keys, dim - done4, (asked){ 0 });
  if (done1 < dim)
    mix_plain(s, o + fours * ldo + done1, ldo, n - fours, p + fours * ldp, ldp, v + done1, ldv, keys,
              dim - done1, (asked){ 0 });
}

static mix_fn mix_choose(const fm_simd *s) {
  return s != &fm_simd_plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? mix_wide
                                                                                                : mix_plain;
}

#else

static mix_fn mix_choose(const fm_simd *s) { (void)s; return mix_plain; }

#endif

/* ---- the routine that all three share ---- */

typedef struct work {
  const fm_simd *simd;
  mix_fn mix;
  const fm_attn *a;
  const void *pieces;
  int64_t n_pieces, per_item, n_parts;   /* heads of an item; head parts that a piece has */
  const int64_t *bound;                  /* decode: rows bound[k] .. bound[k + 1] - 1 are of item k */
  float *scratch; int64_t stride;        /* (workers, stride) */
} work;

/* Keys first .. first + n - 1 in f32; n <= FM_PAGE, first at a page's start. */
typedef struct block {
  int64_t first, n;
  const float *k; int64_t ldk, dim_k;
  const float *v; int64_t ldv, dim_v;
  const float *next;                     /* a page like k's that will be read after this one, or NULL */
} block;

/* n queries; query i stands at index + i * step. step 0: heads of one row. */
typedef struct queries {
  int64_t n, index, step, first_key;
  const float *q; int64_t ldq;
  float *o; int64_t ldo;
  float *max, *sum;                      /* (n) */
  float *p;                              /* (TILE, FM_PAGE) scratch */
} queries;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* No key seen yet: maximum -inf, all else zero. */
static void begin(const queries *q, int64_t dim) {
  for (int64_t i = 0; i < q->n; i++) {
    q->max[i] = -INFINITY;
    q->sum[i] = 0;
    memset(q->o + i * q->ldo, 0, (size_t)dim * sizeof *q->o);
  }
}

static void finish(const work *w, const queries *q, int64_t dim) {
  for (int64_t i = 0; i < q->n; i++) {
    if (q->max[i] == -INFINITY && q->sum[i] == 0) continue;   // saw nothing: stays zero
    w->simd->scale(q->o + i * q->ldo, 1.0f / q->sum[i], dim);
  }
}

/* What was gathered for query i is scaled from its maximum so far to the new one. */
static void raise_max(const work *w, const queries *q, int64_t i, float max, int64_t dim) {
  float old = q->max[i], shrink;
  q->max[i] = max;
  if (old == max || old == -INFINITY) return;
  w->simd->exp_sub(&shrink, &old, max, 1);
  q->sum[i] *= shrink;
  w->simd->scale(q->o + i * q->ldo, shrink, dim);
}

/* The sum of p[lo..hi]: element j belongs to partial sum j % FM_CPU_PARTS, wherever the first one stands. */
static float sum_of(const work *w, const float *p, int64_t lo, int64_t hi) {
  float padded[FM_PAGE] = { 0 };
  if (!lo) return w->simd->add_up(p, hi + 1);
  memcpy(padded + lo, p + lo, (size_t)(hi - lo + 1) * sizeof *p);
  return w->simd->add_up(padded, hi + 1);
}

/* Scores of queries i0 .. i0 + n - 1, those of keys lo to last(i), become probabilities against the new maximum. Step by step for all of
   them: each step waits for the one before, but queries do not wait for each other. */
static void soften(const work *w, const block *b, const queries *q, int64_t i0, int64_t n, int64_t lo) {
  float max[TILE];
  int64_t at = q->index + i0 * q->step - b->first;
#define LAST(i) min64(at + (i) * q->step, b->n - 1)
  for (int64_t i = 0; i < n; i++)
    max[i] = w->simd->scale_max(q->p + i * FM_PAGE + lo, w->a->scale, q->max[i0 + i], LAST(i) - lo + 1);
  for (int64_t i = 0; i < n; i++)
    w->simd->exp_sub(q->p + i * FM_PAGE + lo, q->p + i * FM_PAGE + lo, max[i], LAST(i) - lo + 1);
  for (int64_t i = 0; i < n; i++) {
    raise_max(w, q, i0 + i, max[i], b->dim_v);
    q->sum[i0 + i] += sum_of(w, q->p + i * FM_PAGE, lo, LAST(i));
  }
#undef LAST
}

/* The rows of the next page that dots does not ask for: a page takes about as long to come from memory as to be used, so what brings
   it in must not pause while values are added up. */
static asked rest_of(const block *b) {
  int64_t rows = FM_PAGE * FM_CPU_NEXT / 4;
  return (asked){ (const char *)(b->next + rows * b->ldk), (FM_PAGE - rows) * b->ldk * 4 };
}

/* Queries i0 .. i0 + n - 1, n <= TILE, all of which see a key of the block. */
static void attend_tile(const work *w, const block *b, const queries *q, int64_t i0, int64_t n) {
  int64_t lo = max64(q->first_key - b->first, 0), at = q->index + i0 * q->step - b->first;
  int64_t last = min64(at + (n - 1) * q->step, b->n - 1);
  const float *next = i0 ? NULL : b->next;
  w->simd->dots(q->p + lo, FM_PAGE, q->q + i0 * q->ldq, q->ldq, n, b->k + lo * b->ldk, b->ldk, last - lo + 1,
                b->dim_k, next);
  soften(w, b, q, i0, n, lo);
  // below the diagonal all see the whole block; on it they go by fours
  int64_t most = at >= b->n - 1 || !q->step ? n : 4;
  for (int64_t i = 0; i < n; i += most) {
    int64_t rows = min64(most, n - i), all = min64(at + i * q->step, b->n - 1) + 1;   // keys that all of them see
    float *o = q->o + (i0 + i) * q->ldo;
    const float *p = q->p + i * FM_PAGE;
    w->mix(w->simd, o, q->ldo, rows, p + lo, FM_PAGE, b->v + lo * b->ldv, b->ldv, all - lo, b->dim_v,
           i == 0 && next ? rest_of(b) : (asked){ 0 });
    for (int64_t r = 1; r < rows; r++) {
      int64_t more = min64(at + (i + r) * q->step, b->n - 1) + 1 - all;
      if (more > 0)
        w->mix(w->simd, o + r * q->ldo, q->ldo, 1, p + r * FM_PAGE + all, FM_PAGE, b->v + all * b->ldv, b->ldv,
               more, b->dim_v, (asked){ 0 });
    }
  }
}

static void attend(const work *w, const block *b, const queries *q) {
  int64_t from = max64(b->first, q->first_key), i = 0;   // the block's first key that may be seen
  if (from >= b->first + b->n) return;
  if (q->index < from) i = q->step ? from - q->index : q->n;
  for (; i < q->n; i += TILE) attend_tile(w, b, q, i, min64(TILE, q->n - i));
}

/* Columns c0 .. c0+cols-1 of the first n rows of page `number` in f32: in place, or converted into buf. All columns of an f8
   cache, whose rows are taken apart as a whole. */
static const float *page_rows(const work *w, const fm_span *s, int64_t number, int64_t n, int64_t c0,
                              int64_t cols, float *buf, int64_t *ld) {
  const fm_cache *k = w->a->cache;
  const char *page = k->base + s->pages[number] * k->page_stride;
  *ld = k->width;
  if (k->dtype == FM_F32) return (const float *)(const void *)page + c0;
  if (k->dtype == FM_F8_E4M3) {
    fm_cpu_unpack8(w->simd, buf, k, page, n);
    return buf;
  }
  fm_mat m = { .data = page, .dtype = k->dtype, .rows = n, .cols = k->width };
  *ld = cols;
  w->simd->convert(buf, cols, &m, 0, n, c0, cols);
  return buf;
}

static int64_t round16(int64_t n) { return (n + 15) / 16 * 16; }
static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Arena scratch for all workers, w->stride floats each; it must be taken here, as the arena knows one thread. */
static fm_status take_scratch(fm_ctx *c, work *w) {
  int64_t size = w->stride * fm_pool_threads(((fm_cpu *)c->dev)->pool) * (int64_t)sizeof(float);
  w->scratch = fm_arena_alloc(&c->arena, size);
  return w->scratch ? FM_OK : fm_no_memory(&c->err, size);
}

/* Rows r0 .. r0 + n - 1 of a span. */
typedef struct piece { const fm_span *span; int64_t r0, n; } piece;

/* Cuts the spans into pieces of at most `rows`, the later ones of a span first: they see more keys. */
static fm_status cut(fm_ctx *c, work *w, int64_t rows) {
  const fm_attn *a = w->a;
  int64_t total = 0;
  for (int64_t s = 0; s < a->n_spans; s++) total += ceil_div(a->span[s].n, rows);
  piece *out = fm_arena_alloc(&c->arena, total * (int64_t)sizeof *out);
  if (!out) return fm_no_memory(&c->err, total * (int64_t)sizeof *out);
  w->pieces = out;
  w->n_pieces = total;
  for (int64_t s = 0; s < a->n_spans; s++)
    for (int64_t k = ceil_div(a->span[s].n, rows) - 1; k >= 0; k--)
      *out++ = (piece){ a->span + s, k * rows, min64(rows, a->span[s].n - k * rows) };
  return FM_OK;
}

static int64_t longest(const fm_attn *a) {
  int64_t n = 0;
  for (int64_t s = 0; s < a->n_spans; s++) n = max64(n, a->span[s].n);
  return n;
}

/* ---- MLA, expanded: an item is one head of one piece ---- */

typedef struct prompt_buf { float *w, *latent, *k, *v, *p, *max, *sum; } prompt_buf;

/* Lays out a worker's scratch from `base`; returns its length. */
static int64_t prompt_layout(prompt_buf *b, float *base, const fm_attn *a, int64_t rows) {
  int64_t out = a->nope + a->v_head_dim, at = 0;
  // base may be NULL: then only the length counts
#define PART(field, len) (b->field = base ? base + at : NULL, at += round16(len))
  PART(w, a->kv_b->dtype == FM_F32 ? 0 : out * a->rank);
  PART(latent, a->cache->dtype == FM_F32 ? 0 : FM_PAGE * a->cache->width);
  PART(k, FM_PAGE * (a->nope + a->rope));
  PART(v, FM_PAGE * a->v_head_dim);
  PART(p, TILE * FM_PAGE);
  PART(max, rows);
  PART(sum, rows);
  return at;
}

/* The head's keys and values of the page's first n tokens. */
static void expand(const work *w, const prompt_buf *t, const fm_span *s, int64_t number, const float *kv_b,
                   block *b) {
  const fm_attn *a = w->a;
  int64_t ld;
  const float *row = page_rows(w, s, number, b->n, 0, a->rank + a->rope, t->latent, &ld);
  w->simd->gemm(t->k, b->ldk, row, ld, b->n, kv_b, a->rank, a->nope, a->rank, NULL);
  w->simd->gemm(t->v, b->ldv, row, ld, b->n, kv_b + a->nope * a->rank, a->rank, a->v_head_dim, a->rank, NULL);
  for (int64_t j = 0; j < b->n; j++)
    memcpy(t->k + j * b->ldk + a->nope, row + j * ld + a->rank, (size_t)a->rope * sizeof *row);
}

static void prompt_item(void *arg, int64_t item, int worker) {
  const work *w = arg;
  const fm_attn *a = w->a;
  const piece *e = (const piece *)w->pieces + item / a->n_heads;
  const fm_span *s = e->span;
  int64_t head = item % a->n_heads, out = a->nope + a->v_head_dim, qk = a->nope + a->rope;
  prompt_buf t;
  prompt_layout(&t, w->scratch + worker * w->stride, a, e->n);
  const float *kv_b = t.w;
  if (a->kv_b->dtype == FM_F32) kv_b = (const float *)a->kv_b->data + head * out * a->rank;
  else w->simd->convert(t.w, a->rank, a->kv_b, head * out, out, 0, a->rank);
  int64_t row = s->row + e->r0, end = s->index + e->r0 + e->n;
  queries q = { .n = e->n, .index = s->index + e->r0, .step = 1, .first_key = s->first_key,
                .q = a->q + row * a->ldq + head * qk, .ldq = a->ldq,
                .o = a->out + row * a->ldo + head * a->v_head_dim, .ldo = a->ldo,
                .max = t.max, .sum = t.sum, .p = t.p };
  begin(&q, a->v_head_dim);
  for (int64_t at = s->first_key / FM_PAGE * FM_PAGE; at < end; at += FM_PAGE) {
    block b = { .first = at, .n = min64(FM_PAGE, end - at), .k = t.k, .ldk = qk, .dim_k = qk,
                .v = t.v, .ldv = a->v_head_dim, .dim_v = a->v_head_dim };
    expand(w, &t, s, at / FM_PAGE, kv_b, &b);
    attend(w, &b, &q);
  }
  finish(w, &q, a->v_head_dim);
}

static fm_status prompt_run(fm_ctx *c, work *w) {
  fm_pool *pool = ((fm_cpu *)c->dev)->pool;
  const fm_attn *a = w->a;
  prompt_buf t;
  // a piece expands all its keys again, so pieces are as few as keep the threads busy
  int64_t wanted = fm_pool_threads(pool) > 1 ? 2 * fm_pool_threads(pool) : 1;
  int64_t parts = ceil_div(wanted, max64(1, a->n_heads * a->n_spans));
  int64_t rows = max64(FM_PAGE, ceil_div(longest(a), parts));
  TRY(cut(c, w, rows));
  w->stride = prompt_layout(&t, NULL, a, min64(rows, longest(a)));
  TRY(take_scratch(c, w));
  fm_pool_for(pool, w->n_pieces * a->n_heads, prompt_item, w);
  return FM_OK;
}

static fm_status in_arena(fm_ctx *c, const fm_attn *a, fm_status (*run)(fm_ctx *c, work *w)) {
  fm_cpu *d = (fm_cpu *)c->dev;
  work w = { .simd = d->simd, .mix = mix_choose(d->simd), .a = a };
  if (longest(a) == 0) return FM_OK;
  fm_mark mark = fm_arena_mark(&c->arena);
  fm_status status = run(c, &w);
  fm_arena_release(&c->arena, mark);
  return status;
}

fm_status fm_cpu_mla_prompt(fm_ctx *c, const fm_attn *a) { return in_arena(c, a, prompt_run); }

/* ---- MLA, absorbed: an item is some heads of some rows, of any spans ---- */

typedef struct row_ref { const fm_span *span; int64_t i; } row_ref;

typedef struct decode_buf { float *panel, *page, *p, *q, *o, *max, *sum; } decode_buf;

/* q (rows, heads, rank + rope), o (rows, heads, rank). */
static int64_t decode_layout(decode_buf *b, float *base, const fm_attn *a, int64_t rows, int64_t heads) {
  int64_t at = 0;
  PART(panel, a->kv_b->dtype == FM_F32 ? 0 : PANEL * a->rank);
  PART(page, a->cache->dtype == FM_F32 ? 0 : FM_PAGE * a->cache->width);
  PART(p, TILE * FM_PAGE);
  PART(q, rows * heads * (a->rank + a->rope));
  PART(o, rows * heads * a->rank);
  PART(max, rows * heads);
  PART(sum, rows * heads);
#undef PART
  return at;
}

static int64_t pass_row(const row_ref *r) { return r->span->row + r->i; }

/* How many refs from r on stand in neighbouring rows of the pass. */
static int64_t run_length(const row_ref *r, int64_t n) {
  int64_t len = 1;
  while (len < n && pass_row(r + len) == pass_row(r) + len) len++;
  return len;
}

/* q_hat = W_UK^T q_nope for one head of n rows, the rotated part behind it; the sum runs over increasing i. */
static void absorb(const work *w, const decode_buf *t, const row_ref *r, int64_t n, int64_t head, float *q,
                   int64_t ldq) {
  const fm_attn *a = w->a;
  int64_t qk = a->nope + a->rope, r0 = head * (a->nope + a->v_head_dim);
  for (int64_t i = 0; i < n; i++) {
    const float *from = a->q + pass_row(r + i) * a->ldq + head * qk;
    memset(q + i * ldq, 0, (size_t)a->rank * sizeof *q);
    memcpy(q + i * ldq + a->rank, from + a->nope, (size_t)a->rope * sizeof *q);
  }
  for (int64_t i = 0; i < a->nope; i += PANEL) {
    int64_t k = min64(PANEL, a->nope - i);
    const float *panel = t->panel;
    if (a->kv_b->dtype == FM_F32) panel = (const float *)a->kv_b->data + (r0 + i) * a->rank;
    else w->simd->convert(t->panel, a->rank, a->kv_b, r0 + i, k, 0, a->rank);
    for (int64_t f = 0, len; f < n; f += len) {
      len = run_length(r + f, n - f);
      w->mix(w->simd, q + f * ldq, ldq, len, a->q + pass_row(r + f) * a->ldq + head * qk + i, a->ldq, panel,
             a->rank, k, a->rank, (asked){ 0 });
    }
  }
}

/* Whether a row sees something of the page at key `at`, and whether it sees all of it. */
static bool sees(const row_ref *r, int64_t at) {
  return r->span->index + r->i >= at && r->span->first_key < at + FM_PAGE;
}
static bool sees_all(const row_ref *r, int64_t at) {
  return r->span->index + r->i >= at + FM_PAGE - 1 && r->span->first_key <= at;
}

static int64_t page_at(const row_ref *r, int64_t at) { return r->span->pages[at / FM_PAGE]; }

/* How many refs from r on read its page at `at` with it: those who share all of it (forks), or rows of one span. */
static int64_t readers(const row_ref *r, int64_t n, int64_t at, bool all) {
  int64_t len = 1;
  while (len < n && (all ? sees_all(r + len, at) && page_at(r + len, at) == page_at(r, at) : r[len].span == r->span)) len++;
  return len;
}

/* What is read where it stands after r's page at `at`: the page of the next rows, or their first one's next. NULL: not known. */
static const float *read_next(const work *w, const row_ref *r, const row_ref *next, const row_ref *end, int64_t at) {
  const fm_cache *k = w->a->cache;
  if (next == end || !sees(next, at)) next = r, at += FM_PAGE;
  if (k->dtype != FM_F32 || !sees(next, at)) return NULL;
  return (const float *)(const void *)(k->base + page_at(next, at) * k->page_stride);
}

/* The heads of rows f .. f + n - 1 of an item, the last key that they see: `last`. */
static queries decode_queries(const work *w, const decode_buf *t, const row_ref *r, int64_t f, int64_t n, int64_t heads, int64_t last) {
  int64_t rank = w->a->rank, width = rank + w->a->rope, at = f * heads;
  return (queries){ .n = n * heads, .index = last, .first_key = r->span->first_key, .q = t->q + at * width, .ldq = width,
                    .o = t->o + at * rank, .ldo = rank, .max = t->max + at, .sum = t->sum + at, .p = t->p };
}

/* All rows r[0..n) of an item over their pages, a page at a time; one that neighbours share is read once for them. */
static void latent_attention(const work *w, const decode_buf *t, const row_ref *r, int64_t n, int64_t heads) {
  int64_t width = w->a->rank + w->a->rope, most = 0;
  for (int64_t f = 0; f < n; f++) most = max64(most, r[f].span->index + r[f].i);
  for (int64_t at = 0; at <= most; at += FM_PAGE)
    for (int64_t f = 0, len; f < n; f += len) {
      bool all = sees_all(r + f, at);
      len = readers(r + f, n - f, at, all);
      const row_ref *last = r + f + len - 1;       // rows of a span stand in order: it sees most of them
      if (!sees(last, at)) continue;
      block b = { .first = at, .n = all ? FM_PAGE : min64(FM_PAGE, last->span->index + last->i + 1 - at), .dim_k = width,
                  .dim_v = w->a->rank, .next = read_next(w, r, last + 1, r + n, at) };
      b.k = b.v = page_rows(w, r[f].span, at / FM_PAGE, b.n, 0, width, t->page, &b.ldk);
      b.ldv = b.ldk;
      for (int64_t i = 0, step = all ? len : 1; i < len; i += step, b.next = NULL) {
        queries q = decode_queries(w, t, r + f, f + i, step, heads, all ? at + FM_PAGE - 1 : r[f + i].span->index + r[f + i].i);
        attend(w, &b, &q);
      }
    }
}

/* out = W_UV o for one head of n rows. A panel of W_UV is converted once where that is worth it: both ways make the same bits. */
static void values(const work *w, const decode_buf *t, const row_ref *r, int64_t n, int64_t head, const float *o, int64_t ldo) {
  const fm_attn *a = w->a;
  const fm_mat *m = a->kv_b;
  int64_t r0 = head * (a->nope + a->v_head_dim) + a->nope;
  fm_mat bare = *m;
  bare.scale = NULL;
  for (int64_t i = 0, k; i < a->v_head_dim; i += k) {
    k = min64(min64(PANEL, a->v_head_dim - i), SCALED - (r0 + i) % SCALED);
    const float *panel = t->panel, *scale = m->scale ? m->scale + (r0 + i) / SCALED * ceil_div(a->rank, SCALED) : NULL;
    if (m->dtype == FM_F32) panel = (const float *)m->data + (r0 + i) * a->rank;
    else if (n > FEW) w->simd->convert(t->panel, a->rank, &bare, r0 + i, k, 0, a->rank);
    for (int64_t f = 0, len; f < n; f += len) {
      float *out = a->out + pass_row(r + f) * a->ldo + head * a->v_head_dim + i;
      len = run_length(r + f, n - f);
      if (n > FEW || m->dtype == FM_F32) w->simd->gemm(out, a->ldo, o + f * ldo, ldo, len, panel, a->rank, k, a->rank, scale);
      else w->simd->gemv(out, a->ldo, o + f * ldo, ldo, len, m, r0 + i, k);
    }
  }
}

static void decode_item(void *arg, int64_t item, int worker) {
  const work *w = arg;
  const fm_attn *a = w->a;
  int64_t r0 = w->bound[item / w->n_parts], n = w->bound[item / w->n_parts + 1] - r0;
  int64_t most = ceil_div(a->n_heads, w->n_parts), h0 = item % w->n_parts * most;
  int64_t heads = min64(most, a->n_heads - h0), width = a->rank + a->rope;
  const row_ref *r = (const row_ref *)w->pieces + r0;
  decode_buf t;
  if (heads <= 0) return;
  decode_layout(&t, w->scratch + worker * w->stride, a, n, heads);
  for (int64_t h = 0; h < heads; h++) absorb(w, &t, r, n, h0 + h, t.q + h * width, heads * width);
  queries all = { .n = n * heads, .o = t.o, .ldo = a->rank, .max = t.max, .sum = t.sum };
  begin(&all, a->rank);
  latent_attention(w, &t, r, n, heads);
  finish(w, &all, a->rank);
  for (int64_t h = 0; h < heads; h++) values(w, &t, r, n, h0 + h, t.o + h * a->rank, heads * a->rank);
}

/* Cuts the rows into items: large ones first, small ones at the end, so that all threads end together. Returns how many. */
static int64_t cut_rows(int64_t *bound, int64_t total, int64_t n_heads, int64_t threads) {
  int64_t n = 0, least = max64(1, min64(FEW_ROWS, total * n_heads / threads));
  for (int64_t at = 0, rows; at < total; at += rows) {
    rows = threads > 1 ? (total - at) / (2 * threads) : ROWS;
    rows = min64(total - at, max64(least, min64(ROWS, rows)));
    bound[n++] = at;
  }
  bound[n] = total;
  return n;
}

static fm_status decode_run(fm_ctx *c, work *w) {
  fm_pool *pool = ((fm_cpu *)c->dev)->pool;
  const fm_attn *a = w->a;
  int64_t threads = fm_pool_threads(pool), total = 0;
  decode_buf t;
  for (int64_t s = 0; s < a->n_spans; s++) total += a->span[s].n;
  row_ref *r = fm_arena_alloc(&c->arena, total * (int64_t)sizeof *r);
  int64_t *items = fm_arena_alloc(&c->arena, (total + 1) * (int64_t)sizeof *items);
  if (!r || !items) return fm_no_memory(&c->err, (total + 1) * (int64_t)(sizeof *r + sizeof *items));
  w->pieces = r;
  w->n_pieces = total;
  w->bound = items;
  for (int64_t s = 0; s < a->n_spans; s++)
    for (int64_t i = 0; i < a->span[s].n; i++) *r++ = (row_ref){ a->span + s, i };
  int64_t n_items = cut_rows(items, total, a->n_heads, threads);
  // few items: their heads are spread
  int64_t heads = min64(a->n_heads, max64(1, min64(HEADS, a->n_heads * n_items / threads)));
  w->n_parts = ceil_div(a->n_heads, heads);
  w->stride = decode_layout(&t, NULL, a, min64(total, ROWS), ceil_div(a->n_heads, w->n_parts));
  TRY(take_scratch(c, w));
  fm_pool_for(pool, n_items * w->n_parts, decode_item, w);
  return FM_OK;
}

fm_status fm_cpu_mla_decode(fm_ctx *c, const fm_attn *a) {
  const fm_fresh *f = a->fresh;
  if (f) TRY(fm_cpu_mla_store(c, a, f->q, f->kv, f->norm, f->eps, f->n, f->turn));
  return in_arena(c, a, decode_run);
}

/* ---- GQA: an item is one piece and some of the query heads of one key head ---- */

static int64_t gqa_stride(const fm_attn *a, int64_t rows, int64_t heads) {
  int64_t pages = a->cache->dtype == FM_F32 ? 0 : 2 * round16(FM_PAGE * a->nope);
  return pages + TILE * FM_PAGE + 2 * round16(rows * heads);
}

/* The heads of an item: one row's heads go side by side, else the rows of one head do. */
typedef struct gqa_set { queries q; int64_t n_sets, next; } gqa_set;

static queries gqa_queries(const gqa_set *g, int64_t set) {
  queries q = g->q;
  q.q += set * g->next;
  q.o += set * g->next;
  q.max += set * q.n;
  q.sum += set * q.n;
  return q;
}

static void gqa_blocks(const work *w, const gqa_set *g, const fm_span *s, int64_t end, int64_t kv, float *buf) {
  const fm_attn *a = w->a;
  int64_t dim = a->nope;
  for (int64_t at = s->first_key / FM_PAGE * FM_PAGE; at < end; at += FM_PAGE) {
    block b = { .first = at, .n = min64(FM_PAGE, end - at), .dim_k = dim, .dim_v = dim };
    b.k = page_rows(w, s, at / FM_PAGE, b.n, kv * dim, dim, buf, &b.ldk);
    b.v = page_rows(w, s, at / FM_PAGE, b.n, (a->n_kv_heads + kv) * dim, dim, buf + round16(FM_PAGE * dim), &b.ldv);
    for (int64_t i = 0; i < g->n_sets; i++) {
      queries q = gqa_queries(g, i);
      attend(w, &b, &q);
    }
  }
}

static void gqa_item(void *arg, int64_t item, int worker) {
  const work *w = arg;
  const fm_attn *a = w->a;
  int64_t per_kv = a->n_heads / a->n_kv_heads, dim = a->nope;
  const piece *e = (const piece *)w->pieces + item / (w->n_parts * a->n_kv_heads);
  int64_t kv = item / w->n_parts % a->n_kv_heads, h0 = item % w->n_parts * w->per_item;
  int64_t heads = min64(w->per_item, per_kv - h0), first = kv * per_kv + h0, row = e->span->row + e->r0;
  float *p = w->scratch + worker * w->stride, *max = p + TILE * FM_PAGE, *sum = max + round16(e->n * heads);
  bool one = e->n == 1;
  gqa_set g = { .n_sets = one ? 1 : heads, .next = dim,
                .q = { .n = one ? heads : e->n, .index = e->span->index + e->r0, .step = one ? 0 : 1,
                       .first_key = e->span->first_key, .q = a->q + row * a->ldq + first * dim,
                       .ldq = one ? dim : a->ldq, .o = a->out + row * a->ldo + first * dim,
                       .ldo = one ? dim : a->ldo, .max = max, .sum = sum, .p = p } };
  for (int64_t i = 0; i < g.n_sets; i++) {
    queries q = gqa_queries(&g, i);
    begin(&q, dim);
  }
  gqa_blocks(w, &g, e->span, e->span->index + e->r0 + e->n, kv, sum + round16(e->n * heads));
  for (int64_t i = 0; i < g.n_sets; i++) {
    queries q = gqa_queries(&g, i);
    finish(w, &q, dim);
  }
}

static fm_status gqa_run(fm_ctx *c, work *w) {
  fm_pool *pool = ((fm_cpu *)c->dev)->pool;
  const fm_attn *a = w->a;
  int64_t per_kv = a->n_heads / a->n_kv_heads, threads = fm_pool_threads(pool);
  TRY(cut(c, w, GQA_ROWS));
  w->per_item = max64(1, min64(per_kv, per_kv * w->n_pieces * a->n_kv_heads / threads));
  w->n_parts = ceil_div(per_kv, w->per_item);
  w->stride = gqa_stride(a, min64(GQA_ROWS, longest(a)), w->per_item);
  TRY(take_scratch(c, w));
  fm_pool_for(pool, w->n_pieces * a->n_kv_heads * w->n_parts, gqa_item, w);
  return FM_OK;
}

fm_status fm_cpu_gqa(fm_ctx *c, const fm_attn *a) { return in_arena(c, a, gqa_run); }
