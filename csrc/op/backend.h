/*
** backend.h - the table of operations that a device fills in, and its ABI number.
** The CPU's table is compiled in; another device's arrives from fathom_<name>.so, which exports one
** symbol, `const fm_backend *fm_backend_open_<name>(void)`, and must answer with the same ABI number.
**
** Conventions: row-major, outermost first; `ld` is the distance between rows in elements. Activations
** are f32. Weights, activations, cache and rotation tables are in the device's memory. Ids, positions and spans are host
** memory in every call: a device with memory of its own reads its copy of them (see stage). An operation returns FM_OK or
** leaves its message in c->err; a device may work on after it returned, until something is downloaded. Every row's result
** depends on that row's inputs alone, by one fixed order of sums: not on the number of rows, their neighbours, the threads,
** or how the call was cut into pieces (unless c->loose).
*/
#ifndef FM_OP_BACKEND_H
#define FM_OP_BACKEND_H

#include "base/dtype.h"
#include "base/mem.h"

#define FM_BACKEND_ABI 11
#define FM_PAGE 64                       /* tokens in a cache page */

typedef struct fm_device fm_device;
typedef struct fm_backend fm_backend;
typedef struct fm_collectives fm_collectives;   /* op/comm.h */

/* One rank's working state; never shared between threads. */
typedef struct fm_ctx {
  fm_device *dev;
  const fm_backend *ops;
  fm_arena arena;                        /* host scratch; an operation gives back what it takes */
  char *slab;                            /* device scratch, where the device's memory is not the host's; else NULL */
  int64_t slab_size, slab_used;
  fm_dtype arithmetic;                   /* of matrix products: F32, BF16 or F8_E4M3 */
  bool generated;                        /* the rows of this pass were sampled: few, and paid for by bytes of weights */
  bool loose;                            /* a row's bits may hang on how many there are: whatever is fastest for that many */
  bool debug;                            /* after every operation its results are looked through for what is not a number */
  char where[32];                        /* debug: what is being computed, "layer 3" */
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
  const float *norm; float eps;          /* x is RMS-normed first, with these weights (cols); NULL: as it is */
  const float *up;                       /* silu(x) * up takes x's place, (n, cols) ldx apart; NULL: as it is */
  float *out; int64_t ldo;               /* (n, rows) */
  const float *bias;                     /* (rows) or NULL */
  int64_t n;
  bool add;
  bool exact;                            /* f32 arithmetic, whatever the context's: the router */
} fm_mm;

/* One layer of the paged cache: the row of token j of a sequence is at
   base + pages[j / FM_PAGE] * page_stride + (j % FM_PAGE) * fm_cache_row_size(dtype, width, latent); bytes. */
typedef struct fm_cache {
  char *base;                            /* the layer's offset included */
  int64_t page_stride;
  int64_t width;                         /* elements a token */
  fm_dtype dtype;                        /* F32, BF16, or F8_E4M3: MLA only */
  int64_t latent;                        /* F8_E4M3: how many elements, from the first on, are f8 */
} fm_cache;

/* An F8_E4M3 row: `latent` f8 in tiles of FM_CACHE_TILE, filled up to a multiple of 4; each tile's scale in f32
   (fm_f8_scale of its largest); the other elements in bf16. 656 bytes for 512 + 64, the row that FlashMLA publishes. */
#define FM_CACHE_TILE 128
static inline int64_t fm_cache_scales(int64_t latent) { return (latent + 3) / 4 * 4; }     /* where the scales stand */
static inline int64_t fm_cache_rest(int64_t latent) {                                      /* and where the others do */
  return fm_cache_scales(latent) + (latent + FM_CACHE_TILE - 1) / FM_CACHE_TILE * 4;
}
static inline int64_t fm_cache_row_size(fm_dtype t, int64_t width, int64_t latent) {
  return t == FM_F8_E4M3 ? (fm_cache_rest(latent) + (width - latent) * 2 + 3) / 4 * 4 : width * (t == FM_F32 ? 4 : 2);
}

/* Where element i of a row stands, in bytes; dtype of it: *t. For elements that are rotated: none of a latent. */
static inline int64_t fm_cache_element(fm_dtype dtype, int64_t latent, int64_t i, fm_dtype *t) {
  *t = dtype == FM_F32 ? FM_F32 : FM_BF16;
  return dtype == FM_F8_E4M3 ? fm_cache_rest(latent) + (i - latent) * 2 : i * (dtype == FM_F32 ? 4 : 2);
}

/* Rows of one sequence in a pass: cache indices index .. index + n - 1. A query at index j sees keys
   first_key .. j (its own included). */
typedef struct fm_span {
  int64_t row, n;                        /* where its rows stand among the pass's rows */
  int64_t index, first_key;
  const int32_t *pages;
} fm_span;

/* What mla_store takes, for mla_decode that stores for itself: q is fm_attn's. What both arrays hold afterwards is not said. */
typedef struct fm_fresh {
  float *q, *kv;
  const float *norm; float eps;
  int64_t n;
  const struct fm_rope *turn;
} fm_fresh;

typedef struct fm_attn {
  const fm_cache *cache;
  const fm_span *span; int64_t n_spans;
  const float *q; int64_t ldq;           /* row: n_heads x (nope + rope); gqa: n_heads x head_dim. Rotated. */
  float *out; int64_t ldo;               /* row: n_heads x v_head_dim; gqa: n_heads x head_dim */
  int64_t n_heads, n_kv_heads;           /* n_kv_heads: gqa */
  int64_t nope, rope, v_head_dim, rank;  /* MLA; gqa: nope = head_dim, the others 0 */
  float scale;                           /* of the softmax */
  int64_t n_positions;                   /* the longest that a sequence may become */
  const fm_mat *kv_b;                    /* MLA: (n_heads * (nope + v_head_dim), rank) */
  const fm_fresh *fresh;                 /* mla_decode: the rows are stored first; NULL: they are in the cache */
} fm_attn;

typedef struct fm_route {
  int64_t n_experts, top_k, n_group, topk_group;
  bool sigmoid;                          /* else softmax */
  bool group_top2;                       /* group score: sum of its two best (V3), else its best (V2) */
  bool norm_topk_prob;
  float routed_scaling_factor;
  int64_t *count;                        /* (n_experts), the device's: how many rows chose each is added; NULL: nobody counts */
} fm_route;

/* What route takes and writes, for experts that choose for themselves. */
typedef struct fm_gate { const fm_route *rule; const float *logits, *bias; int32_t *topk_id; float *topk_weight; } fm_gate;

/* The experts of one layer. */
typedef struct fm_experts {
  int64_t n_experts, top_k, hidden_size, moe_intermediate_size;
  const fm_mat *gate, *up, *down;        /* (n_experts) each */
  const float *norm; float eps;          /* x is RMS-normed first; NULL: as it is */
  const fm_mat *shared_gate, *shared_up, *shared_down;   /* what every row takes too, added last; NULL: none */
  const fm_gate *choose;                 /* the choice is made first, into the call's topk_id and topk_weight; NULL: it is there */
} fm_experts;

/* Answers to n choices: for each its row's number (i32), then rows of hidden_size (f32). */
static inline int64_t fm_answers_at(int64_t n) { return (n * 4 + 255) / 256 * 256; }       /* where the rows begin */
static inline int64_t fm_answers_size(int64_t n, int64_t hidden_size) { return fm_answers_at(n) + n * hidden_size * 4; }

/* Rotation of `dim` elements a vector. cos, sin (n_pos, dim/2), amplitude included; pos (n) picks the table's row.
   interleaved: pairs (2i, 2i+1), else (i, i + dim/2). */
typedef struct fm_rope {
  const int32_t *pos;
  const float *cos, *sin;
  int64_t dim;
  bool interleaved;
} fm_rope;

/* Cached rows of one layer turned by one angle. Row `index + i` through the page list `from` becomes that row through `to`,
   i < n: all of it is copied, and of n_heads vectors of dim elements, from element `at` on, each pair (as in fm_rope) is
   rotated in double precision and rounded once. The lists may be the same. */
typedef struct fm_turn {
  const fm_cache *cache;
  const int32_t *from, *to;              /* host */
  int64_t index, n;
  int64_t at, n_heads, dim;
  const double *cos, *sin;               /* (dim / 2) host, of the angle: no amplitude */
  bool interleaved;
} fm_turn;

/* How one row of logits is drawn: argmax of logit / temperature + gumbel(noise of seed, sample, index, id); temperature 0:
   argmax. Ties go to the lower id. */
typedef struct fm_draw_rule { uint64_t seed; int64_t index; uint32_t sample; float temperature; bool stands; } fm_draw_rule;
/* The id, its logit and the largest; where the rule says `stands` also how it stands among all ids, by which filters can be judged: how
   many are before it (larger logits, equal ones of lower ids), and the sums of exp((logit - best) / temperature) over these and
   over all, to one part in a million. */
typedef struct fm_drawn { int32_t id, n_before; float logit, best, before, all; } fm_drawn;

struct fm_backend {
  uint32_t abi;
  const char *name;
  uint32_t arithmetic, cache_dtypes;     /* bit 1 << fm_dtype: what it computes in, what it keeps */
  int64_t chunk;                         /* rows of a prompt that are worth one pass */

  /* ---- the device ---- */
  fm_status (*open)(fm_device **out, int index, int threads, fm_error *err);
  void      (*close)(fm_device *d);
  fm_status (*memory)(fm_device *d, int64_t *total, int64_t *free_bytes);
  void      (*info)(const fm_device *d, const char **simd, int *threads);    /* for people */
  fm_status (*pin)(fm_device *d, const char *cpus, fm_error *err);   /* fm_pool_pin; NULL: it has no threads */
  fm_status (*alloc)(fm_device *d, void **out, int64_t size, fm_error *err);  /* 64-byte aligned */
  void      (*release)(fm_device *d, void *p);
  void      (*copy)(fm_device *d, void *dst, const void *src, int64_t size);  /* within the device */
  void      (*clear)(fm_device *d, void *dst, int64_t size);   /* zeros */
  void      (*enter)(fm_device *d);      /* around the operations of one slice of work; nests */
  void      (*leave)(fm_device *d);

  /* ---- a memory of its own; all NULL where the device works in the host's ---- */
  /* size bytes of dst in the device's memory = src; may return before they are there, src is free to go */
  fm_status (*upload)(fm_ctx *c, void *dst, const void *src, int64_t size);
  /* waits for all that was asked for; *what went wrong* since the last time comes out here */
  fm_status (*download)(fm_ctx *c, void *dst, const void *src, int64_t size);
  /* A block of host memory, of which `send` makes the device's copy: ids, positions, spans and page lists of a pass.
     Valid until the next stage. */
  fm_status (*stage)(fm_ctx *c, void **host, int64_t size);
  fm_status (*send)(fm_ctx *c);
  /* Operations between record and play are noted under key instead of done, and play does them; a device may do them at once when a
     key is new. *known: they are noted already, and none is to be called. The same key means the same operations on the same addresses. */
  fm_status (*record)(fm_ctx *c, const int64_t key[8], bool *known);
  fm_status (*play)(fm_ctx *c, bool good);          /* not good: what was noted is forgotten */
  /* *done: all that was asked for is done, and a download does not wait. NULL: operations are done when they return. */
  fm_status (*poll)(fm_ctx *c, bool *done);

  /* ---- operations ---- */
  /* out (n, cols) f32 = rows id[i] of table */
  fm_status (*embed)(fm_ctx *c, float *out, const fm_mat *table, const int32_t *id, int64_t n);
  /* out[i] = w * x[i] / sqrt(mean(x[i]^2) + eps), dim elements; out may be x */
  fm_status (*rms_norm)(fm_ctx *c, float *out, int64_t ldo, const float *x, int64_t ldx, const float *w,
                        int64_t n, int64_t dim, float eps);
  /* Independent products, all in one call. */
  fm_status (*matmul)(fm_ctx *c, const fm_mm *mm, int64_t n_mm);
  /* Rotates in place, for each row, n_heads vectors that start at x + i*ldx + h*stride. */
  fm_status (*rope)(fm_ctx *c, float *x, int64_t ldx, int64_t n_heads, int64_t stride, int64_t n, const fm_rope *r);
  /* Stores rows (n, width) f32 of all spans into their pages, rounded to the cache's dtype. */
  fm_status (*cache_store)(fm_ctx *c, const fm_cache *cache, const fm_span *span, int64_t n_spans,
                           const float *x, int64_t ldx);
  fm_status (*turn)(fm_ctx *c, const fm_turn *t);
  /* What MLA does between projections and attention: norms the latent of each row of kv (n, rank + rope), in place, rotates
     its key part and q's (n, n_heads * (nope + rope)), and stores kv. Takes a's cache, spans, sizes; a->q is written. */
  fm_status (*mla_store)(fm_ctx *c, const fm_attn *a, float *q, float *kv, const float *norm, float eps,
                         int64_t n, const fm_rope *r);
  /* MLA, keys and values expanded from the latent (prompts), or queries absorbed (decoding). The spans' own
     rows are in the cache already. Cache row: latent (rank), then rotated key (rope).
     GQA: cache row: n_kv_heads x head_dim keys, then the same of values. */
  fm_status (*mla_prompt)(fm_ctx *c, const fm_attn *a);
  fm_status (*mla_decode)(fm_ctx *c, const fm_attn *a);
  fm_status (*gqa)(fm_ctx *c, const fm_attn *a);
  /* out (n): draws from logits (n, vocab_size) by rule (n); ids from n_valid on are padding */
  fm_status (*draw)(fm_ctx *c, fm_drawn *out, const float *logits, const fm_draw_rule *rule, int64_t n,
                    int64_t vocab_size, int64_t n_valid);
  /* Chooses top_k experts a token, in increasing id.
       topk_id (n, top_k) i32, topk_weight (n, top_k) f32: out
       logits  (n, n_experts) f32, before softmax or sigmoid
       bias    (n_experts) or NULL: takes part in the choice, never in the weight
     Ties go to the lower id. Source: DeepSeek-V3 report 2.1.2, DeepSeek-V2 report 2.2. */
  fm_status (*route)(fm_ctx *c, int32_t *topk_id, float *topk_weight, const float *logits, const float *bias,
                     const fm_route *r, int64_t n);
  /* out[i] += sum over slots k of topk_weight[i,k] * mlp_{topk_id[i,k]}(x[i]), slots in order, then the shared one;
     x, out (n, hidden_size); the same only with a norm */
  fm_status (*experts)(fm_ctx *c, float *out, const float *x, const int32_t *topk_id, const float *topk_weight,
                       const fm_experts *e, int64_t n);
  /* The last step of experts, for answers that came from elsewhere: out[i] += sum over k of topk_weight[i,k] * y[slot[i,k]], slots in
     order; out (n, hidden_size), y rows of hidden_size, slot (n, top_k). The same bits as experts gives. */
  fm_status (*combine)(fm_ctx *c, float *out, const float *y, const int32_t *slot, const float *topk_weight, int64_t n,
                       int64_t top_k, int64_t hidden_size);

  /* What some experts of a layer, e's, which are numbers first .. first + e->n_experts - 1 of all, answer to rows x (n, hidden_size) that have
     chosen id (n, top_k) among all; other choices are left out. answers: fm_answers_size bytes, laid out as fm_collectives.all_combine
     finds them. Shared experts take no part. NULL: the model goes by collectives and the host alone. */
  fm_status (*experts_of)(fm_ctx *c, void *answers, const float *x, const int32_t *id, int64_t first, const fm_experts *e, int64_t n);

  const fm_collectives *comm;            /* NULL: such devices do not work together */
};

struct fm_device { const fm_backend *ops; };    /* first member of every device's own struct */

const fm_backend *fm_cpu_backend(void);         /* csrc/cpu/cpu.c */

#endif
