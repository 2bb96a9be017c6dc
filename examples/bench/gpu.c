/*
** gpu.c - one GPU on V2-Lite's exact shapes: kernels beside what this card copies and multiplies, then the whole model.
**
** Floors stand beside each figure: bytes over the measured copy rate, operations over the measured rate of a large product of
** cuBLASLt. Kernels are timed inside a noted pass of twenty calls, the model by whole steps, staging and reading of ids included.
** usage: gpu [bf16|f8] [layers of 27] [model: without the kernels]; gpu mla: only absorbed attention
*/
#include "v2lite.h"

static fm_ctx c;
static double copy_rate, peak;

static void wait(void) {
  int x;
  static void *word;
  fm_error err;
  if (!word) check(c.ops->alloc(c.dev, &word, 16, &err), &err);
  check(c.ops->download(&c, &x, word, 4), &c.err);
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* ---- one operation, by the median of seven noted passes ---- */

typedef fm_status (*op_fn)(void *arg, int turn);

static double time_op(op_fn fn, void *arg, int turns) {
  static int64_t serial;
  double took[7];
  int64_t key[8] = { -1, ++serial };
  bool known = false;
  while (!known) {                                 // a pass is noted when it is met again
    check(c.ops->record(&c, key, &known), &c.err);
    for (int i = 0; i < turns && !known; i++) check(fn(arg, i), &c.err);
    check(c.ops->play(&c, true), &c.err);
    wait();
  }
  for (int i = 0; i < 7; i++) {
    check(c.ops->record(&c, key, &known), &c.err);
    double t = now();
    check(c.ops->play(&c, true), &c.err);
    wait();
    took[i] = (now() - t) / turns;
  }
  qsort(took, 7, sizeof *took, by_size);
  return took[3];
}

static void row(const char *name, double s, double bytes, double flop) {
  printf("  %-44s %9.1f us", name, s * 1e6);
  if (bytes > 0) printf("  %7.0f GB/s = %3.0f %% of copy", bytes / s * 1e-9, 100 * bytes / s / copy_rate);
  if (flop > 0) printf("  %6.0f TFLOP/s = %3.0f %% of peak", flop / s * 1e-12, 100 * flop / s / peak);
  printf("\n");
}

/* ---- ceilings ---- */

static void *block;                      /* 4 GiB */
static fm_status copy_turn(void *arg, int turn) {
  (void)arg, (void)turn;
  c.ops->copy(c.dev, block, (char *)block + ((int64_t)2 << 30), (int64_t)2 << 30);
  return FM_OK;
}

typedef struct product { fm_mat w[8]; int n_w; int64_t n; float *x, *out, *norm; bool add; } product;
static fm_status product_turn(void *arg, int turn) {
  product *p = arg;
  fm_mat *w = &p->w[turn % p->n_w];
  fm_mm m = { .w = w, .x = p->x, .ldx = w->cols, .out = p->out, .ldo = w->rows, .n = p->n, .norm = p->norm, .eps = 1e-6f, .add = p->add,
              .exact = w->dtype == FM_F32 };
  return c.ops->matmul(&c, &m, 1);
}

static void *room(int64_t size) {
  void *p;
  fm_error err;
  check(c.ops->alloc(c.dev, &p, size, &err), &err);
  return p;
}

static void ceilings(void) {
  block = room((int64_t)4 << 30);
  scatter_device(&c, block, (int64_t)4 << 30, FM_BF16);
  double took[5];
  for (int i = 0; i < 5; i++) {
    wait();
    double t = now();
    for (int j = 0; j < 4; j++) copy_turn(NULL, j);
    wait();
    took[i] = (now() - t) / 4;
  }
  qsort(took, 5, sizeof *took, by_size);
  copy_rate = 2.0 * ((int64_t)2 << 30) / took[2];
  product p = { .n_w = 1, .n = 8192, .x = room(8192 * 8192 * 4), .out = room(8192 * 8192 * 4) };
  p.w[0] = (fm_mat){ .data = block, .dtype = FM_BF16, .rows = 8192, .cols = 8192 };
  scatter_device(&c, (char *)p.x, 8192 * 8192 * 4, FM_BF16);
  c.generated = false;
  product_turn(&p, 0);
  wait();
  double whole = time_op(product_turn, &p, 8);
  peak = 2.0 * 8192 * 8192 * 8192 / whole;
  printf("copy %.0f GB/s; product of 8192 cubed, f32 in and out, %.0f TFLOP/s\n", copy_rate * 1e-9, peak * 1e-12);
  c.ops->release(c.dev, p.x);
  c.ops->release(c.dev, p.out);
}

/* ---- kernels ---- */

typedef struct attention { fm_attn a; fm_cache k[4]; fm_span *s; } attention;
static fm_status attention_turn(void *arg, int turn) {
  attention *t = arg;
  t->a.cache = &t->k[turn % 4];
  return c.ops->mla_decode(&c, &t->a);
}

static void bench_attention(int64_t heads, int64_t batch, int64_t ctx, fm_dtype cache) {
  attention t = { 0 };
  int64_t pages = ctx / FM_PAGE, width = 576, page = FM_PAGE * fm_cache_row_size(cache, width, 512);
  void *staged;
  char name[64];
  check(c.ops->stage(&c, &staged, batch * (int64_t)(sizeof(fm_span) + (size_t)pages * 4)), &c.err);
  t.s = staged;
  int32_t *list = (int32_t *)(void *)(t.s + batch);
  for (int64_t i = 0; i < batch; i++) {
    for (int64_t j = 0; j < pages; j++) list[i * pages + j] = (int32_t)(i * pages + (j * 37) % pages);
    t.s[i] = (fm_span){ .row = i, .n = 1, .index = ctx - 1, .pages = list + i * pages };
  }
  check(c.ops->send(&c), &c.err);
  int64_t layer = batch * pages * page;
  char *k = room(4 * layer);
  scatter_device(&c, k, 4 * layer, cache);
  for (int i = 0; i < 4; i++)
    t.k[i] = (fm_cache){ .base = k + i * layer, .page_stride = page, .width = width, .dtype = cache, .latent = 512 };
  fm_mat kv_b = { .data = block, .dtype = FM_BF16, .rows = heads * 256, .cols = 512 };
  t.a = (fm_attn){ .span = t.s, .n_spans = batch, .q = block, .ldq = heads * 192, .out = room(batch * heads * 128 * 4), .ldo = heads * 128,
                   .n_heads = heads, .nope = 128, .rope = 64, .v_head_dim = 128, .rank = 512, .scale = 0.07f, .kv_b = &kv_b,
                   .n_positions = ctx };
  c.generated = true;
  double s = time_op(attention_turn, &t, 20);
  snprintf(name, sizeof name, "mla_decode %d heads, %d x %d%s", (int)heads, (int)batch, (int)ctx,
           cache == FM_F8_E4M3 ? ", f8 cache" : "");
  row(name, s, (double)layer, heads > 16 ? 2.0 * (double)(batch * heads * ctx) * (576 + 512) : 0);
  c.ops->release(c.dev, k);
  c.ops->release(c.dev, t.a.out);
}

static fm_status gqa_turn(void *arg, int turn) {
  (void)turn;
  return c.ops->gqa(&c, arg);
}

/* Grouped queries of 28 heads over 4 (R1-Distill-Qwen-7B): `batch` sequences' last n rows of ctx, as a prompt's or as drawn ones. */
static void bench_gqa(int64_t batch, int64_t n, int64_t ctx) {
  enum { HEADS = 28, KV = 4 };
  int64_t pages = ctx / FM_PAGE, width = 2 * KV * 128, page = FM_PAGE * width * 2, bytes = batch * pages * page;
  void *staged;
  char name[64];
  check(c.ops->stage(&c, &staged, batch * (int64_t)(sizeof(fm_span) + (size_t)pages * 4)), &c.err);
  fm_span *s = staged;
  int32_t *list = (int32_t *)(void *)(s + batch);
  for (int64_t i = 0; i < batch; i++) {
    for (int64_t j = 0; j < pages; j++) list[i * pages + j] = (int32_t)(i * pages + (j * 37) % pages);
    s[i] = (fm_span){ .row = i * n, .n = n, .index = ctx - n, .pages = list + i * pages };
  }
  check(c.ops->send(&c), &c.err);
  fm_cache k = { .base = room(bytes), .page_stride = page, .width = width, .dtype = FM_BF16 };
  scatter_device(&c, k.base, bytes, FM_BF16);
  float *q = room(batch * n * HEADS * 128 * 4);
  c.ops->clear(c.dev, q, batch * n * HEADS * 128 * 4);
  fm_attn a = { .cache = &k, .span = s, .n_spans = batch, .q = q, .ldq = HEADS * 128, .out = room(batch * n * HEADS * 128 * 4), .ldo = HEADS * 128,
                .n_heads = HEADS, .n_kv_heads = KV, .nope = 128, .scale = 0.09f, .n_positions = ctx };
  c.generated = n == 1;
  double t = time_op(gqa_turn, &a, 20);
  snprintf(name, sizeof name, "gqa 28 heads over 4, %d x %d%s", (int)batch, (int)ctx, n > 1 ? ", a prompt" : "");
  row(name, t, n > 1 ? 0 : (double)bytes, n > 1 ? 2.0 * (double)(batch * HEADS * n) * (double)(ctx - n / 2) * 256 : 0);
  c.ops->release(c.dev, k.base), c.ops->release(c.dev, q), c.ops->release(c.dev, a.out);
}

typedef struct mixture { fm_experts e[8]; float *x, *out, *weight; int32_t *id; int64_t n; int n_e; } mixture;
static fm_status experts_turn(void *arg, int turn) {
  mixture *m = arg;
  return c.ops->experts(&c, m->out, m->x, m->id, m->weight, &m->e[turn % m->n_e], m->n);
}

static void bench_experts(const fm_weights *w, const fm_config *g, int64_t n) {
  mixture m = { .n = n, .x = room(n * D * 4), .out = room(n * D * 4), .weight = room(n * 6 * 4), .id = room(n * 6 * 4) };
  int32_t *id = malloc((size_t)n * 24);
  bool met[64] = { 0 };
  int64_t active = 0;
  char name[64];
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0, e = (i * 2654435761u >> 8) % 10; k < 6; k++, e += 1 + (i * 31 + k * 17) % 10) {
      id[i * 6 + k] = (int32_t)e;
      active += !met[e];
      met[e] = true;
    }
  check(c.ops->upload(&c, m.id, id, n * 24), &c.err);
  scatter_device(&c, (char *)m.x, n * D * 4, FM_BF16);
  scatter_device(&c, (char *)m.weight, n * 24, FM_BF16);
  for (int64_t i = 1; i < w->n_layers && m.n_e < 8; i++) {
    const fm_layer *l = &w->layer[i];
    m.e[m.n_e++] = (fm_experts){ .n_experts = 64, .top_k = 6, .hidden_size = D, .moe_intermediate_size = g->moe_intermediate_size,
      .gate = l->gate, .up = l->up, .down = l->down, .norm = l->post_norm, .eps = 1e-6f, .shared_gate = &l->mlp.gate,
      .shared_up = &l->mlp.up, .shared_down = &l->mlp.down };
  }
  double each = 3.0 * D * 1408 * (double)fm_dtype_size(w->layer[1].gate[0].dtype);
  snprintf(name, sizeof name, "experts, %d rows, %d of 64 chosen", (int)n, (int)active);
  c.generated = n <= 64;
  double s = time_op(experts_turn, &m, 16);
  row(name, s, n <= 64 ? each * (double)(active + 2) : 0, n > 64 ? 6.0 * D * 1408 * 8 * (double)n : 0);
  c.ops->release(c.dev, m.x), c.ops->release(c.dev, m.out), c.ops->release(c.dev, m.weight), c.ops->release(c.dev, m.id);
  free(id);
}

static void bench_product(const fm_weights *w, const char *what, int which, int64_t n) {
  product p = { .n = n, .x = room(n * 11264 * 4), .out = room(n * 102400 * 4) };
  char name[64];
  scatter_device(&c, (char *)p.x, n * 11264 * 4, FM_BF16);
  for (int64_t i = 1; i < w->n_layers && p.n_w < 8; i++)
    p.w[p.n_w++] = which == 0 ? w->layer[i].q : which == 1 ? w->layer[i].o : which == 2 ? w->layer[i].mlp.gate : which == 4 ? w->layer[i].router : w->head;
  p.norm = which == 1 ? NULL : (float *)(uintptr_t)w->layer[0].input_norm;
  c.generated = n <= 64;
  product_turn(&p, 0);
  wait();
  double s = time_op(product_turn, &p, 20), size = (double)mat_size(&p.w[0]);
  snprintf(name, sizeof name, "%s, %d rows", what, (int)n);
  row(name, s, n <= 64 ? size : 0, n > 64 ? 2.0 * (double)(p.w[0].rows * p.w[0].cols * n) : 0);
  c.ops->release(c.dev, p.x), c.ops->release(c.dev, p.out);
}

/* ---- the whole model ---- */

static double prompt(fm_net *net, int64_t n) {
  double best = 1e9;
  fm_error err;
  int32_t *ids = malloc((size_t)n * 4);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 7919 % VOCAB);
  for (int turn = 0; turn < 4; turn++) {
    fm_kv_seq seq = { 0 };
    fm_pass p;
    bool done = false;
    float *host;
    check(fm_kv_reserve(net->kv, &seq, 0, n, &err), &err);
    fm_seg seg = { .seq = &seq, .ids = ids, .n = n, .role = FM_PROMPT, .n_logits = 1 };
    double t = now();
    check(fm_pass_begin(&p, net, &seg, 1, false, NULL), &c.err);
    while (!done) check(fm_pass_layer(&p, &done), &c.err);
    check(fm_to_host(&c, &host, p.logits, 1, 16), &c.err);
    fm_pass_end(&p);
    t = now() - t;
    best = t < best ? t : best;
    fm_kv_drop(net->kv, &seq);
  }
  free(ids);
  return best;
}

static double decode(fm_net *net, int64_t batch, int64_t ctx) {
  fm_kv_seq *seq = calloc((size_t)batch, sizeof *seq);
  fm_seg *seg = calloc((size_t)batch, sizeof *seg);
  fm_draw_rule *rule = calloc((size_t)batch, sizeof *rule);
  int32_t *ids = malloc((size_t)batch * 4);
  fm_drawn *drawn = malloc((size_t)batch * sizeof *drawn);
  double took[40];
  fm_error err;
  for (int64_t i = 0; i < batch; i++) {
    check(fm_kv_reserve(net->kv, &seq[i], 0, ctx + 64, &err), &err);
    ids[i] = (int32_t)(i * 7919 % VOCAB);
  }
  for (int step = 0; step < 44; step++) {
    fm_pass p;
    bool done = false;
    for (int64_t i = 0; i < batch; i++) {
      seg[i] = (fm_seg){ .seq = &seq[i], .ids = &ids[i], .index = ctx + step, .n = 1, .role = FM_GENERATED, .n_logits = 1 };
      rule[i] = (fm_draw_rule){ .seed = 1, .index = ctx + step, .temperature = 1 };
    }
    double t = now();
    check(fm_pass_begin(&p, net, seg, batch, false, rule), &c.err);
    while (!done) check(fm_pass_layer(&p, &done), &c.err);
    check(c.ops->download(&c, drawn, p.drawn, batch * (int64_t)sizeof *drawn), &c.err);
    for (int64_t i = 0; i < batch; i++) ids[i] = drawn[i].id;
    fm_pass_end(&p);
    if (step >= 4) took[step - 4] = now() - t;
  }
  qsort(took, 40, sizeof *took, by_size);
  for (int64_t i = 0; i < batch; i++) fm_kv_drop(net->kv, &seq[i]);
  free(seq), free(seg), free(rule), free(ids), free(drawn);
  return took[20];
}

static void bench_all_attention(void) {
  bench_attention(16, 64, 8192, FM_BF16);
  bench_attention(16, 1, 1024, FM_BF16);
  bench_attention(16, 64, 1024, FM_BF16);
  bench_attention(128, 64, 8192, FM_BF16);
  bench_attention(16, 64, 8192, FM_F8_E4M3);
  bench_attention(16, 1, 1024, FM_F8_E4M3);
  bench_gqa(1, 1, 1024);
  bench_gqa(64, 1, 1024);
  bench_gqa(64, 1, 8192);
  bench_gqa(1, 4096, 4096);
}

static void bench_kernels(const fm_weights *w, const fm_config *g) {
  bench_all_attention();
  bench_experts(w, g, 1);
  bench_experts(w, g, 8);
  bench_experts(w, g, 64);
  bench_experts(w, g, 4096);
  bench_product(w, "q", 0, 1);
  bench_product(w, "o", 1, 1);
  bench_product(w, "q", 0, 64);
  bench_product(w, "q", 0, 4096);
  bench_product(w, "router", 4, 4096);
  bench_product(w, "head", 3, 1);
  bench_product(w, "head", 3, 64);
}

int main(int argc, char **argv) {
  bool f8 = argc > 1 && strcmp(argv[1], "f8") == 0;
  int layers = argc > 2 ? atoi(argv[2]) : MAX_LAYERS;
  fm_config g = v2_lite();
  fm_weights w = { 0 };
  fm_kv *kv;
  fm_net net;
  fm_error err;
  check(fm_ctx_open(&c, "cuda", 0, &err), &err);
  check(fm_ctx_reserve(&c, (int64_t)5 << 30, &err), &err);
  pile b = { .dtype = f8 ? FM_F8_E4M3 : FM_BF16, .c = &c };
  c.arithmetic = b.dtype;
  ceilings();
  if (argc > 1 && strcmp(argv[1], "mla") == 0) {
    bench_all_attention();
    return 0;
  }
  build(&w, &b, &g, 0.88 + (f8 ? 0.58 : 1.16) * layers);
  printf("V2-Lite's shapes, %s, %d layers, %.1f GB\n", fm_dtype_name(b.dtype), (int)w.n_layers, (double)b.size * 1e-9);
  bool kernels = argc <= 3;
  if (kernels) bench_kernels(&w, &g);
  c.ops->release(c.dev, block);
  int64_t n_pages = 64 * (8192 / FM_PAGE + 2);
  check(fm_kv_new(&kv, &c, &g, FM_BF16, false, n_pages, &err), &err);
  scatter_device(&c, kv->part[0].data, kv->page_size * n_pages, FM_BF16);
  check(fm_net_init(&net, &c, &g, &w, kv, 8192 + 64, VOCAB, &err), &err);
  double active = (double)touched(&w, &g, true), params = (double)touched(&w, &g, false) / (f8 ? 1 : 2);
  for (int64_t n = 512; n <= 4096; n *= 8) {
    double t = prompt(&net, n), flop = 2 * params * (double)n + (double)w.n_layers * 16 * (double)n * (double)n * 320;
    printf("  prompt of %-5d %8.2f ms %9.0f tokens/s, floor %.2f ms\n", (int)n, t * 1e3, (double)n / t, flop / peak * 1e3);
  }
  for (int64_t batch = 1; batch <= 64; batch *= 8)
    for (int64_t ctx = 1024; ctx <= 8192; ctx *= 8) {
      double t = decode(&net, batch, ctx);
      // with many rows every expert is read
      double bytes = batch == 1 ? active : active + (batch == 8 ? 34.0 - 6 : 58.0) * 3 * D * 1408 * (f8 ? 1 : 2) * (double)(w.n_layers - 1);
      bytes += (double)(batch * ctx * 576 * 2 * w.n_layers);
      printf("  decode %2d x %-5d %8.3f ms %9.1f tokens/s, floor %.3f ms\n", (int)batch, (int)ctx, t * 1e3, (double)batch / t,
             bytes / copy_rate * 1e3);
    }
  for (int loose = 0; loose < 2; loose++) {        // what the same bits in any company cost
    c.loose = loose;
    printf("  %-13s prompt of 16 %.2f ms, of 512 %.2f ms; decode 8 x 1024 %.2f ms, 64 x 1024 %.2f ms\n",
           loose ? "loose:" : "deterministic:", prompt(&net, 16) * 1e3, prompt(&net, 512) * 1e3, decode(&net, 8, 1024) * 1e3,
           decode(&net, 64, 1024) * 1e3);
  }
  return 0;
}
