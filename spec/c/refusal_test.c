/*
** refusal_test.c - what operations say when memory runs out, when arguments do not fit, and when a device is not there.
*/
#include "op_test.h"

static int64_t left = -1, alive;         /* allocations until failure (-1: never), blocks held */

static void *stingy(void *user, void *p, size_t size) {
  (void)user;
  if (size == 0) {
    alive -= p != NULL;
    free(p);
    return NULL;
  }
  if (left == 0) return NULL;
  if (left > 0) left--;
  alive += p == NULL;
  return realloc(p, size);
}

/* Calls each operation that takes scratch, allocations failing after `allow`. True when all got what they wanted. */
static bool hungry_call(int op, const scene *mla, const scene *gqa, const mixture *m, int64_t allow, bool *good) {
  fm_ctx c;
  float x[4] = { 1, 2, 3, 4 }, out[4] = { 0 }, w[2] = { 1, 1 }, big[64 * 11 * 80];
  int32_t id[2] = { 0, 1 };
  fm_route r = { .n_experts = 4, .top_k = 2, .n_group = 1, .topk_group = 1, .routed_scaling_factor = 1 };
  fm_attn a = op == 2 ? gqa->a : mla->a;
  fm_error err = { 0 };
  left = op < 0 ? allow : -1;
  fm_status s = fm_ctx_open(&c, "cpu", 2, &err);
  left = allow;
  a.out = big;
  if (op == 0) s = fm_op_mla_prompt(&c, &a);
  if (op == 1) s = fm_op_mla_decode(&c, &a);
  if (op == 2) s = fm_op_gqa(&c, &a);
  if (op == 3) s = fm_op_route(&c, id, w, x, NULL, &r, 1);
  if (op == 4) s = fm_op_experts(&c, out, x, id, w, &m->e, 1);
  left = -1;
  if (s != FM_OK && s != FM_EMEMORY) *good = false;
  if (s == FM_EMEMORY && !(op < 0 ? err : c.err).message[0]) *good = false;
  if (op >= 0 || s == FM_OK) fm_ctx_close(&c);
  return s == FM_OK;
}

static void test_no_memory(fm_ctx *c) {
  scene mla, gqa;
  mixture m = new_mixture(2, 2, 4, 3, FM_F32);
  bool good = true, failed = true;
  new_scene(c, &mla, true, 3, 5, 0);
  new_scene(c, &gqa, false, 3, 5, 0);
  fm_set_allocator(stingy, NULL);
  for (int op = -1; op < 5; op++) {
    int64_t allow = 0;
    while (allow < 100 && !hungry_call(op, &mla, &gqa, &m, allow, &good)) allow++;
    failed = failed && allow > 0 && allow < 100;
  }
  fm_set_allocator(NULL, NULL);
  OK(good && failed, "every failing allocation gives FM_EMEMORY with a message");
  OK(alive == 0, "failing allocations leak nothing");
  drop_scene(&mla), drop_scene(&gqa), drop_mixture(&m);
}

static void test_refusals(fm_ctx *c) {
  scene s;
  fm_attn a;
  float x[8] = { 0 };
  int32_t id[2] = { 0, 7 };
  fm_route r = { .n_experts = 4, .top_k = 5, .n_group = 1 };
  mixture m = new_mixture(2, 2, 2, 2, FM_F32);
  weight w = new_weight(2, 2, FM_F8_E4M3);
  fm_mat no_scale = w.m, ids = w.m;
  no_scale.scale = NULL, ids.dtype = FM_I32;
  fm_mm mm[3] = { { .w = &no_scale, .x = x, .ldx = 2, .out = x + 4, .ldo = 2, .n = 1 },
                  { .w = &ids, .x = x, .ldx = 2, .out = x + 4, .ldo = 2, .n = 1 },
                  { .w = &w.m, .x = x, .ldx = 1, .out = x + 4, .ldo = 2, .n = 2 } };
  for (int i = 0; i < 3; i++) OK(fm_op_matmul(c, mm + i, 1) == FM_EINVAL, "matmul refuses weights that do not fit");
  OK(fm_op_embed(c, x, &w.m, id, 2) == FM_EINVAL, "embed refuses an id beyond the table");
  OK(fm_op_rms_norm(c, x, 1, x, 2, x, 1, 2, 0) == FM_EINVAL, "rms_norm refuses rows that overlap");
  fm_rope odd = { .pos = id, .cos = x, .sin = x, .dim = 3, .interleaved = true };
  OK(fm_op_rope(c, x, 8, 1, 3, 1, &odd) == FM_EINVAL, "rope refuses an odd dim");
  OK(fm_op_route(c, id, x, x, NULL, &r, 1) == FM_EINVAL, "route refuses more choices than experts");
  OK(fm_op_experts(c, x, x + 4, id, x, &m.e, 1) == FM_EINVAL && strstr(c->err.message, "7"),
     "experts refuse an id that is none, and name it");
  new_scene(c, &s, true, 0, 3, 0);
  a = s.a, a.out = x, a.rank++;
  OK(fm_op_mla_prompt(c, &a) == FM_EINVAL && fm_op_mla_decode(c, &a) == FM_EINVAL,
     "attention refuses a kv_b that does not fit its heads");
  a = s.a, a.out = x, s.span.n = -1;
  OK(fm_op_mla_decode(c, &a) == FM_EINVAL, "attention refuses a span of negative length");
  fm_cache k8 = *a.cache;
  k8.dtype = FM_F8_E4M3, k8.latent = a.rank + 1;
  a.cache = &k8, s.span.n = 3;
  OK(fm_op_mla_decode(c, &a) == FM_EINVAL && strstr(c->err.message, "kv_b"),
     "attention refuses an f8 cache that is cut elsewhere than the latent");
  drop_scene(&s), drop_mixture(&m), drop_weight(&w);
}

static void test_devices(void) {
  fm_ctx c;
  fm_error err;
  const fm_backend *b = NULL;
  int index;
  OK(fm_backend_find(&b, &index, "none", &err) == FM_EDEVICE && !b &&
     strstr(err.message, "none: no fathom_none.so beside"),
     "a device without a library is refused by the file that is missing");
  OK(fm_ctx_open(&c, "../cuda", 1, &err) == FM_EDEVICE && strstr(err.message, "is no device"),
     "a device's name is a word, never a path");
  OK(fm_ctx_open(&c, "cuda:x", 1, &err) == FM_EDEVICE, "a device's index is a number");
  setenv("FATHOM_DEVICE", "cpu", 1);
  OK(fm_ctx_open(&c, "auto", 1, &err) == FM_OK && strcmp(c.ops->name, "cpu") == 0, "\"auto\" is what FATHOM_DEVICE says");
  int64_t total = 0, free_bytes = 0;
  OK(c.ops->memory(c.dev, &total, &free_bytes) == FM_OK && total > 0 && free_bytes <= total,
     "the device tells its memory");
  fm_ctx_close(&c);
}

static void test(fm_ctx *one, fm_ctx *three, bool plain) {
  (void)three;
  if (!plain) return;
  test_no_memory(one);
  test_refusals(one);
  test_devices();
}

int main(void) { return run_op_test(test); }
