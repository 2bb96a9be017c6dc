/*
** sampler_test.c - the draw follows the softmax, filters keep what they say, ties and penalties are as promised.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "run/sampler.h"

enum { V = 40, N = 200000 };

static int failed;

static void check(bool fine, const char *what) {
  printf("%s - %s\n", fine ? "ok" : "not ok", what);
  failed += !fine;
}

static fm_sampler *sampler;
static float logits[V];

static fm_draw draw(const fm_generate_options *o, int64_t pos) {
  static int32_t ids[N + 1];
  return fm_sampler_draw(sampler, o, logits, (fm_history){ ids, pos, 0, 0 }, NULL, true);
}

/* Chi-square of N draws at different indices against p; cells that expect fewer than five are put together. */
static double chi_square(const fm_generate_options *o, const double *p, int *cells) {
  static int32_t none[1];
  int count[V] = { 0 };
  double sum = 0, rest_want = 0, rest_got = 0;
  for (int i = 0; i < N; i++) {
    // histories of length i matter by their length alone: no penalties are set
    fm_history h = { none, i, i, 0 };
    count[fm_sampler_draw(sampler, o, logits, h, NULL, false).id]++;
  }
  *cells = 0;
  for (int i = 0; i < V; i++) {
    double want = p[i] * N;
    if (want < 5) {
      rest_want += want, rest_got += count[i];
      continue;
    }
    sum += (count[i] - want) * (count[i] - want) / want;
    ++*cells;
  }
  if (rest_want > 0) sum += (rest_got - rest_want) * (rest_got - rest_want) / fmax(rest_want, 0.5), ++*cells;
  return sum;
}

static void softmax(double *p, double temperature) {
  double sum = 0;
  for (int i = 0; i < V; i++) sum += p[i] = exp(logits[i] / temperature);
  for (int i = 0; i < V; i++) p[i] /= sum;
}

/* Mean k - 1, variance 2 (k - 1): five sigmas above is a chance of far less than one in a thousand. */
static bool likely(double chi, int cells) { return chi < cells - 1 + 5 * sqrt(2.0 * (cells - 1)); }

static bool fits(const fm_generate_options *o, const double *p) {
  int cells;
  double chi = chi_square(o, p, &cells);
  printf("  temperature %.1f: chi-square %.1f over %d cells\n", (double)o->temperature, chi, cells);
  return likely(chi, cells);
}

static void test_draw(void) {
  fm_generate_options o = fm_generate_options_default();
  double p[V];
  const double temperature[] = { 1, 0.6, 1.7 };
  for (int i = 0; i < 3; i++) {
    o.temperature = (float)temperature[i];
    o.seed = 1234 + (uint64_t)i;
    softmax(p, temperature[i]);
    check(fits(&o, p), "draws follow the softmax at this temperature");
  }
  // and the test can tell: the softmax of another temperature does not fit
  softmax(p, 1.5);
  check(!fits(&o, p), "another softmax would be noticed");
}

static void test_top_p(void) {
  fm_generate_options o = fm_generate_options_default();
  double p[V], kept[V] = { 0 }, sum = 0;
  o.top_p = 0.7f;
  softmax(p, 1);
  while (sum < 0.7) {                              // the smallest set of best ones that reaches 0.7
    int best = -1;
    for (int i = 0; i < V; i++)
      if (kept[i] == 0 && (best < 0 || p[i] > p[best])) best = i;
    kept[best] = p[best];
    sum += p[best];
  }
  for (int i = 0; i < V; i++) kept[i] /= sum;
  check(fits(&o, kept), "top_p draws from the smallest set that reaches it");
  bool inside = true, right = true;
  for (int i = 0; i < 2000; i++) {
    fm_draw d = draw(&o, i);
    inside &= kept[d.id] > 0;
    right &= fabs(exp((double)d.logprob_filtered) - kept[d.id]) < 1e-4 && fabs(exp((double)d.logprob) - p[d.id]) < 1e-4;
  }
  check(inside, "top_p never draws from outside its set");
  check(right, "logprobs are those of the raw and of the filtered distribution");
}

static void test_filters(void) {
  fm_generate_options o = fm_generate_options_default();
  double p[V], max = 0;
  softmax(p, 1);
  for (int i = 0; i < V; i++) max = fmax(max, p[i]);
  bool k_fine = true, m_fine = true, pad = true;
  o.top_k = 3;
  for (int i = 0; i < 2000; i++) {
    int better = 0, id = draw(&o, i).id;
    for (int j = 0; j < V; j++) better += p[j] > p[id];
    k_fine &= better < 3;
  }
  o.top_k = 0;
  o.min_p = 0.2f;
  for (int i = 0; i < 2000; i++) m_fine &= p[draw(&o, i).id] >= 0.2 * max * (1 - 1e-5);
  o.min_p = 0;
  o.temperature = 50;
  sampler->n_valid = 10;
  for (int i = 0; i < 2000; i++) pad &= draw(&o, i).id < 10;
  sampler->n_valid = V;
  check(k_fine, "top_k keeps the k best");
  check(m_fine, "min_p keeps what reaches its share of the best");
  check(pad, "padding ids are never drawn");
}

static void test_greedy(void) {
  fm_generate_options o = fm_generate_options_default();
  float keep = logits[7];
  o.temperature = 0;
  logits[7] = logits[3] = 9;
  check(draw(&o, 1).id == 3, "greedy ties go to the lower id");
  o.logit_bias = &(fm_logit_bias){ 7, 0.5f };
  o.n_logit_bias = 1;
  check(draw(&o, 1).id == 7, "logit_bias is added before the choice");
  o.logit_bias = &(fm_logit_bias){ 3, -INFINITY };
  logits[7] = keep;
  check(draw(&o, 1).id != 3, "a bias of minus infinity forbids an id");
  o.n_logit_bias = 0;
  logits[7] = 8.5f;
  int32_t seen[] = { 3, 5, 3 };
  o.repeat_penalty = 1.5f;
  check(fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 3, 0 }, NULL, false).id == 7, "repeat_penalty counts the prompt");
  o.repeat_penalty = 1;
  o.frequency_penalty = 0.3f;
  check(fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 3, 0 }, NULL, false).id == 3 &&
        fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 0, 0 }, NULL, false).id == 7,
        "frequency_penalty counts generated ids, each time");
  o.frequency_penalty = 0;
  o.presence_penalty = 0.3f;
  check(fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 0, 0 }, NULL, false).id == 3, "presence_penalty counts once");
}

static void test_noise_key(void) {
  fm_generate_options o = fm_generate_options_default();
  int same_sample = 0, same_pos = 0;
  bool again = true;
  for (int i = 0; i < 500; i++) {
    o.sample = 0;
    int32_t a = draw(&o, i).id;
    again &= a == draw(&o, i).id;
    same_pos += a == draw(&o, i + 1000).id;
    o.sample = 1;
    same_sample += a == draw(&o, i).id;
  }
  check(again, "the same key draws the same id");
  check(same_sample < 250 && same_pos < 250, "another sample or another index draws anew");
}

static void test_mask(void) {
  fm_generate_options o = fm_generate_options_default();
  static int32_t none[1];
  uint64_t mask = 1ull << 5 | 1ull << 9 | 1ull << 30 | 1ull << 39;
  double p[V], kept[V] = { 0 }, sum = 0;
  softmax(p, 1);
  for (int i = 0; i < V; i++) sum += mask >> i & 1 ? p[i] : 0;
  int count[V] = { 0 };
  for (int i = 0; i < N / 10; i++) count[fm_sampler_draw(sampler, &o, logits, (fm_history){ none, i, i, 0 }, &mask, false).id]++;
  double worst = 0;
  for (int i = 0; i < V; i++) {
    kept[i] = mask >> i & 1 ? p[i] / sum : 0;
    // five sigmas of a share among N / 10
    worst = fmax(worst, fabs(count[i] * 10.0 / N - kept[i]) - 5 * sqrt(kept[i] * (1 - kept[i]) * 10 / N));
  }
  check(worst <= 0, "a mask draws from the softmax over its own ids");
  o.temperature = 0;
  fm_draw d = fm_sampler_draw(sampler, &o, logits, (fm_history){ none, 3, 3, 0 }, &mask, true);
  int best = 5;
  for (int i = 0; i < V; i++)
    if (mask >> i & 1 && logits[i] > logits[best]) best = i;
  check(d.id == best && fabs(exp((double)d.logprob) - p[best]) < 1e-4, "greedy takes the mask's best, and logprob stays the raw one");
  o.logit_bias = (fm_logit_bias[]){ { 5, -INFINITY }, { 9, -INFINITY }, { 30, -INFINITY }, { 39, -INFINITY } };
  o.n_logit_bias = 4;
  o.temperature = 1;
  d = fm_sampler_draw(sampler, &o, logits, (fm_history){ none, 3, 3, 0 }, &mask, false);
  check(d.id == -1, "nothing is drawn where all of the mask's ids are forbidden");
  o.n_logit_bias = 3;
  d = fm_sampler_draw(sampler, &o, logits, (fm_history){ none, 3, 3, 0 }, &mask, false);
  check(d.id == 39, "the only one that is left is drawn");
  o.n_logit_bias = 0;
  o.repeat_penalty = 1.3f;
  int32_t seen[] = { 9, 7, 30 };
  bool inside = true;
  for (int i = 0; i < 500; i++) {
    o.seed = (uint64_t)i;
    inside &= mask >> fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 0, 0 }, &mask, false).id & 1;
  }
  check(inside, "penalties do not leave the mask");
  mask = 0;
  check(fm_sampler_draw(sampler, &o, logits, (fm_history){ seen, 3, 0, 0 }, &mask, false).id == -1, "an empty mask draws nothing");
}

int main(void) {
  fm_error err;
  if (fm_sampler_new(&sampler, V, V, &err) != FM_OK) return 1;
  for (int i = 0; i < V; i++) logits[i] = (float)(2 * sin(i * 1.7) + i % 5 * 0.4);
  test_draw();
  test_top_p();
  test_filters();
  test_noise_key();
  test_greedy();
  test_mask();
  fm_sampler_free(sampler);
  return failed != 0;
}
