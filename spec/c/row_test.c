/*
** row_test.c - what the CPU does with one row at a time (norm, rope, SiLU, storing into the cache) against plain loops in
** double precision, and the same bits for any number of threads and any cut.
*/
#include "op_test.h"

static void test_norm(fm_ctx *one, fm_ctx *three) {
  double worst = 0;
  bool equal = true;
  for (int t = 0; t < 20; t++) {
    int64_t n = between(1, 60), dim = between(1, 700), ldx = dim + between(0, 5), ldo = dim + between(0, 5);
    float *x = floats(n * ldx), *w = floats(dim), *out = poison(n * ldo), *other = poison(n * ldo);
    RUN(one, fm_op_rms_norm(one, out, ldo, x, ldx, w, n, dim, 1e-6f));
    RUN(three, fm_op_rms_norm(three, other, ldo, x, ldx, w, n, dim, 1e-6f));
    for (int64_t i = 0; i < n; i++) {
      double sum = 0;
      equal = equal && same(out + i * ldo, other + i * ldo, dim);
      for (int64_t d = 0; d < dim; d++) sum += (double)x[i * ldx + d] * x[i * ldx + d];
      for (int64_t d = 0; d < dim; d++) {
        double want = w[d] * (x[i * ldx + d] / sqrt(sum / (double)dim + 1e-6));
        double off = fabs(want - out[i * ldo + d]) / (fabs(want) + 1e-3);
        worst = off <= worst ? worst : off;
      }
    }
    RUN(one, fm_op_rms_norm(one, x, ldx, x, ldx, w, n, dim, 1e-6f));
    for (int64_t i = 0; i < n; i++) equal = equal && same(x + i * ldx, out + i * ldo, dim);
    free(x), free(w), free(out), free(other);
  }
  // a mean of at most 700 squares of one sign, then four roundings
  OK(worst < 2e-6, "rms_norm equals the double-precision loop within 2e-6");
  OK(equal, "rms_norm gives the same bits in place and with three threads");
}

static double ref_rope(float *was, const float *x, int64_t dim, const float *cs, const float *sn, bool inter) {
  double worst = 0;
  for (int64_t i = 0; i < dim / 2; i++) {
    int64_t a = inter ? 2 * i : i, b = inter ? 2 * i + 1 : i + dim / 2;
    double ya = (double)was[a] * cs[i] - (double)was[b] * sn[i], yb = (double)was[a] * sn[i] + (double)was[b] * cs[i];
    double off = fmax(fabs(ya - x[a]), fabs(yb - x[b]));
    worst = off <= worst ? worst : off;
  }
  return worst;
}

static void test_rope(fm_ctx *c) {
  double worst = 0;
  bool kept = true;
  for (int t = 0; t < 20; t++) {
    int64_t n = between(1, 50), heads = between(1, 9), dim = 2 * between(1, 40), stride = dim + between(0, 9);
    int64_t ldx = heads * stride + between(0, 4);
    float *x = floats(n * ldx), *was = need((size_t)(n * ldx) * sizeof *was), *cs = floats(50 * dim / 2);
    float *sn = floats(50 * dim / 2);
    int32_t pos[50];
    for (int64_t i = 0; i < n; i++) pos[i] = (int32_t)between(0, 49);
    memcpy(was, x, (size_t)(n * ldx) * sizeof *x);
    fm_rope turn = { .pos = pos, .cos = cs, .sin = sn, .dim = dim, .interleaved = t % 2 };
    RUN(c, fm_op_rope(c, x, ldx, heads, stride, n, &turn));
    for (int64_t i = 0; i < n; i++)
      for (int64_t h = 0; h < heads; h++) {
        int64_t at = i * ldx + h * stride;
        worst = fmax(worst, ref_rope(was + at, x + at, dim, cs + pos[i] * (dim / 2), sn + pos[i] * (dim / 2), t % 2));
        kept = kept && same(x + at + dim, was + at + dim, stride - dim);
      }
    free(x), free(was), free(cs), free(sn);
  }
  OK(worst < 3e-7, "rope turns interleaved pairs and halves, within three roundings of values up to two");
  OK(kept, "rope leaves what stands between the heads alone");
}

static void test_silu(fm_ctx *one, fm_ctx *three) {
  double worst = 0;
  bool equal = true;
  static const float edge[] = { 0, -0.0f, 20, -20, 90, -90, 200, -200, 3e38f, -3e38f };
  for (int t = 0; t < 10; t++) {
    int64_t n = between(1, 40), dim = between(10, 900), ld = dim + between(0, 3);
    float *g = floats(n * ld), *u = floats(n * ld), *out = poison(n * dim);
    for (int64_t i = 0; i < n * ld; i++) g[i] *= 10;
    memcpy(g, edge, sizeof edge);
    RUN(three, fm_cpu_silu_mul(three, out, dim, g, u, ld, n, dim));
    for (int64_t i = 0; i < n * dim; i++) {
      double z = g[i / dim * ld + i % dim], want = z / (1 + exp(-z)) * u[i / dim * ld + i % dim];
      double off = fabs(want - out[i]) / (fabs(want) + 1e-30);
      worst = off <= worst ? worst : off;
    }
    for (int64_t i = 0; i < n; i++) {    // in place, row by row, as the feed-forward does
      RUN(one, fm_cpu_silu_mul(one, g + i * ld, ld, g + i * ld, u + i * ld, ld, 1, dim));
      equal = equal && same(g + i * ld, out + i * dim, dim);
    }
    free(g), free(u), free(out);
  }
  OK(worst < 6e-7, "silu_mul is within 6e-7 (exp to 2e-7, four roundings), at the far ends too");
  OK(equal, "silu_mul gives the same bits in place, row by row and with three threads");
}

static void test_store(fm_ctx *c) {
  bool good = true, clean = true;
  for (int t = 0; t < 8; t++) {
    int64_t width = between(1, 300), n = between(1, 150), index = between(0, 100);
    fm_dtype type = t % 2 ? FM_BF16 : FM_F32;
    paged p = new_cache(index + n, width, type, 0);
    fm_span s = { .row = 0, .n = n, .index = index, .pages = p.page };
    RUN(c, fm_op_cache_store(c, &p.k, &s, 1, p.rows, width));
    for (int64_t j = 0; j < p.n_pages * FM_PAGE; j++)
      for (int64_t i = 0; i < width; i++) {
        const char *at = p.k.base + p.page[j / FM_PAGE] * p.k.page_stride +
                         (j % FM_PAGE * width + i) * fm_dtype_size(type);
        float got, want = j < index || j >= index + n ? NAN : p.rows[(j - index) * width + i];
        fm_to_f32(&got, at, type, 1);
        if (isnan(want)) clean = clean && isnan(got);
        else good = good && got == (type == FM_F32 ? want : fm_bf16_to_f32(fm_f32_to_bf16(want)));
      }
    drop_cache(&p);
  }
  OK(good, "cache_store keeps f32 exactly and rounds to bf16");
  OK(clean, "cache_store writes nothing else");
}

/* f8 rows: the bytes stand where the published layout has them, a row is read back as round8 has it, nothing else is written,
   and what is not finite stays so. */
static void test_store8(fm_ctx *c) {
  bool good = true, clean = true, lost = false;
  OK(fm_cache_row_size(FM_F8_E4M3, 576, 512) == 656, "an f8 cache row of 512 + 64 is 656 bytes");
  for (int t = 0; t < 12; t++) {
    int64_t latent = t ? between(1, 300) : 512, width = latent + (t ? 2 * between(0, 40) : 64), n = between(1, 90), index = between(0, 100);
    int64_t scales = (latent + 3) / 4 * 4, rest = scales + (latent + 127) / 128 * 4, size = (rest + 2 * (width - latent) + 3) / 4 * 4;
    paged p = new_cache(index + n, width, FM_F8_E4M3, latent);
    for (int64_t i = 0; i < n * width; i++) p.rows[i] *= ldexpf(1, (int)between(-20, 9));
    if (t % 3 == 1) p.rows[between(0, latent - 1)] = t % 2 ? NAN : INFINITY;
    for (int64_t i = 0; t % 3 == 2 && i < latent; i++) p.rows[i] = 0;
    fm_span s = { .n = n, .index = index, .pages = p.page };
    RUN(c, fm_op_cache_store(c, &p.k, &s, 1, p.rows, width));
    bool odd = t % 3 == 1;
    for (int64_t j = 0; j < p.n_pages * FM_PAGE; j++) {
      const char *at = p.k.base + p.page[j / FM_PAGE] * p.k.page_stride + j % FM_PAGE * size;
      float *want = p.rows + (j - index) * width, got, by;
      bool mine = j >= index && j < index + n;
      for (int64_t i = 0; !mine && i < size; i++) clean = clean && at[i] == (char)0xff;
      if (!mine) continue;
      if (!(odd && j == index)) round8(want, width, latent);
      for (int64_t i = 0; i < width; i++) {
        memcpy(&by, at + scales + i / 128 * 4, 4);
        if (i < latent) got = fm_f8_to_f32((uint8_t)at[i]) * by;
        else fm_to_f32(&got, at + rest + 2 * (i - latent), FM_BF16, 1);
        if (odd && j == index) lost = lost || (!isfinite(want[i]) && isfinite(got));
        else good = good && got == want[i];
      }
    }
    drop_cache(&p);
  }
  OK(good, "cache_store keeps f8 tiles with the least power of two that reaches them");
  OK(clean, "cache_store writes nothing beside f8 rows");
  OK(!lost, "what is not finite is not finite in an f8 cache");
}

static void test(fm_ctx *one, fm_ctx *three, bool plain) {
  (void)plain;
  test_norm(one, three);
  test_rope(three);
  test_silu(one, three);
  test_store(three);
  test_store8(three);
}

int main(void) { return run_op_test(test); }
