/*
** sample.c - draws on the pool: rows in pieces, whose best ones are compared after; then how these stand, in pieces again.
*/
#include <math.h>

#include "base/gumbel.h"
#include "cpu/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { PIECE = 4096, CHUNK = 256 };      /* ids of an item: some ten microseconds; of an exp */

typedef struct piece { fm_gumbel best; float most; int64_t n_before; double before, all; } piece;

typedef struct draws {
  const fm_cpu *cpu; const float *logits; const fm_draw_rule *rule; fm_drawn *out;
  piece *piece;                          /* (n, n_pieces) */
  int64_t n_pieces, vocab_size, n_valid;
} draws;

static int64_t end_of(const draws *d, int64_t first) { return first + PIECE < d->n_valid ? first + PIECE : d->n_valid; }

/* ---- noise for ids first .. end - 1: all are tried, the largest logit is found -------------------------- */

typedef void (*try_fn)(fm_gumbel *g, float *most, const float *logit, int64_t first, int64_t end);

static void try_plain(fm_gumbel *g, float *most, const float *logit, int64_t first, int64_t end) {
  for (int64_t i = first; i < end; i++) {
    fm_gumbel_try(g, logit[i], (int32_t)i);
    if (logit[i] > *most) *most = logit[i];
  }
}

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2,fma")))

/* High and low halves of the products of eight counters with one number. */
AVX2 static inline void multiply8(__m256i a, uint32_t by, __m256i *hi, __m256i *lo) {
  __m256i m = _mm256_set1_epi32((int)by);
  __m256i even = _mm256_mul_epu32(a, m), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  *hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  *lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}

/* fm_philox of eight blocks from `block` on: noise[j] holds the 32 bits of the eight blocks' id j. */
AVX2 static inline void philox8(__m256i noise[4], const fm_gumbel *g, uint32_t block) {
  __m256i c0 = _mm256_add_epi32(_mm256_set1_epi32((int)block), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  __m256i c1 = _mm256_set1_epi32((int)g->counter[1]), c2 = _mm256_set1_epi32((int)g->counter[2]);
  __m256i c3 = _mm256_set1_epi32((int)g->counter[3]), hi0, lo0, hi2, lo2;
  uint32_t k0 = g->key[0], k1 = g->key[1];
  for (int round = 0; round < 10; round++) {
    multiply8(c0, 0xD2511F53u, &hi0, &lo0);
    multiply8(c2, 0xCD9E8D57u, &hi2, &lo2);
    c0 = _mm256_xor_si256(_mm256_xor_si256(hi2, c1), _mm256_set1_epi32((int)k0));
    c2 = _mm256_xor_si256(_mm256_xor_si256(hi0, c3), _mm256_set1_epi32((int)k1));
    c1 = lo2;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  noise[0] = c0, noise[1] = c1, noise[2] = c2, noise[3] = c3;
}

/* The same in the order of ids: noise[j] of ids 8j .. 8j + 7. */
AVX2 static inline void by_id(__m256i noise[4]) {
  __m256i a = _mm256_unpacklo_epi32(noise[0], noise[1]), b = _mm256_unpackhi_epi32(noise[0], noise[1]);
  __m256i c = _mm256_unpacklo_epi32(noise[2], noise[3]), d = _mm256_unpackhi_epi32(noise[2], noise[3]);
  __m256i p = _mm256_unpacklo_epi64(a, c), q = _mm256_unpackhi_epi64(a, c);              // blocks 0 4 | 1 5
  __m256i r = _mm256_unpacklo_epi64(b, d), s = _mm256_unpackhi_epi64(b, d);              // blocks 2 6 | 3 7
  noise[0] = _mm256_permute2x128_si256(p, q, 0x20), noise[1] = _mm256_permute2x128_si256(r, s, 0x20);
  noise[2] = _mm256_permute2x128_si256(p, q, 0x31), noise[3] = _mm256_permute2x128_si256(r, s, 0x31);
}

/* Which of eight ids may still win: fm_gumbel_take's bound in f32, with room for its rounding; bits of a mask. Of 1 - u the upper 24
   bits are looked at, which f32 holds as they are; where they are zero anything may be. */
AVX2 static inline int may_win(__m256 logit, __m256i noise, float per_temperature, float best) {
  __m256i rest = _mm256_srli_epi32(_mm256_andnot_si256(noise, _mm256_set1_epi32(-1)), 8);
  __m256i power = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(rest)), 23), _mm256_set1_epi32(127));
  __m256 zeros = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_set1_epi32(23 + 1), power));
  __m256 value = _mm256_mul_ps(logit, _mm256_set1_ps(per_temperature));
  __m256 slack = _mm256_fmadd_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), value), _mm256_set1_ps(1e-5f), _mm256_set1_ps(1e-4f));
  __m256 most = _mm256_add_ps(_mm256_fmadd_ps(zeros, _mm256_set1_ps(0.6931473f), value), slack);
  return _mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(best), _CMP_NLT_UQ));
}

AVX2 static void try_wide(fm_gumbel *g, float *most, const float *logit, int64_t first, int64_t end) {
  float per_temperature = (float)(1 / g->temperature);
  __m256 top = _mm256_set1_ps(*most);
  int64_t i = first;
  for (; i + 32 <= end; i += 32) {
    __m256i noise[4];
    uint32_t bits[8];
    philox8(noise, g, (uint32_t)(i >> 2));
    by_id(noise);
    for (int j = 0; j < 4; j++) {
      __m256 l = _mm256_loadu_ps(logit + i + 8 * j);
      int set = may_win(l, noise[j], per_temperature, (float)g->best);
      top = _mm256_max_ps(l, top);                 // the second where the first is not a number
      if (!set) continue;
      _mm256_storeu_si256((__m256i *)(void *)bits, noise[j]);
      for (; set; set &= set - 1) {
        int k = __builtin_ctz((unsigned)set);
        fm_gumbel_take(g, logit[i + 8 * j + k], (int32_t)(i + 8 * j + k), bits[k]);
      }
    }
  }
  float lane[8];
  _mm256_storeu_ps(lane, top);
  for (int k = 0; k < 8; k++)
    if (lane[k] > *most) *most = lane[k];
  try_plain(g, most, logit, i, end);
}

static try_fn try_choose(const fm_cpu *cpu) { return cpu->simd == &fm_simd_plain ? try_plain : try_wide; }

#else

static try_fn try_choose(const fm_cpu *cpu) { (void)cpu; return try_plain; }

#endif

/* ---- rows in pieces --------------------------------------------------------------------------------------- */

static void draw_piece(void *arg, int64_t item, int worker) {
  const draws *d = arg;
  int64_t row = item / d->n_pieces, first = item % d->n_pieces * PIECE, end = end_of(d, first);
  const float *logit = d->logits + row * d->vocab_size;
  const fm_draw_rule *r = &d->rule[row];
  fm_gumbel g = fm_gumbel_begin(r->seed, r->sample, r->index, r->temperature);
  float most = -INFINITY;
  (void)worker;
  if (r->temperature > 0) {
    try_choose(d->cpu)(&g, &most, logit, first, end);
  } else {
    g.id = (int32_t)first;
    for (int64_t i = first; i < end; i++)
      if (logit[i] > g.best) g.best = logit[i], g.id = (int32_t)i;
    most = logit[g.id];
  }
  d->piece[item] = (piece){ .best = g, .most = most };
}

static void choose(const draws *d, int64_t row) {
  const piece *p = d->piece + row * d->n_pieces, *best = p;
  fm_drawn *out = &d->out[row];
  *out = (fm_drawn){ .best = p->most };
  for (int64_t k = 1; k < d->n_pieces; k++) {
    if (p[k].best.best > best->best.best) best = &p[k];
    if (p[k].most > out->best) out->best = p[k].most;
  }
  out->id = best->best.id;
  out->logit = d->logits[row * d->vocab_size + out->id];
}

static void stand_piece(void *arg, int64_t item, int worker) {
  const draws *d = arg;
  int64_t row = item / d->n_pieces, first = item % d->n_pieces * PIECE, end = end_of(d, first);
  const float *logit = d->logits + row * d->vocab_size;
  const fm_drawn *out = &d->out[row];
  piece *p = &d->piece[item];
  float weight[CHUNK], t = d->rule[row].temperature;
  (void)worker;
  for (int64_t a = first; a < end && d->rule[row].stands; a += CHUNK) {
    int64_t n = end - a < CHUNK ? end - a : CHUNK;
    for (int64_t j = 0; j < n; j++) weight[j] = (logit[a + j] - out->best) / t;
    d->cpu->simd->exp_sub(weight, weight, 0, n);
    for (int64_t j = 0; j < n; j++) {
      bool ahead = logit[a + j] > out->logit || (logit[a + j] == out->logit && a + j < out->id);
      p->n_before += ahead;
      p->before += ahead ? weight[j] : 0;
      p->all += weight[j];
    }
  }
}

static void add_up(const draws *d, int64_t row) {
  double before = 0, all = 0;
  for (const piece *p = d->piece + row * d->n_pieces, *end = p + d->n_pieces; p < end; p++) {
    d->out[row].n_before += (int32_t)p->n_before;
    before += p->before;
    all += p->all;
  }
  d->out[row].before = (float)before;
  d->out[row].all = (float)all;
}

fm_status fm_cpu_draw(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                      int64_t n_valid) {
  const fm_cpu *cpu = (const fm_cpu *)c->dev;
  fm_mark mark = fm_arena_mark(&c->arena);
  draws d = { cpu, logits, rule, out, NULL, (n_valid + PIECE - 1) / PIECE, vocab_size, n_valid };
  int64_t size = n * d.n_pieces * (int64_t)sizeof *d.piece;
  bool stands = false;
  d.piece = fm_arena_alloc(&c->arena, size);
  if (!d.piece) return fm_no_memory(&c->err, size);
  fm_pool_for(cpu->pool, n * d.n_pieces, draw_piece, &d);
  for (int64_t i = 0; i < n; i++) {
    choose(&d, i);
    stands = stands || rule[i].stands;
  }
  if (stands) fm_pool_for(cpu->pool, n * d.n_pieces, stand_piece, &d);
  for (int64_t i = 0; i < n && stands; i++) add_up(&d, i);
  fm_arena_release(&c->arena, mark);
  return FM_OK;
}
