/*
** config_test.c - parameter sums of the published models from made-up configs, YaRN's numbers, conversions, noise.
*/
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "base/rng.h"
#include "io/config.h"

static int failed;

static void check(bool fine, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  printf(fine ? "ok - " : "not ok - ");
  vprintf(fmt, ap);
  printf("\n");
  va_end(ap);
  failed += !fine;
}

/* ---- parameters ------------------------------------------------------------------------------------ */

#define V2_COMMON "\"model_type\":\"deepseek_v2\",\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64," \
  "\"v_head_dim\":128,\"vocab_size\":102400,\"n_shared_experts\":2,\"num_experts_per_tok\":6,\"first_k_dense_replace\":1,"
#define QWEN(d, i, l, h, kv, v, tied) "{\"model_type\":\"qwen2\",\"hidden_size\":" #d ",\"intermediate_size\":" #i \
  ",\"num_hidden_layers\":" #l ",\"num_attention_heads\":" #h ",\"num_key_value_heads\":" #kv ",\"vocab_size\":" #v \
  ",\"tie_word_embeddings\":" #tied "}"

static const struct { const char *name, *json; int64_t main_model, mtp; } models[] = {
  { "V2-Lite", "{" V2_COMMON "\"hidden_size\":2048,\"intermediate_size\":10944,\"moe_intermediate_size\":1408,"
    "\"num_hidden_layers\":27,\"num_attention_heads\":16,\"q_lora_rank\":null,\"n_routed_experts\":64}", 15706484224, 0 },
  { "V2", "{" V2_COMMON "\"hidden_size\":5120,\"intermediate_size\":12288,\"moe_intermediate_size\":1536,"
    "\"num_hidden_layers\":60,\"num_attention_heads\":128,\"q_lora_rank\":1536,\"n_routed_experts\":160,"
    "\"topk_method\":\"group_limited_greedy\",\"n_group\":8,\"topk_group\":3}", 235741434880, 0 },
  { "V3", "{\"model_type\":\"deepseek_v3\",\"hidden_size\":7168,\"intermediate_size\":18432,\"vocab_size\":129280,"
    "\"num_hidden_layers\":61,\"num_attention_heads\":128,\"q_lora_rank\":1536,\"num_nextn_predict_layers\":1}",
    671026419200, 11610068224 },
  { "Moonlight", "{\"model_type\":\"deepseek_v3\",\"hidden_size\":2048,\"intermediate_size\":11264,\"vocab_size\":163840,"
    "\"moe_intermediate_size\":1408,\"num_hidden_layers\":27,\"num_attention_heads\":16,\"q_lora_rank\":null,"
    "\"n_routed_experts\":64,\"n_shared_experts\":2,\"num_experts_per_tok\":6,\"first_k_dense_replace\":1,"
    "\"n_group\":1,\"topk_group\":1,\"num_nextn_predict_layers\":0}", 15960110208, 0 },
  { "Qwen2.5-0.5B", QWEN(896, 4864, 24, 14, 2, 151936, true), 494032768, 0 },
  { "Qwen2.5-1.5B", QWEN(1536, 8960, 28, 12, 2, 151936, true), 1543714304, 0 },
  { "R1-Distill-Qwen-1.5B", QWEN(1536, 8960, 28, 12, 2, 151936, false), 1777088000, 0 },
  { "Qwen2.5-7B", QWEN(3584, 18944, 28, 28, 4, 152064, false), 7615616512, 0 },
  { "Qwen2.5-14B", QWEN(5120, 13824, 48, 40, 8, 152064, false), 14770033664, 0 },
  { "Qwen2.5-32B", QWEN(5120, 27648, 64, 40, 8, 152064, false), 32763876352, 0 } };

static void test_parameters(void) {
  for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
    fm_config c;
    fm_error err = { 0 };
    int64_t a = 0, b = 0;
    fm_status s = fm_config_parse(&c, models[i].json, strlen(models[i].json), &err);
    if (s == FM_OK) fm_config_parameters(&c, &a, &b);
    check(s == FM_OK && a == models[i].main_model && b == models[i].mtp, "%s has %lld parameters and %lld in MTP%s%s",
          models[i].name, (long long)a, (long long)b, s ? ": " : "", err.message);
  }
}

/* ---- YaRN -------------------------------------------------------------------------------------------- */

static void test_yarn(void) {
  static const char json[] = "{\"model_type\":\"deepseek_v3\",\"hidden_size\":7168,\"intermediate_size\":18432,"
    "\"vocab_size\":129280,\"num_hidden_layers\":61,\"num_attention_heads\":128,\"rope_theta\":10000,\"rope_scaling\":"
    "{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,"
    "\"mscale\":1.0,\"mscale_all_dim\":1.0}}";
  static const struct { int i; double f; } golden[] = { { 0, 1 }, { 10, 0.0562341325 }, { 11, 0.0390069266 },
    { 15, 0.0083345090 }, { 16, 0.0055 }, { 20, 0.00079056942 }, { 22, 0.00017782794 }, { 23, 3.3338036e-05 },
    { 31, 3.3338036e-06 } };
  fm_config c;
  fm_error err;
  double f[32], amplitude;
  check(fm_config_parse(&c, json, sizeof json - 1, &err) == FM_OK, "a config with YaRN parses");
  fm_config_inv_freq(&c, f, &amplitude);
  for (size_t i = 0; i < sizeof golden / sizeof *golden; i++)
    check(fabs(f[golden[i].i] / golden[i].f - 1) < 1e-7, "YaRN frequency %d is %.9g", golden[i].i, f[golden[i].i]);
  check(amplitude == 1, "cos and sin are not scaled when mscale equals mscale_all_dim");
  check(fabs(fm_config_softmax_scale(&c) - 0.1352337789) < 1e-9, "V3's softmax scale holds m squared");
}

/* ---- what a config may not say ---------------------------------------------------------------------------- */

static void refused(const char *change, fm_status want) {
  char json[1024];
  fm_config c;
  fm_error err = { 0 };
  snprintf(json, sizeof json, "{%s,\"hidden_size\":64,\"intermediate_size\":96,\"vocab_size\":512,"
           "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"model_type\":\"deepseek_v3\"}", change);
  fm_status s = fm_config_parse(&c, json, strlen(json), &err);
  check(s == want && err.message[0], "%s is %s: %s", change, fm_status_name(want), err.message);
}

static void test_refusals(void) {
  refused("\"model_type\":\"llama\"", FM_EUNSUPPORTED);
  refused("\"hidden_size\":-1", FM_EFORMAT);
  refused("\"hidden_size\":1e30", FM_EFORMAT);
  refused("\"hidden_size\":64.5", FM_EFORMAT);
  refused("\"hidden_size\":\"64\"", FM_EFORMAT);
  refused("\"num_experts_per_tok\":300", FM_EFORMAT);
  refused("\"n_group\":7", FM_EFORMAT);
  refused("\"qk_rope_head_dim\":63", FM_EFORMAT);
  refused("\"hidden_act\":\"gelu\"", FM_EUNSUPPORTED);
  refused("\"rope_scaling\":{\"type\":\"linear\"}", FM_EUNSUPPORTED);
  refused("\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0}", FM_EFORMAT);
  refused("\"rope_theta\":0", FM_EFORMAT);
  refused("\"quantization_config\":{\"quant_method\":\"awq\"}", FM_EUNSUPPORTED);
  refused("\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[64,64]}", FM_EUNSUPPORTED);
  refused("\"eos_token_id\":[1,-2]", FM_EFORMAT);
  refused("\"attention_bias\":true", FM_EUNSUPPORTED);
}

/* ---- numbers ------------------------------------------------------------------------------------------------ */

static void test_numbers(void) {
  static const struct { uint8_t b; float f; } e4m3[] = { { 0x00, 0 }, { 0x01, 0.001953125f }, { 0x07, 0.013671875f },
    { 0x08, 0.015625f }, { 0x38, 1 }, { 0x3c, 1.5f }, { 0x40, 2 }, { 0x48, 4 }, { 0x77, 240 }, { 0x78, 256 },
    { 0x7e, 448 }, { 0xfe, -448 } };
  bool fine = isnan(fm_f8_to_f32(0x7f)) && isnan(fm_f8_to_f32(0xff));
  for (size_t i = 0; i < sizeof e4m3 / sizeof *e4m3; i++) fine &= fm_f8_to_f32(e4m3[i].b) == e4m3[i].f;
  check(fine, "e4m3 has the values of its table");
  fine = true;
  for (int b = 0; b < 256; b++) fine &= (b & 0x7f) == 0x7f || fm_f32_to_f8(fm_f8_to_f32((uint8_t)b)) == b;
  check(fine && fm_f32_to_f8(1e9f) == 0x7e && fm_f32_to_f8(-INFINITY) == 0xfe, "e4m3 comes back, and saturates");
  check(fm_f32_to_f8(1.0625f) == 0x38 && fm_f32_to_f8(1.1875f) == 0x3a, "e4m3 rounds ties to even");
  fine = true;
  for (int h = 0; h < 65536; h++) {
    float a = fm_bf16_to_f32((uint16_t)h), b = fm_f16_to_f32((uint16_t)h);
    fine &= isnan(a) ? isnan(fm_bf16_to_f32(fm_f32_to_bf16(a))) : fm_f32_to_bf16(a) == h;
    fine &= isnan(b) ? isnan(fm_f16_to_f32(fm_f32_to_f16(b))) : fm_f32_to_f16(b) == h;
  }
  check(fine, "every bf16 and f16 comes back");
  check(fm_f32_to_f16(65519.f) == 0x7bff && fm_f32_to_f16(65520.f) == 0x7c00, "f16 overflows where it should");
}

static void test_noise(void) {
  uint32_t zero[4] = { 0 }, ones[4] = { ~0u, ~0u, ~0u, ~0u }, out[4];
  fm_philox(out, zero, zero);
  check(out[0] == 0x6627e8d5 && out[1] == 0xe169c58d && out[2] == 0xbc57ac4c && out[3] == 0x9b00dbd8,
        "philox gives the published numbers for zeros");
  fm_philox(out, ones, ones);
  check(out[0] == 0x408f276d && out[1] == 0x41c83b0e && out[2] == 0xa20bc7c6 && out[3] == 0x6d5451fd,
        "philox gives the published numbers for ones");
  double sum = 0;
  bool inside = true;
  for (int i = 0; i < 100000; i++) {
    double u = fm_noise(7, 1, 12 + i / 1000, i % 1000);
    inside &= u > 0 && u < 1;
    sum += u;
  }
  check(inside && fabs(sum / 100000 - 0.5) < 0.005, "noise is uniform and never 0 or 1");
  check(fm_noise(7, 1, 5, 9) != fm_noise(7, 2, 5, 9) && fm_noise(7, 1, 5, 9) != fm_noise(7, 1, 6, 9) &&
        fm_noise(7, 1, 5, 9) != fm_noise(8, 1, 5, 9), "noise depends on seed, sample and index");
}

int main(void) {
  test_parameters();
  test_yarn();
  test_refusals();
  test_numbers();
  test_noise();
  return failed != 0;
}
