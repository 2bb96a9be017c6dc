/*
** cpu.h - what the files of the CPU device share: its state, and the dot products that everything is made of.
**
** The order of a sum. A dot product of length K keeps fm_simd.lanes partial sums; lane l takes the elements
** k = l, l + lanes, ... in increasing k, each by one fused multiply-add of the weight converted to f32; f8: 128 columns
** at a time, whose partial sums are added by one fused multiply-add with the scale of their block. A ragged end is padded with zeros. Then lanes are folded in halves:
** s[l] += s[l + lanes/2], and so on. Matrix-vector and matrix-matrix forms do exactly this.
*/
#ifndef FM_CPU_CPU_H
#define FM_CPU_CPU_H

#include "base/pool.h"
#include "op/backend.h"
#include "op/comm.h"

enum { FM_CPU_SCRATCH = 70 * 1024,       /* floats of a worker's scratch */
       FM_CPU_NEXT = 3,                  /* rows of the next page that dots asks for with four of its own */
       FM_CPU_PARTS = 8 };               /* partial sums of add_up */

typedef struct fm_cpu {
  fm_device device;          /* first */
  fm_pool *pool;
  const struct fm_simd *simd;
  float **scratch;           /* FM_CPU_SCRATCH floats a worker */
} fm_cpu;

/* The loops that gain from wide registers, once for each instruction set. */
typedef struct fm_simd {
  const char *name;          /* "avx512", "avx2", "plain" */
  int lanes;
  /* out[i*ldo + r] = dot(x + i*ldx, w + r*ldw, k) for i < n, r < rows; f32 throughout. scale[j / 128]: of columns j of f8
     weights converted without theirs; NULL: none */
  void (*gemm)(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n,
               const float *w, int64_t ldw, int64_t rows, int64_t k, const float *scale);
  /* the same without scale, for keys; next: what will be read after them, or NULL: FM_CPU_NEXT rows, ldw apart, are asked for with
     four of w */
  void (*dots)(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n,
               const float *w, int64_t ldw, int64_t rows, int64_t k, const float *next);
  /* out[i*ldo + r] = dot(x[i], row r0 + r of w) for r < rows, straight from the stored form, few n (1..8) */
  void (*gemv)(float *out, int64_t ldo, const float *x, int64_t ldx, int64_t n,
               const fm_mat *w, int64_t r0, int64_t rows);
  /* rows r0 .. r0+rows-1, columns c0 .. c0+cols-1 of w to f32, ld apart; f8 with its scales, where it has them */
  void (*convert)(float *out, int64_t ld, const fm_mat *w, int64_t r0, int64_t rows, int64_t c0, int64_t cols);
  /* out[0..k) += a * row, one fused multiply-add an element */
  void (*axpy)(float *out, float a, const float *row, int64_t k);
  /* out[j] = exp(x[j] - m) for j < n, the same whatever j and n; relative error below 2e-7 */
  void (*exp_sub)(float *out, const float *x, float m, int64_t n);
  /* x[j] *= a for j < n; the other returns the largest of them and max */
  void (*scale)(float *x, float a, int64_t n);
  float (*scale_max)(float *x, float a, float max, int64_t n);
  /* the sum of x[j], j < n: partial sums of j % FM_CPU_PARTS in increasing j, folded in halves */
  float (*add_up)(const float *x, int64_t n);
  /* out[j] = silu(gate[j]) * up[j] for j < n, by one exp of a negative number: nothing overflows */
  void (*silu)(float *out, const float *gate, const float *up, int64_t n);
  /* out[j] = w[j] * (x[j] * a) for j < n */
  void (*gain)(float *out, const float *x, const float *w, float a, int64_t n);
} fm_simd;

extern const fm_simd fm_simd_plain;
#if defined(__x86_64__)
extern const fm_simd fm_simd_avx2, fm_simd_avx512;
#endif
const fm_simd *fm_simd_choose(void);     /* the widest this machine runs; FATHOM_SIMD=plain|avx2|avx512 narrows it */

/* What this machine can do, for comparing: bytes/s of a plain multi-threaded read, f32 FMA flop/s in registers. */
double fm_cpu_read_bandwidth(fm_cpu *cpu, double seconds);
double fm_cpu_fma_peak(fm_cpu *cpu);

/* Products on the pool; the body of the table's matmul, also used by experts and attention (no pool: worker's own). */
fm_status fm_cpu_matmul(fm_ctx *c, const fm_mm *mm, int64_t n_mm);

fm_status fm_cpu_rms_norm(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w,
                          int64_t n, int64_t dim, float eps);
/* out = silu(gate) * up, elementwise, (n, dim) each; not in the table: products and experts take it along */
fm_status fm_cpu_silu_mul(fm_ctx *c, float *out, int64_t ldo, const float *gate, const float *up, int64_t ld,
                          int64_t n, int64_t dim);
fm_status fm_cpu_embed(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n);
fm_status fm_cpu_rope(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r);
fm_status fm_cpu_turn(fm_ctx *c, const fm_turn *t);
fm_status fm_cpu_mla_store(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps, int64_t n,
                           const fm_rope *r);
fm_status fm_cpu_cache_store(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans,
                             const float *x, int64_t ldx);
/* One cache row from width floats, and n rows that stand one behind the other back to f32, width apart; F8_E4M3. */
void      fm_cpu_pack8(char *to, const fm_cache *k, const float *x);
void      fm_cpu_unpack8(const fm_simd *simd, float *out, const fm_cache *k, const char *rows, int64_t n);
fm_status fm_cpu_mla_prompt(fm_ctx *c, const fm_attn *a);
fm_status fm_cpu_mla_decode(fm_ctx *c, const fm_attn *a);
fm_status fm_cpu_gqa(fm_ctx *c, const fm_attn *a);
fm_status fm_cpu_draw(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n, int64_t vocab_size,
                      int64_t n_valid);
fm_status fm_cpu_route(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                       const fm_route *r, int64_t n);
fm_status fm_cpu_experts(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                         const fm_experts *e, int64_t n);
fm_status fm_cpu_combine(fm_ctx *c, float *out, const float *y, const int32_t *slot, const float *topk_weight, int64_t n,
                         int64_t top_k, int64_t hidden_size);
extern const fm_collectives fm_cpu_collectives;           /* comm.c */
fm_status fm_cpu_join_far(fm_comm **out, fm_wire *w, const int *rank, int n, int me, fm_device *dev, fm_error *err);   /* far.c */

#endif
