/*
** base_test.c - number formats for every bit pattern, the random numbers against published answers, sizes that
** overflow, the arena, JSON at its limits, and a host that has no memory left.
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/tensor.h"

static int failures;

static void check(bool good, const char *sentence) {
  printf("%s - %s\n", good ? "ok" : "not ok", sentence);
  failures += !good;
}

static uint32_t bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

/* ---- number formats ---- */

/* The value of a pattern by the definition of its format; NaN for NaN. */
static double by_definition(uint32_t p, int exp_bits, int frac_bits, int bias, bool has_inf) {
  int exp = (int)(p >> frac_bits) & ((1 << exp_bits) - 1), all = (1 << exp_bits) - 1;
  uint32_t frac = p & ((1u << frac_bits) - 1);
  double sign = p >> (exp_bits + frac_bits) & 1 ? -1 : 1;
  if (exp == all && has_inf) return frac ? (double)NAN : sign * (double)INFINITY;
  if (exp == all && frac == (1u << frac_bits) - 1) return (double)NAN;
  if (!exp) return sign * ldexp(frac, 1 - bias - frac_bits);
  return sign * ldexp((double)((1u << frac_bits) + frac), exp - bias - frac_bits);
}

static bool same(float got, double want) {
  if (isnan(want)) return isnan(got);
  return bits(got) == bits((float)want) && (double)got == want;
}

static void every_pattern(void) {
  bool f16 = true, bf16 = true, f8 = true, back16 = true, backb = true, back8 = true, bulk = true;
  for (uint32_t p = 0; p < 65536; p++) {
    float a = fm_f16_to_f32((uint16_t)p), b = fm_bf16_to_f32((uint16_t)p), out;
    uint16_t h = (uint16_t)p;
    f16 &= same(a, by_definition(p, 5, 10, 15, true));
    bf16 &= same(b, by_definition(p, 8, 7, 127, true));
    back16 &= isnan(a) ? isnan(fm_f16_to_f32(fm_f32_to_f16(a))) : fm_f32_to_f16(a) == p;
    backb &= isnan(b) ? isnan(fm_bf16_to_f32(fm_f32_to_bf16(b))) : fm_f32_to_bf16(b) == p;
    fm_to_f32(&out, &h, FM_F16, 1);
    bulk &= bits(out) == bits(a);
    fm_to_f32(&out, &h, FM_BF16, 1);
    bulk &= bits(out) == bits(b);
  }
  for (uint32_t p = 0; p < 256; p++) {
    float a = fm_f8_to_f32((uint8_t)p), out;
    uint8_t byte = (uint8_t)p;
    f8 &= same(a, by_definition(p, 4, 3, 7, false));
    back8 &= isnan(a) ? (fm_f32_to_f8(a) & 0x7f) == 0x7f : fm_f32_to_f8(a) == p;
    fm_to_f32(&out, &byte, FM_F8_E4M3, 1);
    bulk &= bits(out) == bits(a);
  }
  check(f16, "every F16 pattern has the value of its definition");
  check(bf16, "every BF16 pattern has the value of its definition");
  check(f8, "every F8_E4M3 pattern has the value of its definition");
  check(back16 && backb && back8, "every pattern comes back from f32 as itself, NaN as NaN");
  check(bulk, "many elements convert as one does");
}

static void e4m3_list(void) {
  static const struct { uint8_t p; float v; } known[] = {
    { 0x00, 0 }, { 0x01, 0.001953125f }, { 0x07, 0.013671875f }, { 0x08, 0.015625f }, { 0x38, 1 }, { 0x3c, 1.5f },
    { 0x40, 2 }, { 0x48, 4 }, { 0x77, 240 }, { 0x78, 256 }, { 0x7e, 448 }, { 0xfe, -448 } };
  bool good = isnan(fm_f8_to_f32(0x7f)) && isnan(fm_f8_to_f32(0xff)) && signbit(fm_f8_to_f32(0x80));
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) good &= fm_f8_to_f32(known[i].p) == known[i].v;
  check(good, "F8_E4M3 has the known values: 448 the largest, NaN in 0x7f and 0xff, no infinity");
  check(fm_f32_to_f8(448) == 0x7e && fm_f32_to_f8(464) == 0x7e && fm_f32_to_f8(1e30f) == 0x7e &&
        fm_f32_to_f8(-INFINITY) == 0xfe && fm_f32_to_f8(-465) == 0xfe, "F8_E4M3 saturates at 448");
}

/* Between each two neighbours: the middle goes to the even one, a hair off it to the nearer. */
static void rounding(void) {
  bool h = true, b = true, e = true;
  for (uint32_t p = 0; p + 1 < 0x7c00; p++) {
    float lo = fm_f16_to_f32((uint16_t)p), mid = (lo + fm_f16_to_f32((uint16_t)(p + 1))) / 2;
    h &= fm_f32_to_f16(mid) == p + (p & 1) && fm_f32_to_f16(nextafterf(mid, 0)) == p &&
         fm_f32_to_f16(nextafterf(mid, INFINITY)) == p + 1 && fm_f32_to_f16(-mid) == (0x8000 | (p + (p & 1)));
  }
  for (uint32_t p = 0; p + 1 < 0x7f80; p++) {
    float mid;
    uint32_t u = p << 16 | 0x8000;
    memcpy(&mid, &u, sizeof mid);
    b &= fm_f32_to_bf16(mid) == p + (p & 1) && fm_f32_to_bf16(nextafterf(mid, 0)) == p &&
         fm_f32_to_bf16(nextafterf(mid, INFINITY)) == p + 1;
  }
  for (uint32_t p = 0; p + 1 < 0x7f; p++) {
    float mid = (fm_f8_to_f32((uint8_t)p) + fm_f8_to_f32((uint8_t)(p + 1))) / 2;
    e &= fm_f32_to_f8(mid) == p + (p & 1) && fm_f32_to_f8(nextafterf(mid, 0)) == p &&
         fm_f32_to_f8(nextafterf(mid, INFINITY)) == p + 1;
  }
  check(h, "F16 rounds to nearest, ties to even, between all neighbours");
  check(b, "BF16 rounds to nearest, ties to even, between all neighbours");
  check(e, "F8_E4M3 rounds to nearest, ties to even, between all neighbours");
  check(fm_f32_to_f16(65519.9f) == 0x7bff && fm_f32_to_f16(65520) == 0x7c00 && fm_f32_to_f16(-INFINITY) == 0xfc00,
        "F16 overflows to infinity from 65520 on");
  check(fm_f32_to_bf16(3.4028235e38f) == 0x7f80 && fm_f32_to_f16(1e-30f) == 0 && fm_f32_to_f8(-1e-30f) == 0x80,
        "the largest f32 is infinite in BF16, tiny numbers become zero with their sign");
}

static void names(void) {
  bool good = true;
  for (int i = 0; i < FM_N_DTYPES; i++) {
    fm_dtype t;
    good &= fm_dtype_parse(fm_dtype_name((fm_dtype)i), &t) && t == (fm_dtype)i && fm_dtype_size(t) >= 1;
  }
  fm_dtype t = FM_U8;
  check(good && !fm_dtype_parse("F64", &t) && !fm_dtype_parse("", &t) && t == FM_U8,
        "a dtype's name parses to itself, other names do not parse");
}

/* ---- random numbers ---- */

static void philox(void) {
  static const uint32_t in[3][6] = {
    { 0, 0, 0, 0, 0, 0 },
    { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u },
    { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0 } };
  static const uint32_t want[3][4] = {
    { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
    { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
    { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } };
  bool good = true;
  for (int i = 0; i < 3; i++) {
    uint32_t out[4];
    fm_philox(out, in[i], in[i] + 4);
    good &= memcmp(out, want[i], sizeof out) == 0;
  }
  check(good, "Philox 4x32-10 gives the published known answers");
}

static void noise(void) {
  enum { N = 200000, BINS = 20 };
  int bin[BINS] = { 0 };
  bool inside = true;
  double sum = 0, chi = 0;
  for (int i = 0; i < N; i++) {
    double u = fm_noise(7, 1, i / 500, i % 500);
    inside &= u > 0 && u < 1;
    sum += u;
    bin[(int)(u * BINS)]++;
  }
  for (int i = 0; i < BINS; i++) chi += (bin[i] - N / BINS) * (double)(bin[i] - N / BINS) / (N / BINS);
  check(inside, "noise lies strictly between 0 and 1");
  // 19 degrees of freedom: 43.8 is passed once in a thousand; the standard error of the mean is 0.00065
  check(chi < 43.8 && fabs(sum / N - 0.5) < 0.0026, "noise is uniform (chi-square over 20 bins)");
  double u = fm_noise(7, 1, 3, 5);
  check(u == fm_noise(7, 1, 3, 5) && u != fm_noise(8, 1, 3, 5) && u != fm_noise(7, 2, 3, 5) &&
        u != fm_noise(7, 1, 4, 5) && u != fm_noise(7, 1, 3, 6) && u != fm_noise(7 + (1ull << 32), 1, 3, 5) &&
        u != fm_noise(7, 1, 3 + (1ll << 32), 5), "noise depends on seed, sample, position and id, and on nothing else");
}

/* ---- memory ---- */

static struct { int64_t live, calls, fail_at; } heap;

/* Counts what lives; from call fail_at on (0: never) there is no memory. */
static void *counting(void *user, void *p, size_t size) {
  (void)user;
  if (!size) {
    heap.live -= p != NULL;
    free(p);
    return NULL;
  }
  heap.calls++;
  if (heap.fail_at && heap.calls >= heap.fail_at) return NULL;
  void *q = realloc(p, size);
  heap.live += q && !p;
  return q;
}

static void sizes(void) {
  int64_t v = 0;
  check(fm_mul(1 << 20, 1 << 20, &v) && v == 1ll << 40 && !fm_mul(1ll << 32, 1ll << 31, &v) && !fm_mul(-1, 2, &v) &&
        fm_mul(0, INT64_MAX, &v) && v == 0, "a product of sizes is refused when it overflows or is negative");
  check(fm_add(INT64_MAX - 1, 1, &v) && v == INT64_MAX && !fm_add(INT64_MAX, 1, &v) && !fm_add(1, -1, &v),
        "so is a sum");
  check(!fm_array(1ll << 40, 1ll << 40) && !fm_alloc(-1) && !fm_alloc(INT64_MAX), "absurd allocations are refused");
}

static void blocks(void) {
  char *p[64], *s;
  bool aligned = true, zero = true;
  for (int i = 0; i < 64; i++) {
    p[i] = i % 2 ? fm_zalloc(i) : fm_alloc(i);
    aligned &= p[i] && (uintptr_t)p[i] % FM_ALIGN == 0;
    for (int j = 0; i % 2 && j < i; j++) zero &= p[i][j] == 0;
    if (p[i]) memset(p[i], 0x5a, (size_t)i);
  }
  for (int i = 0; i < 64; i++) fm_free(p[i]);
  check(aligned && zero, "blocks of any size are aligned, zeroed ones are zero");
  p[0] = fm_realloc(NULL, 0, 3);
  memcpy(p[0], "abc", 3);
  p[0] = fm_realloc(p[0], 3, 1000);
  p[0] = fm_realloc(p[0], 1000, 2);
  check(memcmp(p[0], "ab", 2) == 0 && (uintptr_t)p[0] % FM_ALIGN == 0, "growing and shrinking keep the bytes");
  fm_free(p[0]);
  s = fm_strndup("hello", 4);
  check(strcmp(s, "hell") == 0, "a copied string ends with a zero");
  fm_release(s);
  fm_free(NULL);
}

static void growth(void) {
  int64_t *v = NULL, cap = 0;
  bool good = true;
  fm_error err;
  for (int64_t i = 0; i < 1000; i++) {
    good &= fm_grow(&v, &cap, i + 1, sizeof *v, &err) == FM_OK;
    v[i] = i;
  }
  for (int64_t i = 0; i < 1000; i++) good &= v[i] == i;
  check(good && cap >= 1000 && cap <= 2048, "an array grows by doubling");
  check(fm_grow(&v, &cap, INT64_MAX / 2, sizeof *v, &err) == FM_EOVERFLOW && v[999] == 999,
        "and stays whole when it would grow beyond bounds");
  fm_free(v);
}

static void arena(void) {
  fm_arena a = { 0 };
  bool good = true;
  char *first = fm_arena_alloc(&a, 100);
  memset(first, 1, 100);
  fm_mark m = fm_arena_mark(&a);
  char *x = fm_arena_alloc(&a, 1);
  int64_t held = 0;
  for (int round = 0; round < 3; round++) {
    fm_mark in = fm_arena_mark(&a);
    for (int64_t size = 1; size < 1 << 23; size *= 3) {
      char *p = fm_arena_alloc(&a, size);
      good &= p && (uintptr_t)p % FM_ALIGN == 0;
      if (p) memset(p, round, (size_t)size);
    }
    fm_arena_release(&a, in);
    if (!round) held = fm_arena_size(&a);
  }
  check(good && first[99] == 1, "arena blocks are aligned and apart");
  check(fm_arena_size(&a) == held && held >= 1 << 20, "a second round needs no new chunks");
  fm_arena_release(&a, m);
  check(fm_arena_alloc(&a, 1) == x, "after a release the same place is given again");
  check(!fm_arena_alloc(&a, -1) && !fm_arena_alloc(&a, INT64_MAX),
        "an absurd size is refused");
  fm_arena_free(&a);
  check(fm_arena_size(&a) == 0, "a freed arena holds nothing");
}

static void tensors(void) {
  fm_tensor t = { 0 }, view;
  fm_error err;
  char buf[32], tiny[6];
  int64_t shape[2] = { 3, 48 }, huge[3] = { 1ll << 31, 1ll << 31, 4 };
  check(fm_tensor_new(&t, FM_F32, 2, shape, &err) == FM_OK && fm_tensor_len(&t) == 144 &&
        ((float *)t.data)[143] == 0, "a new tensor is zero");
  view = t;
  view.storage->refs++;
  fm_tensor_drop(&t);
  check(!t.data && ((float *)view.data)[0] == 0, "a second count keeps the storage");
  fm_tensor_drop(&view);
  fm_tensor_drop(&view);
  check(fm_tensor_new(&t, FM_F32, 3, huge, &err) == FM_EOVERFLOW && !t.data, "a shape whose size overflows is refused");
  check(strcmp(fm_shape_string(buf, sizeof buf, 2, shape), "(3, 48)") == 0 &&
        strcmp(fm_shape_string(buf, sizeof buf, 0, shape), "()") == 0, "shapes print as (3, 48) and ()");
  check(strlen(fm_shape_string(tiny, sizeof tiny, 2, shape)) < sizeof tiny, "a small buffer cuts them short");
}

/* ---- JSON ---- */

static fm_status parse(const char *text, size_t len, fm_error *err) {
  fm_json *j = NULL;
  fm_status status = fm_json_parse(&j, text, len, "text", err);
  if (status == FM_OK) fm_json_free(j);
  return status;
}

static void json_limits(void) {
  static const char *const bad[] = { "", " ", "{", "{]", "[1,]", "{\"a\":1} x", "{\"a\" 1}", "\"open", "nul", "[1 2]",
                                     "{\"a\":1}}", "[NaN]", "[Infinity]", "[1e]", "'a'", "[\"\\ud800\"]" };
  char deep[400];
  fm_error err;
  bool good = true;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) good &= parse(bad[i], strlen(bad[i]), &err) == FM_EFORMAT;
  check(good, "broken JSON is refused");
  check(parse("[1]\0 ", 5, &err) == FM_EFORMAT && parse("[1\0]", 4, &err) == FM_EFORMAT, "so is a zero byte inside");
  check(parse("[1]garbage", 3, &err) == FM_OK, "nothing behind the given length is read");
  memset(deep, '[', 200);
  memset(deep + 200, ']', 200);
  check(parse(deep + 136, 128, &err) == FM_OK && parse(deep + 135, 130, &err) == FM_EFORMAT &&
        parse(deep, 400, &err) == FM_EFORMAT, "64 levels of nesting are read, 65 are refused");
  check(parse("\"[[[[\\\"[[[\"", 11, &err) == FM_OK, "brackets inside strings do not count");
}

static void json_values(void) {
  static const char text[] = "{\"i\": -7, \"big\": 9007199254740993e3, \"half\": 0.5, \"inf\": 1e999, \"t\": true,"
                             " \"s\": \"w\\u00f6rt\", \"none\": null}";
  fm_json *j = NULL;
  fm_error err;
  int64_t i = 5;
  double d = 1;
  bool b = false;
  const char *s = NULL;
  if (fm_json_parse(&j, text, sizeof text - 1, "text", &err) != FM_OK) {
    check(false, err.message);
    return;
  }
  check(fm_json_int(j, "gone", &i, &err) == FM_OK && fm_json_int(j, "none", &i, &err) == FM_OK && i == 5,
        "an absent or null value leaves the default");
  check(fm_json_int(j, "i", &i, &err) == FM_OK && i == -7 && fm_json_num(j, "half", &d, &err) == FM_OK && d == 0.5 &&
        fm_json_bool(j, "t", &b, &err) == FM_OK && b && fm_json_str(j, "s", &s, &err) == FM_OK &&
        strcmp(s, "w\xc3\xb6rt") == 0, "values are read by type");
  check(fm_json_int(j, "half", &i, &err) == FM_EFORMAT && strstr(err.message, "half") &&
        fm_json_int(j, "big", &i, &err) == FM_EFORMAT && i == -7, "an integer must be whole and exact");
  check(fm_json_num(j, "inf", &d, &err) == FM_EFORMAT && d == 0.5, "an infinite number is refused");
  check(fm_json_int(j, "s", &i, &err) == FM_EFORMAT && fm_json_num(j, "t", &d, &err) == FM_EFORMAT &&
        fm_json_bool(j, "i", &b, &err) == FM_EFORMAT && fm_json_str(j, "i", &s, &err) == FM_EFORMAT &&
        strstr(err.message, "i"), "a wrong type is refused by the key's name");
  fm_json_free(j);
}

static void json_files(void) {
  char path[] = "/tmp/fathom_base_XXXXXX";
  fm_json *j = NULL;
  fm_error err;
  int fd = mkstemp(path);
  bool wrote = fd >= 0 && write(fd, "[1, 2, 3]", 9) == 9 && close(fd) == 0;
  check(wrote && fm_json_load(&j, path, 9, &err) == FM_OK, "a file is read whole");
  fm_json_free(j);
  check(fm_json_load(&j, path, 8, &err) == FM_EFORMAT && strstr(err.message, path), "a larger one than allowed is refused");
  unlink(path);
  check(fm_json_load(&j, path, 9, &err) == FM_EIO && strstr(err.message, path), "a missing one is named");
  check(fm_json_load(&j, "/", 9, &err) == FM_EIO, "a folder is no file");
}

/* ---- a host without memory ---- */

static fm_status some_work(fm_error *err) {
  const char *json = "{\"a\": [1, \"x\", {\"b\": null}]}";
  fm_tensor t = { 0 };
  fm_json *j = NULL;
  int64_t shape = 100, *v = NULL, cap = 0;
  fm_arena a = { 0 };
  fm_status status = FM_OK;
  TRY_TO(fm_tensor_new(&t, FM_F32, 1, &shape, err));
  TRY_TO(fm_json_parse(&j, json, strlen(json), "text", err));
  TRY_TO(fm_grow(&v, &cap, 100, sizeof *v, err));
  if (!fm_arena_alloc(&a, 1 << 16) || !fm_arena_alloc(&a, 3 << 20)) TRY_TO(fm_no_memory(err, 3 << 20));
done:
  fm_arena_free(&a);
  fm_free(v);
  if (j) fm_json_free(j);
  fm_tensor_drop(&t);
  return status;
}

static void no_memory(void) {
  bool refused = true, leaked = false;
  fm_error err;
  fm_set_allocator(counting, NULL);
  check(some_work(&err) == FM_OK && heap.calls >= 10 && heap.live == 0, "everything goes through the host's allocator");
  int64_t n = heap.calls;
  for (int64_t i = 1; i <= n; i++) {
    heap.calls = 0;
    heap.fail_at = i;
    refused &= some_work(&err) == FM_EMEMORY && err.code == FM_EMEMORY && *err.message;
    leaked |= heap.live != 0;
  }
  fm_set_allocator(NULL, NULL);
  check(refused, "each refused allocation comes back as FM_EMEMORY");
  check(!leaked, "and leaves nothing behind");
}

/* ---- status ---- */

static char logged[64];
static void keep_line(void *user, int level, const char *line) {
  snprintf(logged, sizeof logged, "%s %d %s", (const char *)user, level, line);
}

static void statuses(void) {
  fm_error err = { .hint = "old" };
  char long_text[2000];
  memset(long_text, 'x', sizeof long_text - 1);
  long_text[sizeof long_text - 1] = 0;
  check(fm_fail(&err, FM_EIO, "no %s", "file") == FM_EIO && err.code == FM_EIO && !strcmp(err.message, "no file") &&
        !*err.hint, "a failure fills the error and clears an old hint");
  check(fm_hint(&err, FM_EIO, "try %d", 2) == FM_EIO && !strcmp(err.hint, "try 2") && fm_fail(NULL, FM_EIO, "x") == FM_EIO,
        "a hint is added; nobody has to take the error");
  fm_fail(&err, FM_EFORMAT, "%s", long_text);
  check(strlen(err.message) == sizeof err.message - 1, "a long message is cut");
  check(!strcmp(fm_status_name(FM_OK), "ok") && !strcmp(fm_status_name(FM_EINVAL), "invalid") &&
        !strcmp(fm_status_name((fm_status)99), "unknown") && !strcmp(fm_version(), FM_VERSION), "codes have names");
  fm_log(1, "nobody hears this");
  fm_set_log(keep_line, (void *)"me");
  fm_log(2, "a %s", "line");
  fm_set_log(NULL, NULL);
  check(!strcmp(logged, "me 2 a line"), "the log goes to the host");
}

int main(void) {
  every_pattern();
  e4m3_list();
  rounding();
  names();
  philox();
  noise();
  sizes();
  blocks();
  growth();
  arena();
  tensors();
  json_limits();
  json_values();
  json_files();
  no_memory();
  statuses();
  return failures != 0;
}
