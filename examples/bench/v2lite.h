/*
** v2lite.h - a model of V2-Lite's exact layer shapes with made-up weights, in memory: no file, any number of layers, any device.
*/
#ifndef FM_EXAMPLES_BENCH_V2LITE_H
#define FM_EXAMPLES_BENCH_V2LITE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "model/model.h"

enum { VOCAB = 102400, D = 2048, MAX_LAYERS = 27 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(fm_status s, const fm_error *err) {
  if (s == FM_OK) return;
  fprintf(stderr, "bench: %s\n", err->message);
  exit(1);
}

/* ---- made-up weights: one block filled with small random values, cut into matrices ---- */

typedef struct pile { char *p; int64_t used, size; fm_dtype dtype; fm_ctx *c; } pile;

/* bf16: +-2^-7..2^-6 with random mantissas; f8: +-1..2: no infinities, no NaN, no zeros. */
static void scatter(char *p, int64_t size, fm_dtype t) {
  uint64_t x = 88172645463325252u, *w = (uint64_t *)(void *)p;
  for (int64_t i = 0; i < size / 8; i++) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    w[i] = t == FM_BF16 ? (x & 0x807f807f807f807fu) | 0x3c003c003c003c00u
                        : (x & 0x8787878787878787u) | 0x3838383838383838u;
  }
}

/* Fills a block of the device: a random piece again and again, of a length that no matrix has. */
static void scatter_device(fm_ctx *c, char *p, int64_t size, fm_dtype t) {
  int64_t piece = (64 << 20) + 8 * 1237;
  char *host = malloc((size_t)piece);
  scatter(host, piece, t);
  for (int64_t at = 0; at < size; at += piece) {
    int64_t n = size - at < piece ? size - at : piece;
    if (at == 0) check(c->ops->upload(c, p, host, n), &c->err);
    else c->ops->copy(c->dev, p + at, p, n);
  }
  check(c->ops->download(c, host, p, 8), &c->err);
  free(host);
}

static void *device_copy(fm_ctx *c, const void *src, int64_t size) {
  fm_error err;
  void *p;
  check(c->ops->alloc(c->dev, &p, size, &err), &err);
  check(c->ops->upload(c, p, src, size), &c->err);
  return p;
}

static float *filled(pile *b, int64_t n, float value) {
  float *v = fm_array(n, sizeof *v);
  for (int64_t i = 0; v && i < n; i++) v[i] = value;
  return b->c->ops->upload ? device_copy(b->c, v, n * 4) : v;
}

static fm_mat cut_bare(pile *b, int64_t rows, int64_t cols) {
  int64_t size = rows * cols * fm_dtype_size(b->dtype);
  fm_mat m = { .data = b->p + b->used, .dtype = b->dtype, .rows = rows, .cols = cols };
  b->used += (size + 255) / 256 * 256;
  return m;
}

static fm_mat cut(pile *b, int64_t rows, int64_t cols) {
  fm_mat m = cut_bare(b, rows, cols);
  if (b->dtype == FM_F8_E4M3) m.scale = filled(b, ((rows + 127) / 128) * ((cols + 127) / 128), 0.01f);
  return m;
}

/* The router: f32 on a device of its own. */
static fm_mat cut_router(pile *b, int64_t rows, int64_t cols) {
  if (!b->c->ops->upload) return cut(b, rows, cols);
  float *v = malloc((size_t)(rows * cols) * 4);
  for (int64_t i = 0; i < rows * cols; i++) v[i] = (float)((i * 7919 + i / 2048 * 104729) % 2001 - 1000) * 2e-5f;
  fm_mat m = { .data = device_copy(b->c, v, rows * cols * 4), .dtype = FM_F32, .rows = rows, .cols = cols };
  free(v);
  return m;
}

static fm_config v2_lite(void) {
  static const char json[] =
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":102400,\"hidden_size\":2048,\"intermediate_size\":10944,"
    "\"moe_intermediate_size\":1408,\"num_hidden_layers\":27,\"first_k_dense_replace\":1,"
    "\"num_attention_heads\":16,\"num_key_value_heads\":16,\"q_lora_rank\":null,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":64,"
    "\"n_shared_experts\":2,\"num_experts_per_tok\":6,\"scoring_func\":\"softmax\",\"topk_method\":\"greedy\","
    "\"n_group\":1,\"topk_group\":1,\"norm_topk_prob\":false,\"routed_scaling_factor\":1.0,"
    "\"max_position_embeddings\":163840,\"rope_theta\":10000,\"rms_norm_eps\":1e-6,\"hidden_act\":\"silu\","
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"
    "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":0.707,\"mscale_all_dim\":0.707}}";
  fm_config g;
  fm_error err;
  check(fm_config_parse(&g, json, sizeof json - 1, &err), &err);
  return g;
}

static void cut_layer(fm_layer *l, pile *b, const fm_config *g, bool moe) {
  int64_t n = g->n_routed_experts, m = g->moe_intermediate_size;
  l->input_norm = filled(b, D, 1);
  l->post_norm = filled(b, D, 1);
  l->kv_a_norm = filled(b, 512, 1);
  l->q = cut(b, 3072, D);
  l->kv_a = cut(b, 576, D);
  l->kv_b = cut(b, 4096, 512);
  l->o = cut(b, D, 2048);
  l->moe = moe;
  int64_t width = moe ? 2 * m : g->intermediate_size;
  l->mlp = (fm_mlp_weights){ cut(b, width, D), cut(b, width, D), cut(b, D, width) };
  if (!moe) return;
  l->router = cut_router(b, n, D);
  fm_mat *all = fm_array(3 * n, sizeof *all);
  l->gate = all, l->up = all + n, l->down = all + 2 * n;
  // scales of one matrix behind those of the one before: experts stand at equal distances in every respect
  int64_t blocks = (m + 127) / 128 * (D / 128), at = 0;
  float *scale = b->dtype == FM_F8_E4M3 ? filled(b, 3 * n * blocks, 0.01f) : NULL;
  for (int64_t i = 0; i < 3 * n; i++) {
    fm_mat *to = i % 3 == 0 ? l->gate : i % 3 == 1 ? l->up : l->down;
    to[i / 3] = i % 3 == 2 ? cut_bare(b, D, m) : cut_bare(b, m, D);
    to[i / 3].scale = scale ? scale + at : NULL;
    at += blocks;
  }
}

static int64_t mat_size(const fm_mat *m) { return m->rows * m->cols * fm_dtype_size(m->dtype); }

/* Bytes of weights that one token reads; parameters that work on it. */
static int64_t touched(const fm_weights *w, const fm_config *g, bool head) {
  int64_t size = head ? mat_size(&w->head) : 0;
  for (int64_t i = 0; i < w->n_layers; i++) {
    const fm_layer *l = &w->layer[i];
    size += mat_size(&l->q) + mat_size(&l->kv_a) + mat_size(&l->kv_b) + mat_size(&l->o);
    size += mat_size(&l->mlp.gate) + mat_size(&l->mlp.up) + mat_size(&l->mlp.down);
    if (l->moe)
      size += mat_size(&l->router)
              + g->num_experts_per_tok * (2 * mat_size(&l->gate[0]) + mat_size(&l->down[0]));
  }
  return size;
}

static void build(fm_weights *w, pile *b, fm_config *g, double gb) {
  int64_t esize = fm_dtype_size(b->dtype), fixed = 2 * (int64_t)VOCAB * D * 2;
  int64_t attn = (3072 + 576 + 2048) * (int64_t)D + 4096 * 512;
  int64_t dense = (attn + 3 * 10944 * (int64_t)D) * esize;
  int64_t moe = (attn + (66 * 3 * 1408 + 64) * (int64_t)D) * esize;
  g->num_hidden_layers = 1 + (int64_t)((gb * 1e9 - (double)(fixed + dense)) / (double)moe);
  if (g->num_hidden_layers > MAX_LAYERS) g->num_hidden_layers = MAX_LAYERS;
  if (g->num_hidden_layers < 2) g->num_hidden_layers = 2;
  b->size = fixed + dense + (g->num_hidden_layers - 1) * moe + (1 << 20);
  fm_error err;
  if (b->c->ops->upload) {
    check(b->c->ops->alloc(b->c->dev, (void **)&b->p, b->size, &err), &err);
    scatter_device(b->c, b->p, b->size, b->dtype);
  } else {
    b->p = mmap(NULL, (size_t)b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->p == MAP_FAILED) check(fm_fail(&err, FM_EMEMORY, "no %lld bytes of memory", (long long)b->size), &err);
    scatter(b->p, b->size, b->dtype);
  }
  w->n_layers = g->num_hidden_layers;
  w->layer = fm_array(w->n_layers, sizeof *w->layer);
  w->norm = filled(b, D, 1);
  fm_dtype t = b->dtype;
  b->dtype = FM_BF16;                    // as in the released FP8 checkpoints
  w->embed = cut(b, VOCAB, D);
  w->head = cut(b, VOCAB, D);
  b->dtype = t;
  for (int64_t i = 0; i < w->n_layers; i++) cut_layer(&w->layer[i], b, g, i > 0);
}

#endif
