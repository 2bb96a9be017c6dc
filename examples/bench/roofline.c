/*
** roofline.c - how near the CPU device comes to what this machine can do, on V2-Lite's layer shapes.
**
** Builds a model in memory (random weights, no file): one dense layer, then as many expert layers as fit 8 GB, embedding and
** head; then measures in the same run: a plain multi-threaded read (GB/s), f32 fused multiply-adds in registers (GFLOP/s), decoding
** one token at a time (bytes of weights that a token touches over time), and a prompt of 512 (2 x active parameters x tokens).
** usage: roofline [bf16|f8] [GB] [threads]
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cpu/cpu.h"
#include "model/model.h"

enum { PROMPT = 512, DECODE = 24, VOCAB = 102400, D = 2048, MAX_LAYERS = 27 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void check(fm_status s, const fm_error *err) {
  if (s == FM_OK) return;
  fprintf(stderr, "roofline: %s\n", err->message);
  exit(1);
}

/* ---- made-up weights: a mapping filled once with small random values, cut into matrices ---- */

typedef struct pile { char *p; int64_t used, size; fm_dtype dtype; } pile;

static void fill(pile *b) {
  uint64_t x = 88172645463325252u;
  uint64_t *w = (uint64_t *)b->p;
  for (int64_t i = 0; i < b->size / 8; i++) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    // bf16: +-2^-7..2^-6 with random mantissas; f8: +-1..2: no infinities, no NaN, no zeros
    w[i] = b->dtype == FM_BF16 ? (x & 0x807f807f807f807fu) | 0x3c003c003c003c00u
                               : (x & 0x8787878787878787u) | 0x3838383838383838u;
  }
}

static float *ones(int64_t n, float value) {
  float *v = fm_array(n, sizeof *v);
  for (int64_t i = 0; v && i < n; i++) v[i] = value;
  return v;
}

static fm_mat cut(pile *b, int64_t rows, int64_t cols) {
  int64_t size = rows * cols * fm_dtype_size(b->dtype);
  fm_mat m = { .data = b->p + b->used, .dtype = b->dtype, .rows = rows, .cols = cols };
  b->used += (size + 63) / 64 * 64;
  if (b->dtype == FM_F8_E4M3) m.scale = ones(((rows + 127) / 128) * ((cols + 127) / 128), 0.01f);
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
  l->input_norm = ones(D, 1);
  l->post_norm = ones(D, 1);
  l->kv_a_norm = ones(512, 1);
  l->q = cut(b, 3072, D);
  l->kv_a = cut(b, 576, D);
  l->kv_b = cut(b, 4096, 512);
  l->o = cut(b, D, 2048);
  l->moe = moe;
  int64_t width = moe ? 2 * m : g->intermediate_size;
  l->mlp = (fm_mlp_weights){ cut(b, width, D), cut(b, width, D), cut(b, D, width) };
  if (!moe) return;
  l->router = cut(b, n, D);
  fm_mat *all = fm_array(3 * n, sizeof *all);
  l->gate = all, l->up = all + n, l->down = all + 2 * n;
  for (int64_t i = 0; i < n; i++) {
    l->gate[i] = cut(b, m, D);
    l->up[i] = cut(b, m, D);
    l->down[i] = cut(b, D, m);
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
  int64_t esize = fm_dtype_size(b->dtype), fixed = 2 * (int64_t)VOCAB * D * esize;
  int64_t attn = (3072 + 576 + 2048) * (int64_t)D + 4096 * 512;
  int64_t dense = (attn + 3 * 10944 * (int64_t)D) * esize;
  int64_t moe = (attn + (66 * 3 * 1408 + 64) * (int64_t)D) * esize;
  g->num_hidden_layers = 1 + (int64_t)((gb * 1e9 - (double)(fixed + dense)) / (double)moe);
  if (g->num_hidden_layers > MAX_LAYERS) g->num_hidden_layers = MAX_LAYERS;
  if (g->num_hidden_layers < 2) g->num_hidden_layers = 2;
  b->size = fixed + dense + (g->num_hidden_layers - 1) * moe + (1 << 20);
  b->p = mmap(NULL, (size_t)b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (b->p == MAP_FAILED) {
    fprintf(stderr, "roofline: no %lld bytes of memory\n", (long long)b->size);
    exit(1);
  }
  fill(b);
  w->n_layers = g->num_hidden_layers;
  w->layer = fm_array(w->n_layers, sizeof *w->layer);
  w->norm = ones(D, 1);
  w->embed = cut(b, VOCAB, D);
  w->head = cut(b, VOCAB, D);
  for (int64_t i = 0; i < w->n_layers; i++) cut_layer(&w->layer[i], b, g, i > 0);
}

/* Seconds of one pass of n rows at the end of the sequence. */
static double run(fm_net *net, fm_kv_seq *seq, int64_t n, fm_role role) {
  fm_error err;
  int32_t ids[PROMPT];
  fm_pass p;
  bool done = false;
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)((seq->len + i) * 7919 % VOCAB);
  check(fm_kv_reserve(net->kv, seq, seq->len, seq->len + n, &err), &err);
  fm_seg seg = { .seq = seq, .ids = ids, .index = seq->len, .n = n, .role = role, .n_logits = 1 };
  double t = now();
  net->c->ops->enter(net->c->dev);
  check(fm_pass_begin(&p, net, &seg, 1, false, NULL), &net->c->err);
  while (!done) check(fm_pass_layer(&p, &done), &net->c->err);
  fm_pass_end(&p);
  net->c->ops->leave(net->c->dev);
  seq->len += n;
  return now() - t;
}

int main(int argc, char **argv) {
  pile b = { .dtype = argc > 1 && strcmp(argv[1], "f8") == 0 ? FM_F8_E4M3 : FM_BF16 };
  double gb = argc > 2 ? atof(argv[2]) : 8;
  fm_config g = v2_lite();
  fm_weights w = { 0 };
  fm_ctx c;
  fm_kv *kv;
  fm_net net;
  fm_kv_seq seq = { 0 };
  fm_error err;
  check(fm_ctx_open(&c, "cpu", argc > 3 ? atoi(argv[3]) : 0, &err), &err);
  fm_cpu *cpu = (fm_cpu *)c.dev;
  build(&w, &b, &g, gb);
  check(fm_kv_new(&kv, &c, &g, FM_F32, false, (PROMPT + DECODE) / FM_PAGE + 2, &err), &err);
  check(fm_net_init(&net, &c, &g, &w, kv, PROMPT + DECODE + 8, VOCAB, &err), &err);
  double read = fm_cpu_read_bandwidth(cpu, 1.0), peak = fm_cpu_fma_peak(cpu);
  double prompt = run(&net, &seq, PROMPT, FM_PROMPT), decode = 1e9;
  for (int i = 0; i < DECODE; i++) {
    double t = run(&net, &seq, 1, FM_GENERATED);
    decode = t < decode ? t : decode;
  }
  fm_kv_truncate(kv, &seq, 0);
  double again = run(&net, &seq, PROMPT, FM_PROMPT);
  prompt = again < prompt ? again : prompt;
  double read2 = fm_cpu_read_bandwidth(cpu, 1.0);
  read = read2 > read ? read2 : read;
  double bytes = (double)touched(&w, &g, true), esize = (double)fm_dtype_size(b.dtype);
  double flop = 2 * (double)touched(&w, &g, false) / esize * PROMPT;
  printf("V2-Lite's shapes, %s, %lld layers, %.1f GB, %d threads, %s\n", fm_dtype_name(b.dtype),
         (long long)w.n_layers, (double)b.size * 1e-9, fm_pool_threads(cpu->pool), cpu->simd->name);
  printf("  plain read     %8.1f GB/s\n", read * 1e-9);
  printf("  f32 FMA peak   %8.1f GFLOP/s\n", peak * 1e-9);
  printf("  decode         %8.1f ms a token, floor %.1f ms, %.1f GB/s = %.0f %% of plain read\n", decode * 1e3,
         bytes / read * 1e3, bytes / decode * 1e-9, 100 * bytes / decode / read);
  printf("  prompt of %d  %8.1f tokens/s, floor %.2f s, took %.2f s, %.1f GFLOP/s = %.0f %% of peak\n", PROMPT,
         PROMPT / prompt, flop / peak, prompt, flop / prompt * 1e-9, 100 * flop / prompt / peak);
  return 0;
}
