/*
** experts_test.c - the CPU's router and experts against plain loops in double precision and recorded choices, fused forms
** against their parts, and the same bits for any batch and any number of threads.
*/
#include "op_test.h"

/* ---- router ---- */

/* Section 3.8 of the V3 routing with groups, computed by hand. */
static void test_router_golden(fm_ctx *c) {
  const float logits[8] = { 0.5f, -1, 2, 0.1f, -0.3f, 1.2f, 0, 0.9f };
  const float bias[8] = { 0, 0.4f, -0.2f, 0, 0.3f, -0.1f, 0, 0.05f };
  fm_route r = { .n_experts = 8, .top_k = 3, .n_group = 4, .topk_group = 2, .sigmoid = true, .group_top2 = true,
                 .norm_topk_prob = true, .routed_scaling_factor = 2.5f };
  int32_t id[3];
  float w[3];
  RUN(c, fm_op_route(c, id, w, logits, bias, &r, 1));
  OK(id[0] == 1 && id[1] == 4 && id[2] == 5, "the router's golden picks experts 1, 4, 5");
  OK(fabsf(w[0] - 0.459564f) < 1e-6f && fabsf(w[1] - 0.727188f) < 1e-6f && fabsf(w[2] - 1.313247f) < 2e-6f,
     "the router's golden weights are 0.459564, 0.727188, 1.313247");
}

typedef struct pick { float c; int32_t id; } pick;

static int best_first(const void *a, const void *b) {
  const pick *x = a, *y = b;
  if (x->c != y->c) return x->c < y->c ? 1 : -1;
  return x->id - y->id;
}
static int id_first(const void *a, const void *b) { return ((const pick *)a)->id - ((const pick *)b)->id; }

/* Scores in double rounded to f32 as the contract says, selection by sorting. */
static bool ref_route(const fm_route *r, const float *z, const float *bias, const int32_t *id, const float *w) {
  pick e[64], g[64], in[64];
  double sum = 0, max = -INFINITY, s[64], norm = 0;
  int64_t size = r->n_experts / r->n_group, n = 0;
  for (int64_t i = 0; i < r->n_experts; i++) max = fmax(max, z[i]);
  for (int64_t i = 0; i < r->n_experts; i++) sum += exp(z[i] - max);
  for (int64_t i = 0; i < r->n_experts; i++) {
    s[i] = (float)(r->sigmoid ? 1 / (1 + exp(-(double)z[i])) : exp(z[i] - max) / sum);
    e[i] = (pick){ (float)s[i] + (bias ? bias[i] : 0), (int32_t)i };
  }
  for (int64_t k = 0; k < r->n_group; k++) {
    memcpy(in, e + k * size, (size_t)size * sizeof *in);
    qsort(in, (size_t)size, sizeof *in, best_first);
    g[k] = (pick){ r->group_top2 && size > 1 ? in[0].c + in[1].c : in[0].c, (int32_t)k };
  }
  qsort(g, (size_t)r->n_group, sizeof *g, best_first);
  for (int64_t k = 0; k < (r->n_group > 1 ? r->topk_group : 1); k++)
    for (int64_t i = 0; i < size; i++) in[n++] = e[g[k].id * size + i];
  qsort(in, (size_t)n, sizeof *in, best_first);
  qsort(in, (size_t)r->top_k, sizeof *in, id_first);
  for (int64_t k = 0; k < r->top_k; k++) norm += s[in[k].id];
  for (int64_t k = 0; k < r->top_k; k++) {
    double want = s[in[k].id] / (r->norm_topk_prob ? norm + 1e-20 : 1) * (double)r->routed_scaling_factor;
    if (id[k] != in[k].id || !(fabs(want - w[k]) <= 1e-6 * fabs(want))) return false;
  }
  return true;
}

static void test_router(fm_ctx *one, fm_ctx *three) {
  bool good = true, equal = true;
  for (int t = 0; t < 200; t++) {
    int64_t n = between(1, 30), groups = between(1, 4), size = between(2, 12);
    fm_route r = { .n_experts = groups * size, .n_group = groups, .topk_group = between(1, groups),
                   .sigmoid = draw() % 2, .group_top2 = draw() % 2, .norm_topk_prob = draw() % 2,
                   .routed_scaling_factor = 1 + unit() / 2 };
    r.top_k = between(1, groups > 1 ? r.topk_group * size : size);
    float *z = floats(n * r.n_experts), *bias = floats(r.n_experts);
    float *w = poison(n * r.top_k), *v = poison(n * r.top_k);
    int32_t *id = need((size_t)(n * r.top_k) * sizeof *id), *other = need((size_t)(n * r.top_k) * sizeof *id);
    // few different logits: ties are common, and the bias is negative as often as not
    for (int64_t i = 0; t % 3 == 0 && i < n * r.n_experts; i++) z[i] = (float)between(-1, 1);
    for (int64_t i = 0; t % 3 == 0 && i < r.n_experts; i++) bias[i] = (float)between(-2, 2);
    const float *b = draw() % 2 ? bias : NULL;
    RUN(one, fm_op_route(one, id, w, z, b, &r, n));
    RUN(three, fm_op_route(three, other, v, z, b, &r, n));
    for (int64_t i = 0; i < n; i++)
      good = good && ref_route(&r, z + i * r.n_experts, b, id + i * r.top_k, w + i * r.top_k);
    equal = equal && same(w, v, n * r.top_k) && !memcmp(id, other, (size_t)(n * r.top_k) * sizeof *id);
    free(z), free(bias), free(w), free(v), free(id), free(other);
  }
  OK(good, "route picks what sorting picks: groups, ties to the lower id, increasing ids, weights within 1e-6");
  OK(equal, "route gives the same bits with three threads");
  float z[6] = { NAN, NAN, NAN, NAN, NAN, NAN }, w[3];
  int32_t id[3] = { -1, -1, -1 };
  fm_route r = { .n_experts = 6, .top_k = 3, .n_group = 3, .topk_group = 1, .routed_scaling_factor = 1 };
  RUN(one, fm_op_route(one, id, w, z, NULL, &r, 1));
  OK(id[0] >= 0 && id[0] < id[1] && id[1] < id[2] && id[2] < 6 && isnan(w[0]),
     "route names valid experts for a row of NaN, with weights of NaN");
}

/* ---- experts ---- */

static double ref_experts(const mixture *m, const float *x, const int32_t *id, const float *w, const float *was,
                          const float *got) {
  int64_t d = m->e.hidden_size, width = m->e.moe_intermediate_size;
  double *sum = need((size_t)d * sizeof *sum), *h = need((size_t)width * sizeof *h), worst = 0;
  for (int64_t i = 0; i < d; i++) sum[i] = was[i];
  for (int64_t k = 0; k < m->e.top_k; k++) {
    const float *gate = m->w[id[k]].value, *up = m->w[m->e.n_experts + id[k]].value;
    const float *down = m->w[2 * m->e.n_experts + id[k]].value;
    for (int64_t r = 0; r < width; r++) {
      double g = 0, u = 0;
      for (int64_t i = 0; i < d; i++) g += (double)gate[r * d + i] * x[i], u += (double)up[r * d + i] * x[i];
      h[r] = g / (1 + exp(-g)) * u;
    }
    for (int64_t i = 0; i < d; i++)
      for (int64_t r = 0; r < width; r++) sum[i] += w[k] * h[r] * down[i * width + r];
  }
  for (int64_t i = 0; i < d; i++) {
    // sums of products of sums: the terms grow to tens, so does what rounding leaves
    double off = fabs(sum[i] - got[i]) / (10 + fabs(sum[i]));
    worst = off <= worst ? worst : off;
  }
  free(sum), free(h);
  return worst;
}

static void choose_ids(int32_t *id, int64_t n, int64_t k, int64_t n_experts, bool crowd) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t s = 0, e = crowd ? 0 : between(0, n_experts - k); s < k; s++) id[i * k + s] = (int32_t)(e + s);
}

static void test_experts(fm_ctx *one, fm_ctx *three) {
  static const fm_dtype types[4] = { FM_F32, FM_BF16, FM_F16, FM_F8_E4M3 };
  double worst = 0;
  bool alone = true, threads = true;
  for (int t = 0; t < 24; t++) {
    int64_t n = t % 3 ? between(1, 40) : 1, n_experts = between(1, 9), k = between(1, n_experts);
    int64_t d = between(1, 150), width = between(1, 140);
    mixture m = new_mixture(n_experts, k, d, width, types[t % 4]);
    float *x = floats(n * d), *w = floats(n * k), *was = floats(n * d);
    float *a = poison(n * d), *b = poison(n * d), *c = poison(n * d);
    int32_t *id = need((size_t)(n * k) * sizeof *id);
    choose_ids(id, n, k, n_experts, t % 5 == 4);     // all tokens to the same experts; else some stay empty
    for (int64_t i = 0; i < n * d; i++) a[i] = b[i] = c[i] = was[i];
    RUN(one, fm_op_experts(one, a, x, id, w, &m.e, n));
    RUN(three, fm_op_experts(three, b, x, id, w, &m.e, n));
    for (int64_t i = 0; i < n; i++) {
      RUN(one, fm_op_experts(one, c + i * d, x + i * d, id + i * k, w + i * k, &m.e, 1));
      worst = fmax(worst, ref_experts(&m, x + i * d, id + i * k, w + i * k, was + i * d, a + i * d));
    }
    threads = threads && same(a, b, n * d);
    alone = alone && same(a, c, n * d);
    free(x), free(w), free(was), free(a), free(b), free(c), free(id);
    drop_mixture(&m);
  }
  OK(worst < TOL, "experts equal the double-precision loops within 1e-5 of their terms");
  OK(alone, "experts give the same bits for rows together and alone");
  OK(threads, "experts give the same bits with three threads");
}

/* More rows than the scratch of one piece holds. */
static void test_many_rows(fm_ctx *c) {
  int64_t n = 140000, k = 8, d = 8, width = 4;
  mixture m = new_mixture(8, k, d, width, FM_BF16);
  float *x = floats(n * d), *w = floats(n * k), *out = need((size_t)(n * d) * sizeof *out), row[8];
  int32_t *id = need((size_t)(n * k) * sizeof *id);
  bool good = true;
  for (int64_t i = 0; i < n * d; i++) out[i] = 1;
  choose_ids(id, n, k, 8, false);
  RUN(c, fm_op_experts(c, out, x, id, w, &m.e, n));
  for (int64_t i = 0; i < n; i += 997) {
    for (int64_t j = 0; j < d; j++) row[j] = 1;
    RUN(c, fm_op_experts(c, row, x + i * d, id + i * k, w + i * k, &m.e, 1));
    good = good && same(row, out + i * d, d);
  }
  OK(good, "experts give the same bits when the rows are done in pieces");
  OK(fm_arena_size(&c->arena) < (int64_t)96 << 20, "experts keep their scratch near 64 MiB");
  free(x), free(w), free(out), free(id);
  drop_mixture(&m);
}

/* What a product or a mixture takes along must be what its parts make one after the other, to the bit. */
static void test_fused(fm_ctx *c) {
  bool normed = true, gated = true, mixed = true, stored = true;
  for (int t = 0; t < 12; t++) {
    int64_t n = between(1, 20), k = between(1, 200), rows = between(1, 90), ld = k + between(0, 3);
    weight w = new_weight(rows, k, t % 2 ? FM_BF16 : FM_F32);
    float *x = floats(n * ld), *up = floats(n * ld), *norm = floats(k), *h = poison(n * k);
    float *a = poison(2 * n * rows), *b = poison(n * rows);
    fm_mm both[2] = { { .w = &w.m, .x = x, .ldx = ld, .norm = norm, .eps = 1e-6f, .out = a, .ldo = rows, .n = n },
                      { .w = &w.m, .x = x, .ldx = ld, .up = up, .out = a + n * rows, .ldo = rows, .n = n } };
    fm_mm plain = { .w = &w.m, .x = h, .ldx = k, .out = b, .ldo = rows, .n = n };
    RUN(c, fm_op_matmul(c, both, 2));
    RUN(c, fm_op_rms_norm(c, h, k, x, ld, norm, n, k, 1e-6f));
    RUN(c, fm_op_matmul(c, &plain, 1));
    normed = normed && same(a, b, n * rows);
    RUN(c, fm_cpu_silu_mul(c, h, k, x, up, ld, n, k));
    RUN(c, fm_op_matmul(c, &plain, 1));
    gated = gated && same(a + n * rows, b, n * rows);
    free(x), free(up), free(norm), free(h), free(a), free(b), drop_weight(&w);
  }
  for (int t = 0; t < 6; t++) {
    int64_t n = between(1, 20), d = between(1, 90), width = between(1, 70), wide = between(1, 150);
    mixture m = new_mixture(4, 2, d, width, FM_BF16);
    weight g = new_weight(wide, d, FM_BF16), u = new_weight(wide, d, FM_BF16), o = new_weight(d, wide, FM_BF16);
    float *x = floats(n * d), *norm = floats(d), *w = floats(2 * n), *h = poison(n * d);
    float *a = floats(n * d), *b = need((size_t)(n * d) * sizeof *b), *gu = poison(2 * n * wide);
    int32_t *id = need((size_t)(2 * n) * sizeof *id);
    choose_ids(id, n, 2, 4, false);
    memcpy(b, a, (size_t)(n * d) * sizeof *b);
    fm_experts whole = m.e;
    whole.norm = norm, whole.eps = 1e-6f;
    whole.shared_gate = &g.m, whole.shared_up = &u.m, whole.shared_down = &o.m;
    RUN(c, fm_op_experts(c, a, x, id, w, &whole, n));
    RUN(c, fm_op_rms_norm(c, h, d, x, d, norm, n, d, 1e-6f));
    RUN(c, fm_op_experts(c, b, h, id, w, &m.e, n));
    fm_mm in[2] = { { .w = &g.m, .x = h, .ldx = d, .out = gu, .ldo = wide, .n = n },
                    { .w = &u.m, .x = h, .ldx = d, .out = gu + n * wide, .ldo = wide, .n = n } };
    fm_mm down = { .w = &o.m, .x = gu, .ldx = wide, .up = gu + n * wide, .out = b, .ldo = d, .n = n, .add = true };
    RUN(c, fm_op_matmul(c, in, 2));
    RUN(c, fm_op_matmul(c, &down, 1));
    mixed = mixed && same(a, b, n * d);
    free(x), free(norm), free(w), free(h), free(a), free(b), free(gu), free(id);
    drop_mixture(&m), drop_weight(&g), drop_weight(&u), drop_weight(&o);
  }
  for (int t = 0; t < 6; t++) {
    int64_t n = between(1, 90), heads = between(1, 5), nope = between(1, 20), dim = 2 * between(1, 8), rank = between(1, 60);
    int64_t width = rank + dim, qk = nope + dim, index = between(0, 70), size = n * heads * qk;
    fm_dtype kept = t % 2 ? FM_F8_E4M3 : FM_F32;
    paged p = new_cache(index + n, width, kept, rank), z = new_cache(index + n, width, kept, rank);
    float *q = floats(size), *r = need((size_t)size * sizeof *r), *kv = floats(n * width), *norm = floats(rank);
    float *cs = floats(200 * dim / 2), *sn = floats(200 * dim / 2), *old = need((size_t)(n * width) * sizeof *old);
    int32_t pos[90];
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)(index + i);
    memcpy(r, q, (size_t)size * sizeof *q), memcpy(old, kv, (size_t)(n * width) * sizeof *kv);
    fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = dim, .interleaved = t % 2 };
    fm_span s = { .n = n, .index = index, .pages = p.page }, s2 = s;
    s2.pages = z.page;
    fm_attn a = { .cache = &p.k, .span = &s, .n_spans = 1, .ldq = heads * qk, .n_heads = heads, .nope = nope,
                  .rope = dim, .rank = rank };
    RUN(c, fm_op_mla_store(c, &a, q, kv, norm, 1e-6f, n, &turn));
    RUN(c, fm_op_rms_norm(c, old, width, old, width, norm, n, rank, 1e-6f));
    RUN(c, fm_op_rope(c, r + nope, heads * qk, heads, qk, n, &turn));
    RUN(c, fm_op_rope(c, old + rank, width, 1, dim, n, &turn));
    RUN(c, fm_op_cache_store(c, &z.k, &s2, 1, old, width));
    stored = stored && same(q, r, size) && !memcmp(p.k.base, z.k.base, (size_t)(p.k.page_stride * (p.n_pages + 1)));
    free(q), free(r), free(kv), free(norm), free(cs), free(sn), free(old), drop_cache(&p), drop_cache(&z);
  }
  OK(normed, "a product that norms its input equals the norm and the product after it, to the bit");
  OK(gated, "a product that gates its input equals silu_mul and the product after it, to the bit");
  OK(mixed, "experts with norm and shared expert equal their parts, to the bit");
  OK(stored, "mla_store equals norm, rope and cache_store, to the bit");
}

static void test(fm_ctx *one, fm_ctx *three, bool plain) {
  test_router_golden(one);
  test_router(one, three);
  test_experts(one, three);
  test_fused(three);
  if (!plain) test_many_rows(three);
}

int main(void) { return run_op_test(test); }
