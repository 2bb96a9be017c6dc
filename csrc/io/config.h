/*
** config.h - config.json -> fm_config, every field checked.
** Field names are config.json's words. Absent keys get the family's defaults (transformers').
*/
#ifndef FM_IO_CONFIG_H
#define FM_IO_CONFIG_H

#include "base/json.h"

typedef enum fm_family  { FM_DEEPSEEK_V2, FM_DEEPSEEK_V3, FM_QWEN2 } fm_family;
typedef enum fm_scoring { FM_SOFTMAX, FM_SIGMOID } fm_scoring;
typedef enum fm_topk    { FM_GREEDY, FM_GROUP_LIMITED_GREEDY, FM_NOAUX_TC } fm_topk;
enum { FM_MAX_EOS = 8 };

typedef struct fm_config {
  fm_family family;
  int64_t vocab_size, hidden_size, intermediate_size, moe_intermediate_size;
  int64_t num_hidden_layers, num_nextn_predict_layers, first_k_dense_replace, moe_layer_freq;
  int64_t num_attention_heads, num_key_value_heads, head_dim;     /* head_dim: qwen2 only */
  int64_t q_lora_rank;                                            /* 0: a single q_proj */
  int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
  int64_t n_routed_experts, n_shared_experts, num_experts_per_tok, n_group, topk_group;
  fm_scoring scoring_func;
  fm_topk topk_method;
  bool norm_topk_prob;
  double routed_scaling_factor;
  double rms_norm_eps;
  double latent_norm_eps;        /* of q_a_layernorm and kv_a_layernorm: 1e-6 as in transformers */
  int64_t max_position_embeddings;
  double rope_theta;
  bool rope_interleave;          /* stored rope dims are pairs (2i, 2i+1); false: halves */
  struct {
    bool on;
    double factor, beta_fast, beta_slow, mscale, mscale_all_dim;
    int64_t original_max_position_embeddings;
  } yarn;
  bool tie_word_embeddings, attention_bias;
  bool fp8;                      /* quantization_config: fp8 blocks */
  int64_t weight_block_size[2];  /* rows, columns; 128, 128 */
  int32_t bos_token_id;          /* -1: none */
  int32_t eos_token_id[FM_MAX_EOS]; int n_eos;   /* config.json and generation_config.json together */
  float default_temperature, default_top_p;      /* generation_config.json; 1 when absent */
} fm_config;

/* Parses config.json's text. FM_EFORMAT, FM_EUNSUPPORTED (model_type, rope type, hidden_act, sliding window in use). */
fm_status fm_config_parse(fm_config *out, const char *text, size_t len, fm_error *err);
/* Reads dir/config.json and, when there, dir/generation_config.json. */
fm_status fm_config_load(fm_config *out, const char *dir, fm_error *err);

bool    fm_config_layer_is_moe(const fm_config *c, int64_t layer);   /* MTP layers too: layer >= num_hidden_layers */
int64_t fm_config_cache_width(const fm_config *c);   /* elements a token a layer: MLA latent + rope, GQA 2*kv*head_dim */
int64_t fm_config_qk_head_dim(const fm_config *c);
/* Attention's softmax scale, YaRN's m^2 included. */
double  fm_config_softmax_scale(const fm_config *c);
/* YaRN or plain inverse frequencies, dim/2 of them, and the amplitude of cos and sin. */
void    fm_config_inv_freq(const fm_config *c, double *inv_freq, double *amplitude);

/* ---- the tensors that a checkpoint of this config must hold -------------------------------- */
typedef struct fm_expect { char name[160]; int ndim; int64_t shape[4]; bool quantised; } fm_expect;
/* Calls visit for each expected tensor, per-expert form, MTP layers last. Stops at the first failure.
   Tied heads: no lm_head. The MTP layers' own embed_tokens and shared_head.head are not listed (duplicates). */
fm_status fm_config_expect(const fm_config *c, fm_status (*visit)(void *arg, const fm_expect *e), void *arg);
/* Parameters of main model and MTP module (unshared part). */
fm_status fm_config_parameters(const fm_config *c, int64_t *main_model, int64_t *mtp);

#endif
