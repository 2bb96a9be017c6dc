/*
** roofline.c - how near the CPU device comes to what this machine can do, on V2-Lite's layer shapes.
**
** Builds a model in memory (random weights, no file): one dense layer, then as many expert layers as fit 8 GB, embedding and
** head; then measures in the same run: a plain multi-threaded read (GB/s), f32 fused multiply-adds in registers (GFLOP/s), decoding
** one token at a time (bytes of weights that a token touches over time), and a prompt of 512 (2 x active parameters x tokens).
** usage: roofline [bf16|f8] [GB] [threads]
*/
#include "v2lite.h"

#include "cpu/cpu.h"

enum { PROMPT = 512, DECODE = 24 };

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
  b.c = &c;
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
