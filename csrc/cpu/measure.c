/*
** measure.c - what this machine can do: a plain read by all threads, and fused multiply-adds in registers.
*/
#include <math.h>
#include <time.h>

#include "cpu/cpu.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

enum { PIECE = 4 << 20 };                /* bytes of an item */

typedef struct sweep { const char *data; uint64_t sum[1024]; } sweep;
typedef uint64_t v4 __attribute__((vector_size(32)));

/* Four places of the piece at once: one stream alone leaves the memory waiting. */
static void read_piece(void *arg, int64_t item, int worker) {
  enum { STREAM = PIECE / 4 / 32 };
  sweep *s = arg;
  const v4 *p = (const v4 *)(s->data + item * PIECE);
  v4 a = { 0 }, b = { 0 }, c = { 0 }, d = { 0 };
  for (int64_t i = 0; i < STREAM; i += 2) {
    a ^= p[i] ^ p[i + 1];
    b ^= p[STREAM + i] ^ p[STREAM + i + 1];
    c ^= p[2 * STREAM + i] ^ p[2 * STREAM + i + 1];
    d ^= p[3 * STREAM + i] ^ p[3 * STREAM + i + 1];
  }
  a ^= b ^ c ^ d;
  s->sum[worker % 1024] += a[0] ^ a[1] ^ a[2] ^ a[3];
}

double fm_cpu_read_bandwidth(fm_cpu *cpu, double seconds) {
  int64_t size = (int64_t)1 << 30;
  sweep s = { .data = fm_alloc(size) };
  double best = 0, begin = now();
  if (!s.data) return 0;
  for (int64_t i = 0; i < size; i += 4096) ((char *)s.data)[i] = (char)i;      // real pages, not the zero page
  do {
    double t = now();
    fm_pool_for(cpu->pool, size / PIECE, read_piece, &s);
    double rate = (double)size / (now() - t);
    best = rate > best ? rate : best;
  } while (now() - begin < seconds);
  fm_free((void *)s.data);
  return best;
}

#if defined(__x86_64__)
typedef float v8 __attribute__((vector_size(32)));
typedef float v16 __attribute__((vector_size(64)));

/* Ten independent chains hide the latency of four or five cycles on two units. In one asm, so that they stay in registers. */
#define FMA_LOOP(name, isa, vec, lanes, reg)                                                     \
  __attribute__((target(isa))) static double name(int64_t rounds, float *sink) {                 \
    vec x, y, a, b, c, d, e, f, g, h, i, j;                                                      \
    for (int l = 0; l < lanes; l++) x[l] = 0.999f, y[l] = 0.001f;                                \
    a = b = c = d = e = f = g = h = i = j = y;                                                   \
    for (int64_t r = 0; r < rounds; r++)                                                         \
      __asm__("vfmadd213ps %11, %10, %0\n\tvfmadd213ps %11, %10, %1\n\t"                         \
              "vfmadd213ps %11, %10, %2\n\tvfmadd213ps %11, %10, %3\n\t"                         \
              "vfmadd213ps %11, %10, %4\n\tvfmadd213ps %11, %10, %5\n\t"                         \
              "vfmadd213ps %11, %10, %6\n\tvfmadd213ps %11, %10, %7\n\t"                         \
              "vfmadd213ps %11, %10, %8\n\tvfmadd213ps %11, %10, %9"                             \
              : "+" reg(a), "+" reg(b), "+" reg(c), "+" reg(d), "+" reg(e), "+" reg(f),          \
                "+" reg(g), "+" reg(h), "+" reg(i), "+" reg(j)                                   \
              : reg(x), reg(y));                                                                 \
    a += b + c + d + e + f + g + h + i + j;                                                      \
    *sink = a[0];                                                                                \
    return 2.0 * 10 * lanes * (double)rounds;                                                    \
  }
FMA_LOOP(fma_avx2, "avx2,fma", v8, 8, "x")
FMA_LOOP(fma_avx512, "avx512f", v16, 16, "v")
#endif

static double fma_plain(int64_t rounds, float *sink) {
  float a[8] = { 0 };
  for (int64_t r = 0; r < rounds; r++)
    for (int i = 0; i < 8; i++) a[i] = fmaf(a[i], 0.999f, 0.001f);
  *sink = a[0] + a[7];
  return 2.0 * 8 * (double)rounds;
}

typedef struct spin { const fm_simd *simd; double flop[1024]; float sink[1024]; } spin;

static void fma_item(void *arg, int64_t item, int worker) {
  spin *s = arg;
  (void)worker;
#if defined(__x86_64__)
  if (s->simd == &fm_simd_avx512) s->flop[item] = fma_avx512(1 << 24, &s->sink[item]);
  else if (s->simd == &fm_simd_avx2) s->flop[item] = fma_avx2(1 << 24, &s->sink[item]);
  else
#endif
    s->flop[item] = fma_plain(1 << 22, &s->sink[item]);
}

double fm_cpu_fma_peak(fm_cpu *cpu) {
  int64_t n = fm_pool_threads(cpu->pool);
  double best = 0;
  spin *s = fm_zalloc(sizeof *s);
  if (!s) return 0;
  s->simd = cpu->simd;
  n = n > 1024 ? 1024 : n;
  for (int i = 0; i < 5; i++) {
    double t = now(), flop = 0;
    fm_pool_for(cpu->pool, n, fma_item, s);
    t = now() - t;
    for (int64_t j = 0; j < n; j++) flop += s->flop[j];
    best = flop / t > best ? flop / t : best;
  }
  fm_free(s);
  return best;
}
