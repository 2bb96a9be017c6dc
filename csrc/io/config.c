/*
** config.c - config.json -> fm_config, every field checked.
*/
#include "io/config.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

enum { MAX_CONFIG = 1 << 20 };           /* bytes of a config.json */

typedef struct key { const char *name; size_t at; int64_t least, most; } key;
#define AT(f) offsetof(fm_config, f)
enum { BIG = 1 << 24 };

static const key common[] = {
  { "vocab_size", AT(vocab_size), 1, BIG }, { "hidden_size", AT(hidden_size), 1, 1 << 20 },
  { "intermediate_size", AT(intermediate_size), 1, BIG },
  { "num_hidden_layers", AT(num_hidden_layers), 1, 4096 },
  { "num_attention_heads", AT(num_attention_heads), 1, 4096 },
  { "num_key_value_heads", AT(num_key_value_heads), 1, 4096 },
  { "max_position_embeddings", AT(max_position_embeddings), 1, BIG } };

static const key deepseek[] = {
  { "moe_intermediate_size", AT(moe_intermediate_size), 1, BIG },
  { "first_k_dense_replace", AT(first_k_dense_replace), 0, 4096 },
  { "moe_layer_freq", AT(moe_layer_freq), 1, 4096 },
  { "num_nextn_predict_layers", AT(num_nextn_predict_layers), 0, 64 },
  { "q_lora_rank", AT(q_lora_rank), 1, 1 << 20 }, { "kv_lora_rank", AT(kv_lora_rank), 1, 1 << 20 },
  { "qk_nope_head_dim", AT(qk_nope_head_dim), 1, 1 << 16 },
  { "qk_rope_head_dim", AT(qk_rope_head_dim), 2, 1 << 16 }, { "v_head_dim", AT(v_head_dim), 1, 1 << 16 },
  { "n_routed_experts", AT(n_routed_experts), 1, 1 << 16 },
  { "n_shared_experts", AT(n_shared_experts), 0, 1 << 10 },
  { "num_experts_per_tok", AT(num_experts_per_tok), 1, 1 << 10 }, { "n_group", AT(n_group), 1, 1 << 16 },
  { "topk_group", AT(topk_group), 1, 1 << 16 } };

static fm_status read_keys(fm_config *c, const fm_json *j, const key *k, size_t n, fm_error *err) {
  for (size_t i = 0; i < n; i++) {
    int64_t *v = (int64_t *)((char *)c + k[i].at);
    TRY(fm_json_int(j, k[i].name, v, err));
    if (!fm_json_get(j, k[i].name)) continue;
    if (*v < k[i].least || *v > k[i].most)
      return fm_fail(err, FM_EFORMAT, "config.json: %s is %lld, expected %lld to %lld", k[i].name, (long long)*v,
                     (long long)k[i].least, (long long)k[i].most);
  }
  return FM_OK;
}

/* ---- defaults ------------------------------------------------------------------------------------- */

static void defaults(fm_config *c) {
  bool v3 = c->family == FM_DEEPSEEK_V3, qwen = c->family == FM_QWEN2;
  c->max_position_embeddings = qwen ? 32768 : v3 ? 4096 : 2048;
  c->rms_norm_eps = c->latent_norm_eps = 1e-6;
  c->rope_theta = 10000;
  c->rope_interleave = !qwen;
  c->bos_token_id = -1;
  c->default_temperature = c->default_top_p = 1;
  c->weight_block_size[0] = c->weight_block_size[1] = 128;
  c->moe_layer_freq = c->n_group = c->topk_group = 1;
  if (qwen) return;
  c->kv_lora_rank = 512;
  c->qk_nope_head_dim = c->v_head_dim = 128;
  c->qk_rope_head_dim = 64;
  c->num_experts_per_tok = v3 ? 8 : 0;
  c->n_routed_experts = v3 ? 256 : 0;
  c->n_shared_experts = v3 ? 1 : 0;
  c->moe_intermediate_size = v3 ? 2048 : 1407;
  c->first_k_dense_replace = v3 ? 3 : 0;
  c->n_group = v3 ? 8 : 1;
  c->topk_group = v3 ? 4 : 1;
  c->q_lora_rank = 0;
  c->norm_topk_prob = v3;
  c->routed_scaling_factor = v3 ? 2.5 : 1;
  c->scoring_func = v3 ? FM_SIGMOID : FM_SOFTMAX;
  c->topk_method = v3 ? FM_NOAUX_TC : FM_GREEDY;
}

/* ---- words ------------------------------------------------------------------------------------------ */

static fm_status word(const fm_json *j, const char *name, const char *const *words, int *out, fm_error *err) {
  const char *s = NULL;
  TRY(fm_json_str(j, name, &s, err));
  for (int i = 0; s && words[i]; i++)
    if (strcmp(s, words[i]) == 0) {
      *out = i;
      return FM_OK;
    }
  return s ? fm_fail(err, FM_EUNSUPPORTED, "config.json: %s \"%.64s\" is not supported", name, s) : FM_OK;
}

static fm_status family(fm_config *c, const fm_json *j, fm_error *err) {
  static const char *const words[] = { "deepseek_v2", "deepseek_v3", "qwen2", NULL };
  int f = -1;
  TRY(word(j, "model_type", words, &f, err));
  if (f < 0) return fm_fail(err, FM_EFORMAT, "config.json has no model_type");
  c->family = (fm_family)f;
  return FM_OK;
}

static fm_status routing(fm_config *c, const fm_json *j, fm_error *err) {
  static const char *const scores[] = { "softmax", "sigmoid", NULL };
  static const char *const methods[] = { "greedy", "group_limited_greedy", "noaux_tc", NULL };
  int s = (int)c->scoring_func, m = (int)c->topk_method;
  TRY(word(j, "scoring_func", scores, &s, err));
  TRY(word(j, "topk_method", methods, &m, err));
  c->scoring_func = (fm_scoring)s;
  c->topk_method = (fm_topk)m;
  TRY(fm_json_bool(j, "norm_topk_prob", &c->norm_topk_prob, err));
  return fm_json_num(j, "routed_scaling_factor", &c->routed_scaling_factor, err);
}

/* ---- rope, both spellings ------------------------------------------------------------------------------ */

static fm_status yarn(fm_config *c, const fm_json *r, fm_error *err) {
  int64_t orig = c->max_position_embeddings;
  double mscale = 1, all = 0;
  c->yarn.on = true;
  c->yarn.factor = 1;
  c->yarn.beta_fast = 32;
  c->yarn.beta_slow = 1;
  TRY(fm_json_num(r, "factor", &c->yarn.factor, err));
  TRY(fm_json_num(r, "beta_fast", &c->yarn.beta_fast, err));
  TRY(fm_json_num(r, "beta_slow", &c->yarn.beta_slow, err));
  TRY(fm_json_num(r, "mscale", &mscale, err));
  TRY(fm_json_num(r, "mscale_all_dim", &all, err));
  TRY(fm_json_int(r, "original_max_position_embeddings", &orig, err));
  c->yarn.mscale = mscale;
  c->yarn.mscale_all_dim = all;
  c->yarn.original_max_position_embeddings = orig;
  if (!(c->yarn.factor >= 1 && c->yarn.factor <= 1e6) || !(c->yarn.beta_fast > 0) || !(c->yarn.beta_slow > 0) ||
      orig < 1 || orig > BIG || !(fabs(mscale) < 1e3) || !(fabs(all) < 1e3))
    return fm_fail(err, FM_EFORMAT, "config.json: the yarn settings of rope are out of range");
  return FM_OK;
}

static fm_status rope(fm_config *c, const fm_json *j, fm_error *err) {
  static const char *const types[] = { "default", "yarn", NULL };
  const fm_json *r = fm_json_get(j, "rope_parameters");
  if (!r) r = fm_json_get(j, "rope_scaling");
  int type = 0;
  TRY(fm_json_num(j, "rope_theta", &c->rope_theta, err));
  TRY(fm_json_bool(j, "rope_interleave", &c->rope_interleave, err));
  if (r && !cJSON_IsObject(r)) return fm_fail(err, FM_EFORMAT, "config.json: the rope settings are no object");
  if (r) {
    TRY(fm_json_num(r, "rope_theta", &c->rope_theta, err));
    TRY(word(r, "type", types, &type, err));
    TRY(word(r, "rope_type", types, &type, err));
    if (type == 1) TRY(yarn(c, r, err));
  }
  if (!(c->rope_theta > 1 && c->rope_theta < 1e12))
    return fm_fail(err, FM_EFORMAT, "config.json: rope_theta is %g", c->rope_theta);
  return FM_OK;
}

/* ---- quantisation and ids ------------------------------------------------------------------------------ */

static fm_status quantisation(fm_config *c, const fm_json *j, fm_error *err) {
  static const char *const methods[] = { "fp8", NULL };
  const fm_json *q = fm_json_get(j, "quantization_config");
  int method = -1;
  if (!q) return FM_OK;
  if (!cJSON_IsObject(q)) return fm_fail(err, FM_EFORMAT, "config.json: quantization_config is no object");
  TRY(word(q, "quant_method", methods, &method, err));
  const fm_json *b = fm_json_get(q, "weight_block_size");
  if (method < 0 || !b) return fm_fail(err, FM_EUNSUPPORTED, "config.json: quantization_config without fp8 blocks");
  const cJSON *r = cJSON_GetArrayItem(b, 0), *k = cJSON_GetArrayItem(b, 1);
  if (cJSON_GetArraySize(b) != 2 || !cJSON_IsNumber(r) || !cJSON_IsNumber(k) || r->valuedouble != 128 ||
      k->valuedouble != 128)
    return fm_fail(err, FM_EUNSUPPORTED, "config.json: weight_block_size other than [128, 128]");
  c->fp8 = true;
  return FM_OK;
}

static fm_status one_eos(fm_config *c, const fm_json *v, fm_error *err) {
  if (!cJSON_IsNumber(v) || v->valuedouble != floor(v->valuedouble) || v->valuedouble < 0 || v->valuedouble > BIG)
    return fm_fail(err, FM_EFORMAT, "eos_token_id: no token id");
  int32_t id = (int32_t)v->valuedouble;
  for (int i = 0; i < c->n_eos; i++)
    if (c->eos_token_id[i] == id) return FM_OK;
  if (c->n_eos == FM_MAX_EOS) return fm_fail(err, FM_EUNSUPPORTED, "eos_token_id: more than %d", FM_MAX_EOS);
  c->eos_token_id[c->n_eos++] = id;
  return FM_OK;
}

static fm_status eos(fm_config *c, const fm_json *j, fm_error *err) {
  const fm_json *e = fm_json_get(j, "eos_token_id");
  if (!e) return FM_OK;
  if (!cJSON_IsArray(e)) return one_eos(c, e, err);
  const cJSON *v;
  cJSON_ArrayForEach(v, e) TRY(one_eos(c, v, err));
  return FM_OK;
}

static fm_status bos(fm_config *c, const fm_json *j, fm_error *err) {
  int64_t id = c->bos_token_id;
  TRY(fm_json_int(j, "bos_token_id", &id, err));
  if (id < -1 || id > BIG) return fm_fail(err, FM_EFORMAT, "bos_token_id: %lld is no token id", (long long)id);
  c->bos_token_id = (int32_t)id;
  return FM_OK;
}

/* ---- what must agree -------------------------------------------------------------------------------------- */

static fm_status check_heads(const fm_config *c, fm_error *err) {
  if (c->family != FM_QWEN2) {
    if (c->qk_rope_head_dim % 2)
      return fm_fail(err, FM_EFORMAT, "config.json: qk_rope_head_dim is odd (%lld)", (long long)c->qk_rope_head_dim);
    return FM_OK;
  }
  if (c->num_attention_heads % c->num_key_value_heads)
    return fm_fail(err, FM_EFORMAT, "config.json: %lld attention heads on %lld of keys and values",
                   (long long)c->num_attention_heads, (long long)c->num_key_value_heads);
  if (c->head_dim < 2 || c->head_dim % 2 || c->head_dim > 1 << 16)
    return fm_fail(err, FM_EFORMAT, "config.json: head_dim is %lld", (long long)c->head_dim);
  return FM_OK;
}

static fm_status check_experts(const fm_config *c, fm_error *err) {
  if (!c->n_routed_experts) return FM_OK;
  int64_t e = c->n_routed_experts, k = c->num_experts_per_tok, g = c->n_group;
  if (k < 1 || k > e)
    return fm_fail(err, FM_EFORMAT, "config.json: num_experts_per_tok is %lld of %lld", (long long)k, (long long)e);
  if (c->topk_method == FM_GREEDY) return FM_OK;
  if (e % g || c->topk_group > g || c->topk_group * (e / g) < k)
    return fm_fail(err, FM_EFORMAT, "config.json: %lld experts in %lld groups, %lld kept, cannot give %lld",
                   (long long)e, (long long)g, (long long)c->topk_group, (long long)k);
  return FM_OK;
}

static fm_status check(const fm_config *c, fm_error *err) {
  TRY(check_heads(c, err));
  TRY(check_experts(c, err));
  if (!(c->rms_norm_eps > 0 && c->rms_norm_eps < 1))
    return fm_fail(err, FM_EFORMAT, "config.json: rms_norm_eps is %g", c->rms_norm_eps);
  if (!(fabs(c->routed_scaling_factor) < 1e6))
    return fm_fail(err, FM_EFORMAT, "config.json: routed_scaling_factor is %g", c->routed_scaling_factor);
  if (c->attention_bias)
    return fm_fail(err, FM_EUNSUPPORTED, "config.json: attention_bias is not supported for this family");
  return FM_OK;
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static const char *const needed[] = { "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                      "num_attention_heads" };

static fm_status parse(fm_config *c, const fm_json *j, fm_error *err) {
  static const char *const acts[] = { "silu", NULL };
  int act = 0;
  bool sliding = false;
  if (!cJSON_IsObject(j)) return fm_fail(err, FM_EFORMAT, "config.json is no object");
  TRY(family(c, j, err));
  defaults(c);
  for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
    if (!fm_json_get(j, needed[i])) return fm_fail(err, FM_EFORMAT, "config.json has no %s", needed[i]);
  TRY(fm_json_int(j, "num_attention_heads", &c->num_key_value_heads, err));   // the default
  TRY(read_keys(c, j, common, sizeof common / sizeof *common, err));
  TRY(word(j, "hidden_act", acts, &act, err));
  TRY(fm_json_num(j, "rms_norm_eps", &c->rms_norm_eps, err));
  TRY(fm_json_bool(j, "tie_word_embeddings", &c->tie_word_embeddings, err));
  if (c->family == FM_QWEN2) {
    c->head_dim = c->hidden_size / c->num_attention_heads;
    TRY(fm_json_int(j, "head_dim", &c->head_dim, err));
    TRY(fm_json_bool(j, "use_sliding_window", &sliding, err));
    if (sliding) return fm_fail(err, FM_EUNSUPPORTED, "config.json: use_sliding_window is not supported");
  } else {
    TRY(read_keys(c, j, deepseek, sizeof deepseek / sizeof *deepseek, err));
    TRY(routing(c, j, err));
    TRY(fm_json_bool(j, "attention_bias", &c->attention_bias, err));
  }
  TRY(rope(c, j, err));
  TRY(quantisation(c, j, err));
  TRY(bos(c, j, err));
  TRY(eos(c, j, err));
  return check(c, err);
}

/* A message about a field says which file it stands in. */
static void name_file(fm_error *err, const char *file) {
  char said[sizeof err->message];
  if (!err || strncmp(err->message, file, strlen(file)) == 0) return;
  snprintf(said, sizeof said, "%s", err->message);
  fm_fail(err, err->code, "%s: %s", file, said);
}

fm_status fm_config_parse(fm_config *out, const char *text, size_t len, fm_error *err) {
  fm_json *j;
  fm_config c = { 0 };
  if (len > MAX_CONFIG) return fm_fail(err, FM_EFORMAT, "config.json: %zu bytes are too many", len);
  TRY(fm_json_parse(&j, text, len, "config.json", err));
  fm_status status = parse(&c, j, err);
  fm_json_free(j);
  if (status == FM_OK) *out = c;
  else name_file(err, "config.json");
  return status;
}

static fm_status generation(fm_config *c, const fm_json *j, fm_error *err) {
  bool sample = false;
  double t = 1, p = 1;
  if (!cJSON_IsObject(j)) return fm_fail(err, FM_EFORMAT, "generation_config.json is no object");
  TRY(eos(c, j, err));
  TRY(fm_json_bool(j, "do_sample", &sample, err));
  TRY(fm_json_num(j, "temperature", &t, err));
  TRY(fm_json_num(j, "top_p", &p, err));
  if (sample && t >= 0 && t < 100) c->default_temperature = (float)t;
  if (sample && p > 0 && p <= 1) c->default_top_p = (float)p;
  return FM_OK;
}

fm_status fm_config_load(fm_config *out, const char *dir, fm_error *err) {
  char path[4096];
  fm_json *j;
  fm_config c = { 0 };
  snprintf(path, sizeof path, "%s/config.json", dir);
  TRY(fm_json_load(&j, path, MAX_CONFIG, err));
  fm_status status = parse(&c, j, err);
  fm_json_free(j);
  if (status != FM_OK) name_file(err, "config.json");
  TRY(status);
  snprintf(path, sizeof path, "%s/generation_config.json", dir);
  if (fm_file_exists(path)) {                      // most checkpoints have one, none needs it
    TRY(fm_json_load(&j, path, MAX_CONFIG, err));
    status = generation(&c, j, err);
    fm_json_free(j);
    if (status != FM_OK) name_file(err, "generation_config.json");
  }
  if (status == FM_OK) *out = c;
  return status;
}
