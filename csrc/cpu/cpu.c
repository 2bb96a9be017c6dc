/*
** cpu.c - the CPU device: its life, and its table of operations.
*/
#include "cpu/cpu.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LARGE = 8 << 20 };                /* bytes worth large pages */

static void cpu_close(fm_device *d) {
  fm_cpu *cpu = (fm_cpu *)d;
  if (!cpu) return;
  int n = cpu->pool ? fm_pool_threads(cpu->pool) : 0;
  for (int i = 0; cpu->scratch && i < n; i++) fm_free(cpu->scratch[i]);
  fm_free(cpu->scratch);
  fm_pool_free(cpu->pool);
  fm_free(cpu);
}

static fm_status open_parts(fm_cpu *cpu, int threads, fm_error *err) {
  TRY(fm_pool_new(&cpu->pool, threads, err));
  int n = fm_pool_threads(cpu->pool);
  cpu->simd = fm_simd_choose();
  cpu->scratch = fm_array(n, sizeof *cpu->scratch);
  if (!cpu->scratch) return fm_no_memory(err, n * (int64_t)sizeof *cpu->scratch);
  for (int i = 0; i < n; i++) {
    cpu->scratch[i] = fm_alloc(FM_CPU_SCRATCH * (int64_t)sizeof(float));
    if (!cpu->scratch[i]) return fm_no_memory(err, FM_CPU_SCRATCH * (int64_t)sizeof(float));
  }
  return FM_OK;
}

static fm_status cpu_open(fm_device **out, int index, int threads, fm_error *err) {
  if (index != 0) return fm_fail(err, FM_EDEVICE, "there is one cpu, not a cpu:%d", index);
  fm_cpu *cpu = fm_zalloc(sizeof *cpu);
  if (!cpu) return fm_no_memory(err, sizeof *cpu);
  cpu->device.ops = fm_cpu_backend();
  fm_status status = open_parts(cpu, threads, err);
  if (status != FM_OK) cpu_close(&cpu->device);
  else *out = &cpu->device;
  return status;
}

static fm_status cpu_memory(fm_device *d, int64_t *total, int64_t *free_bytes) {
  int64_t page = sysconf(_SC_PAGESIZE);
  (void)d;
  *total = page * sysconf(_SC_PHYS_PAGES);
  *free_bytes = page * sysconf(_SC_AVPHYS_PAGES);
  return FM_OK;
}

static void cpu_info(const fm_device *d, const char **simd, int *threads) {
  const fm_cpu *cpu = (const fm_cpu *)d;
  *simd = cpu->simd->name;
  *threads = fm_pool_threads(cpu->pool);
}

static fm_status cpu_pin(fm_device *d, const char *cpus, fm_error *err) {
  return fm_pool_pin(((fm_cpu *)d)->pool, cpus, err);
}

/* A cache is read all over: where the system has large pages, looking up where its rows stand costs less. A hint only. */
static void in_large_pages(char *p, int64_t size) {
#ifdef MADV_HUGEPAGE
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = ((uintptr_t)p + page - 1) / page * page;
  uintptr_t end = ((uintptr_t)p + (uintptr_t)size) / page * page;
  if (size >= LARGE) madvise((void *)from, end - from, MADV_HUGEPAGE);
#else
  (void)p, (void)size;
#endif
}

static fm_status cpu_alloc(fm_device *d, void **out, int64_t size, fm_error *err) {
  void *p = fm_alloc(size);
  (void)d;
  if (!p) return fm_no_memory(err, size);
  in_large_pages(p, size);
  *out = p;
  return FM_OK;
}

static void cpu_release(fm_device *d, void *p) {
  (void)d;
  fm_free(p);
}

static void cpu_copy(fm_device *d, void *dst, const void *src, int64_t size) {
  (void)d;
  memcpy(dst, src, (size_t)size);
}

static void cpu_clear(fm_device *d, void *dst, int64_t size) {
  (void)d;
  memset(dst, 0, (size_t)size);
}

static void cpu_enter(fm_device *d) { fm_pool_enter(((fm_cpu *)d)->pool); }
static void cpu_leave(fm_device *d) { fm_pool_leave(((fm_cpu *)d)->pool); }

const fm_backend *fm_cpu_backend(void) {
  static const fm_backend table = {
    .abi = FM_BACKEND_ABI, .name = "cpu",
    .arithmetic = 1u << FM_F32, .cache_dtypes = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3, .chunk = 512,
    .open = cpu_open, .close = cpu_close, .memory = cpu_memory, .info = cpu_info, .pin = cpu_pin,
    .alloc = cpu_alloc, .release = cpu_release, .copy = cpu_copy, .clear = cpu_clear, .enter = cpu_enter, .leave = cpu_leave,
    .embed = fm_cpu_embed, .rms_norm = fm_cpu_rms_norm, .matmul = fm_cpu_matmul, .rope = fm_cpu_rope,
    .cache_store = fm_cpu_cache_store, .turn = fm_cpu_turn, .mla_store = fm_cpu_mla_store,
    .mla_prompt = fm_cpu_mla_prompt, .mla_decode = fm_cpu_mla_decode, .gqa = fm_cpu_gqa,
    .draw = fm_cpu_draw, .route = fm_cpu_route, .experts = fm_cpu_experts, .combine = fm_cpu_combine,
    .comm = &fm_cpu_collectives,
  };
  return &table;
}
