/*
** backend.h - the table of operations that a device fills in, and its ABI number.
** The CPU's table is compiled in; another device's arrives from fathom_<name>.so, which exports one
** symbol, `const fm_backend *fm_backend_open_<name>(void)`, and must answer with the same ABI number.
**
** Conventions: row-major, outermost first; `ld` is the distance between rows in elements. Activations
** are f32. Pointers inside the structs below are the device's own. An operation returns FM_OK or leaves its message in
** c->err. Every row's result depends on that row's inputs alone, by one fixed order of sums: not on the
** number of rows, their neighbours, the threads, or how the call was cut into pieces.
*/
#ifndef FM_OP_BACKEND_H
#define FM_OP_BACKEND_H

#include "base/dtype.h"
#include "base/mem.h"

#define FM_BACKEND_ABI 1
#define FM_PAGE 64                       /* tokens in a cache page */

typedef struct fm_device fm_device;
typedef struct fm_backend fm_backend;

/* One rank's working state; never shared between threads. */
typedef struct fm_ctx {
  fm_device *dev;
  const fm_backend *ops;
  fm_arena arena;                        /* host scratch; an operation gives back what it takes */
  fm_error err;
} fm_ctx;

/* A device may fold a power of two into the scales of f8; weights with larger ones are refused at load. */
#define FM_F8_SCALE_LIMIT 128.0

/* A weight (rows, cols) = (out, in), stored as in the checkpoint. f8: scale (ceil(rows/128), ceil(cols/128))
   multiplies its 128 x 128 block. */
typedef struct fm_mat {
  const void *data;
  const float *scale;                    /* NULL unless f8 */
  fm_dtype dtype;                        /* F32, BF16, F16, F8_E4M3 */
  int64_t rows, cols;
} fm_mat;

/* A matrix product: out[i] = w x[i] + bias, added to what is there when `add`. */
typedef struct fm_mm {
  const fm_mat *w;
  const float *x; int64_t ldx;           /* (n, cols) */
  float *out; int64_t ldo;               /* (n, rows) */
  const float *bias;                     /* (rows) or NULL */
  int64_t n;
  bool add;
} fm_mm;

/* One layer of the paged cache: the row of token j of a sequence is at
   base + pages[j / FM_PAGE] * page_stride + (j % FM_PAGE) * width * size(dtype); bytes. */
typedef struct fm_cache {
  char *base;                            /* the layer's offset included */
  int64_t page_stride;
  int64_t width;                         /* elements a token */
  fm_dtype dtype;                        /* F32 or BF16 */
} fm_cache;

/* Rows of one sequence in a pass: cache indices index .. index + n - 1. A query at index j sees keys
   first_key .. j (its own included). */
typedef struct fm_span {
  int64_t row, n;                        /* where its rows stand among the pass's rows */
  int64_t index, first_key;
  const int32_t *pages;
} fm_span;

typedef struct fm_attn {
  const fm_cache *cache;
  const fm_span *span; int64_t n_spans;
  const float *q; int64_t ldq;           /* row: n_heads x (nope + rope); gqa: n_heads x head_dim. Rotated. */
  float *out; int64_t ldo;               /* row: n_heads x v_head_dim; gqa: n_heads x head_dim */
  int64_t n_heads, n_kv_heads;           /* n_kv_heads: gqa */
  int64_t nope, rope, v_head_dim, rank;  /* MLA; gqa: nope = head_dim, the others 0 */
  float scale;                           /* of the softmax */
  const fm_mat *kv_b;                    /* MLA: (n_heads * (nope + v_head_dim), rank) */
} fm_attn;

typedef struct fm_route {
  int64_t n_experts, top_k, n_group, topk_group;
  bool sigmoid;                          /* else softmax */
  bool group_top2;                       /* group score: sum of its two best (V3), else its best (V2) */
  bool norm_topk_prob;
  float routed_scaling_factor;
} fm_route;

/* The routed experts of one layer. */
typedef struct fm_experts {
  int64_t n_experts, top_k, hidden_size, moe_intermediate_size;
  const fm_mat *gate, *up, *down;        /* (n_experts) each */
} fm_experts;

struct fm_backend {
  uint32_t abi;
  const char *name;

  /* ---- the device ---- */
  fm_status (*open)(fm_device **out, int index, int threads, fm_error *err);
  void      (*close)(fm_device *d);
  fm_status (*memory)(fm_device *d, int64_t *total, int64_t *free_bytes);
  void      (*info)(const fm_device *d, const char **simd, int *threads);    /* for people */
  fm_status (*alloc)(fm_device *d, void **out, int64_t size, fm_error *err);  /* 64-byte aligned */
  void      (*release)(fm_device *d, void *p);
  void      (*copy)(fm_device *d, void *dst, const void *src, int64_t size);  /* within the device */
  void      (*enter)(fm_device *d);      /* around the operations of one slice of work; nests */
  void      (*leave)(fm_device *d);

  /* ---- operations ---- */
  /* out (n, cols) f32 = rows id[i] of table */
  fm_status (*embed)(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n);
  /* out[i] = w * x[i] / sqrt(mean(x[i]^2) + eps), dim elements; out may be x */
  fm_status (*rms_norm)(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w,
                        int64_t n, int64_t dim, float eps);
  /* Independent products, all in one call. */
  fm_status (*matmul)(fm_ctx *c, const fm_mm *mm, int64_t n_mm);
  /* Rotates in place, for each row, n_heads vectors of dim elements that start at x + i*ldx + h*stride.
     cos, sin (n_pos, dim/2), amplitude included; pos (n) picks the table's row.
     interleaved: pairs (2i, 2i+1), else (i, i + dim/2). */
  fm_status (*rope)(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t dim,
                    const int32_t *pos, int64_t n, const float *cos, const float *sin, bool interleaved);
  /* out = silu(gate) * up, elementwise, (n, dim) each */
  fm_status (*silu_mul)(fm_ctx *c, float *out, int64_t ldo, const float *gate, const float *up, int64_t ld,
                        int64_t n, int64_t dim);
  /* x += y, len elements */
  fm_status (*add)(fm_ctx *c, float *x, const float *y, int64_t len);
  /* Stores rows (n, width) f32 of all spans into their pages, rounded to the cache's dtype. */
  fm_status (*cache_store)(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans,
                           const float *x, int64_t ldx);
  /* MLA, keys and values expanded from the latent (prompts), or queries absorbed (decoding). The spans' own
     rows are in the cache already. Cache row: latent (rank), then rotated key (rope).
     GQA: cache row: n_kv_heads x head_dim keys, then the same of values. */
  fm_status (*mla_prompt)(fm_ctx *c, const fm_attn *a);
  fm_status (*mla_decode)(fm_ctx *c, const fm_attn *a);
  fm_status (*gqa)(fm_ctx *c, const fm_attn *a);
  /* Chooses top_k experts a token, in increasing id.
       topk_id (n, top_k) i32, topk_weight (n, top_k) f32: out
       logits  (n, n_experts) f32, before softmax or sigmoid
       bias    (n_experts) or NULL: takes part in the choice, never in the weight
     Ties go to the lower id. Source: DeepSeek-V3 report 2.1.2, DeepSeek-V2 report 2.2. */
  fm_status (*route)(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                     const fm_route *r, int64_t n);
  /* out[i] += sum over slots k of topk_weight[i,k] * mlp_{topk_id[i,k]}(x[i]), slots in order;
     x, out (n, hidden_size), not the same */
  fm_status (*experts)(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                       const fm_experts *e, int64_t n);
};

struct fm_device { const fm_backend *ops; };    /* first member of every device's own struct */

const fm_backend *fm_cpu_backend(void);         /* csrc/cpu/cpu.c */

#endif
