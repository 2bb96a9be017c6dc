/*
** expect.c - what follows from a config: derived sizes, rotation frequencies, and the tensors of a checkpoint.
*/
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "io/config.h"

bool fm_config_layer_is_moe(const fm_config *c, int64_t layer) {
  if (c->family == FM_QWEN2 || !c->n_routed_experts) return false;
  return layer >= c->num_hidden_layers || (layer >= c->first_k_dense_replace && layer % c->moe_layer_freq == 0);
}

int64_t fm_config_cache_width(const fm_config *c) {
  if (c->family == FM_QWEN2) return 2 * c->num_key_value_heads * c->head_dim;
  return c->kv_lora_rank + c->qk_rope_head_dim;
}

int64_t fm_config_qk_head_dim(const fm_config *c) {
  return c->family == FM_QWEN2 ? c->head_dim : c->qk_nope_head_dim + c->qk_rope_head_dim;
}

/* YaRN's m(s, a): how much attention is sharpened when the context is stretched s times. */
static double sharpen(double s, double a) { return s <= 1 ? 1 : 0.1 * a * log(s) + 1; }

double fm_config_softmax_scale(const fm_config *c) {
  double scale = 1 / sqrt((double)fm_config_qk_head_dim(c));
  double m = c->yarn.on && c->yarn.mscale_all_dim != 0 ? sharpen(c->yarn.factor, c->yarn.mscale_all_dim) : 1;
  return scale * m * m;
}

/* The dimension that turns `rotations` times over the original context. Source: YaRN (Peng et al., 2023), section 3.2. */
static double correction(const fm_config *c, double dim, double rotations) {
  double len = (double)c->yarn.original_max_position_embeddings;
  return dim * log(len / (rotations * 2 * M_PI)) / (2 * log(c->rope_theta));
}

void fm_config_inv_freq(const fm_config *c, double *inv_freq, double *amplitude) {
  int64_t dim = c->family == FM_QWEN2 ? c->head_dim : c->qk_rope_head_dim;
  double d = (double)dim, low = 0, high = 0;
  *amplitude = 1;
  if (c->yarn.on) {
    low = fmax(floor(correction(c, d, c->yarn.beta_fast)), 0);
    high = fmin(ceil(correction(c, d, c->yarn.beta_slow)), d - 1);
    if (low == high) high += 0.001;
    *amplitude = sharpen(c->yarn.factor, c->yarn.mscale) / sharpen(c->yarn.factor, c->yarn.mscale_all_dim);
  }
  for (int64_t i = 0; i < dim / 2; i++) {
    double f = pow(c->rope_theta, -2 * (double)i / d);
    double ramp = c->yarn.on ? fmin(fmax(((double)i - low) / (high - low), 0), 1) : 0;
    inv_freq[i] = f / (c->yarn.on ? c->yarn.factor : 1) * ramp + f * (1 - ramp);
  }
}

/* ---- tensors ------------------------------------------------------------------------------------- */

typedef struct walk {
  const fm_config *c;
  fm_status (*visit)(void *arg, const fm_expect *e);
  void *arg;
  int64_t layer;
} walk;

static fm_status give(const walk *w, bool quantised, int64_t rows, int64_t cols, const char *name) {
  fm_expect e = { .ndim = cols ? 2 : 1, .shape = { rows, cols }, .quantised = quantised && w->c->fp8 };
  if (w->layer >= 0) snprintf(e.name, sizeof e.name, "model.layers.%lld.%s", (long long)w->layer, name);
  else snprintf(e.name, sizeof e.name, "%s", name);
  return w->visit(w->arg, &e);
}

static fm_status give_mlp(const walk *w, const char *prefix, int64_t width) {
  static const char *const part[] = { "gate_proj", "up_proj", "down_proj" };
  char name[96];
  int64_t d = w->c->hidden_size;
  for (int i = 0; i < 3; i++) {
    snprintf(name, sizeof name, "%s.%s.weight", prefix, part[i]);
    TRY(give(w, true, i < 2 ? width : d, i < 2 ? d : width, name));
  }
  return FM_OK;
}

static fm_status give_mla(const walk *w) {
  const fm_config *c = w->c;
  int64_t h = c->num_attention_heads, d = c->hidden_size, qk = fm_config_qk_head_dim(c), r = c->kv_lora_rank;
  if (c->q_lora_rank) {
    TRY(give(w, true, c->q_lora_rank, d, "self_attn.q_a_proj.weight"));
    TRY(give(w, false, c->q_lora_rank, 0, "self_attn.q_a_layernorm.weight"));
    TRY(give(w, true, h * qk, c->q_lora_rank, "self_attn.q_b_proj.weight"));
  } else {
    TRY(give(w, true, h * qk, d, "self_attn.q_proj.weight"));
  }
  TRY(give(w, true, r + c->qk_rope_head_dim, d, "self_attn.kv_a_proj_with_mqa.weight"));
  TRY(give(w, false, r, 0, "self_attn.kv_a_layernorm.weight"));
  TRY(give(w, true, h * (c->qk_nope_head_dim + c->v_head_dim), r, "self_attn.kv_b_proj.weight"));
  return give(w, true, d, h * c->v_head_dim, "self_attn.o_proj.weight");
}

static fm_status give_gqa(const walk *w) {
  static const char *const part[] = { "q", "k", "v" };
  const fm_config *c = w->c;
  char name[64];
  for (int i = 0; i < 3; i++) {
    int64_t rows = (i ? c->num_key_value_heads : c->num_attention_heads) * c->head_dim;
    snprintf(name, sizeof name, "self_attn.%s_proj.weight", part[i]);
    TRY(give(w, true, rows, c->hidden_size, name));
    snprintf(name, sizeof name, "self_attn.%s_proj.bias", part[i]);
    TRY(give(w, false, rows, 0, name));
  }
  return give(w, true, c->hidden_size, c->num_attention_heads * c->head_dim, "self_attn.o_proj.weight");
}

static fm_status give_moe(const walk *w) {
  const fm_config *c = w->c;
  char name[64];
  TRY(give(w, false, c->n_routed_experts, c->hidden_size, "mlp.gate.weight"));
  if (c->topk_method == FM_NOAUX_TC) TRY(give(w, false, c->n_routed_experts, 0, "mlp.gate.e_score_correction_bias"));
  for (int64_t i = 0; i < c->n_routed_experts; i++) {
    snprintf(name, sizeof name, "mlp.experts.%lld", (long long)i);
    TRY(give_mlp(w, name, c->moe_intermediate_size));
  }
  return c->n_shared_experts
         ? give_mlp(w, "mlp.shared_experts", c->n_shared_experts * c->moe_intermediate_size) : FM_OK;
}

static fm_status give_layer(walk *w, int64_t layer) {
  const fm_config *c = w->c;
  int64_t d = c->hidden_size;
  w->layer = layer;
  if (layer >= c->num_hidden_layers) {
    TRY(give(w, false, d, 0, "enorm.weight"));
    TRY(give(w, false, d, 0, "hnorm.weight"));
    TRY(give(w, false, d, 2 * d, "eh_proj.weight"));
    TRY(give(w, false, d, 0, "shared_head.norm.weight"));
  }
  TRY(give(w, false, d, 0, "input_layernorm.weight"));
  TRY(give(w, false, d, 0, "post_attention_layernorm.weight"));
  TRY(c->family == FM_QWEN2 ? give_gqa(w) : give_mla(w));
  return fm_config_layer_is_moe(c, layer) ? give_moe(w) : give_mlp(w, "mlp", c->intermediate_size);
}

fm_status fm_config_expect(const fm_config *c, fm_status (*visit)(void *arg, const fm_expect *e), void *arg) {
  walk w = { c, visit, arg, -1 };
  TRY(give(&w, false, c->vocab_size, c->hidden_size, "model.embed_tokens.weight"));
  TRY(give(&w, false, c->hidden_size, 0, "model.norm.weight"));
  if (!c->tie_word_embeddings) TRY(give(&w, false, c->vocab_size, c->hidden_size, "lm_head.weight"));
  for (int64_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++) TRY(give_layer(&w, i));
  return FM_OK;
}

typedef struct sum { int64_t part[2], first_mtp; } sum;

static fm_status add_up(void *arg, const fm_expect *e) {
  sum *s = arg;
  long long layer = -1;
  sscanf(e->name, "model.layers.%lld.", &layer);
  s->part[layer >= s->first_mtp] += e->shape[0] * (e->ndim == 2 ? e->shape[1] : 1);
  return FM_OK;
}

fm_status fm_config_parameters(const fm_config *c, int64_t *main_model, int64_t *mtp) {
  sum s = { { 0, 0 }, c->num_hidden_layers };
  TRY(fm_config_expect(c, add_up, &s));
  *main_model = s.part[0];
  *mtp = s.part[1];
  return FM_OK;
}
