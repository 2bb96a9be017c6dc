/*
** shard.c - what one rank holds of a model.
*/
#include "model/shard.h"

void fm_shard_make(fm_shard *s, const fm_config *cfg, fm_forms of, bool mtp, int rank) {
  int64_t n = cfg->num_hidden_layers;
  *s = (fm_shard){ .rank = rank, .of = of, .n_layers = n + mtp };
  s->t = rank % of.tp;
  s->d = rank / of.tp % of.dp;
  s->stage = rank / (of.tp * of.dp);
  s->e = rank % (of.tp * of.dp) % of.ep;
  s->layer = fm_part(n, of.pp, s->stage);
  s->end = s->stage == of.pp - 1 ? s->n_layers : fm_part(n, of.pp, s->stage + 1);
}

static fm_status check_heads(int tp, const fm_config *cfg, fm_error *err) {
  int64_t heads = cfg->family == FM_QWEN2 ? cfg->num_key_value_heads : cfg->num_attention_heads;
  const char *word = cfg->family == FM_QWEN2 ? "num_key_value_heads" : "num_attention_heads";
  if (cfg->num_attention_heads % tp == 0 && heads % tp == 0) return FM_OK;
  return fm_fail(err, FM_EUNSUPPORTED, "tp = %d does not divide %s = %lld", tp, word, (long long)heads);
}

static fm_status check_experts(const fm_forms *f, const fm_config *cfg, fm_error *err) {
  int64_t m = cfg->moe_intermediate_size;
  if (!cfg->n_routed_experts) {
    if (f->ep == 1 || f->ep == f->dp * f->tp) return FM_OK;
    return fm_fail(err, FM_EUNSUPPORTED, "ep = %d: the model has no experts", f->ep);
  }
  if (f->dp * f->tp % f->ep || (f->ep % f->tp && f->tp % f->ep))
    return fm_fail(err, FM_EUNSUPPORTED, "ep = %d must divide dp * tp = %d, and be a multiple of tp = %d or divide it", f->ep,
                   f->dp * f->tp, f->tp);
  if (cfg->n_routed_experts < f->ep)
    return fm_fail(err, FM_EUNSUPPORTED, "ep = %d: the model has %lld experts", f->ep, (long long)cfg->n_routed_experts);
  if (f->ep == 1 && m < f->tp)
    return fm_fail(err, FM_EUNSUPPORTED, "tp = %d: moe_intermediate_size is %lld", f->tp, (long long)m);
  return FM_OK;
}

fm_status fm_forms_check(const fm_forms *f, const fm_config *cfg, int n, fm_error *err) {
  if (f->pp * f->dp * f->tp != n) {
    fm_fail(err, FM_EUNSUPPORTED, "pp * dp * tp = %d * %d * %d is not the number of devices, %d", f->pp, f->dp, f->tp, n);
    return fm_hint(err, FM_EUNSUPPORTED, "name as many devices, e.g. device = {\"cpu\", \"cpu\"}; what is left out of parallel follows");
  }
  if (n > FM_MOST_RANKS || f->pp > FM_MOST_STAGES)
    return fm_fail(err, FM_EUNSUPPORTED, "%d ranks in %d stages: at most %d in %d", n, f->pp, FM_MOST_RANKS, FM_MOST_STAGES);
  if (f->pp > cfg->num_hidden_layers)
    return fm_fail(err, FM_EUNSUPPORTED, "pp = %d: the model has %lld layers", f->pp, (long long)cfg->num_hidden_layers);
  if (cfg->intermediate_size < f->tp)
    return fm_fail(err, FM_EUNSUPPORTED, "tp = %d: intermediate_size is %lld", f->tp, (long long)cfg->intermediate_size);
  TRY(check_heads(f->tp, cfg, err));
  return check_experts(f, cfg, err);
}
