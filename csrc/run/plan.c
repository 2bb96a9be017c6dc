/*
** plan.c - what follows from config, options and devices: the setup of a model, and what it takes in memory.
*/
#include "run/plan.h"

#include <string.h>

/* ---- options ------------------------------------------------------------------------------------ */

fm_load_options fm_load_options_default(void) {
  return (fm_load_options){ .mtp = -1, .prefix_bytes = -1 };
}

/* The dtype of an option's word; FM_I32 for "auto" and none. */
static fm_dtype named(const char *word) {
  static const struct { const char *word; fm_dtype t; } names[] = {
    { "f32", FM_F32 }, { "bf16", FM_BF16 }, { "fp8", FM_F8_E4M3 } };
  for (size_t i = 0; word && i < sizeof names / sizeof *names; i++)
    if (strcmp(word, names[i].word) == 0) return names[i].t;
  return FM_I32;
}

/* What the checkpoint's own dtype asks of a device that can do it: f32 stays exact, fp8 is fp8, all else bf16. */
static fm_dtype own_arithmetic(const fm_backend *ops, fm_dtype stored) {
  fm_dtype want = stored == FM_F32 || stored == FM_F8_E4M3 ? stored : FM_BF16;
  return ops->arithmetic >> want & 1 ? want : FM_F32;
}

static fm_status check_dtype(fm_setup *s, const fm_backend *ops, const fm_config *g, fm_dtype stored, const fm_load_options *o,
                             fm_error *err) {
  fm_dtype d = named(o->dtype), k = named(o->cache_dtype);
  s->arithmetic = d == FM_I32 ? own_arithmetic(ops, stored) : d;
  if (!(ops->arithmetic >> s->arithmetic & 1)) {
    fm_fail(err, FM_EUNSUPPORTED, "dtype \"%s\": the %s computes in f32", o->dtype, ops->name);
    return fm_hint(err, FM_EUNSUPPORTED, "stored bf16 and fp8 weights stay as they are either way");
  }
  s->cache = k != FM_I32 ? k : s->arithmetic == FM_F32 ? FM_F32 : FM_BF16;
  if (!(ops->cache_dtypes >> s->cache & 1))
    return fm_fail(err, FM_EUNSUPPORTED, "cache_dtype \"%s\": the %s has none of it", o->cache_dtype, ops->name);
  if (s->cache == FM_F8_E4M3 && g->family == FM_QWEN2) {
    fm_fail(err, FM_EUNSUPPORTED, "cache_dtype \"fp8\" is for the latent of DeepSeek's models, qwen2 has none");
    return fm_hint(err, FM_EUNSUPPORTED, "\"bf16\" halves an f32 cache");
  }
  return FM_OK;
}

fm_status fm_setup_check(const fm_config *g, const fm_load_options *o, fm_error *err) {
  int64_t limit = g->max_position_embeddings;
  if (o->ctx < 0 || o->ctx > limit)
    return fm_fail(err, FM_EOVERFLOW, "ctx is %lld, the model's max_position_embeddings %lld", (long long)o->ctx,
                   (long long)limit);
  if (o->seqs < 0 || o->seqs > 1 << 16)
    return fm_fail(err, FM_EINVAL, "seqs must be 1 to 65536, got %lld", (long long)o->seqs);
  if (o->threads < 0 || o->threads > 1024)
    return fm_fail(err, FM_EINVAL, "threads must be 0 to 1024, got %d", o->threads);
  if (o->chunk < 0 || o->budget < 0 || o->chunk > limit || o->budget > 1 << 16)
    return fm_fail(err, FM_EINVAL, "chunk must be 1 to %lld and budget 1 to 65536, got %lld and %lld", (long long)limit,
                   (long long)o->chunk, (long long)o->budget);
  if (o->cache_bytes < 0 || o->prefix_bytes < -1)
    return fm_fail(err, FM_EINVAL, "cache_bytes and prefix_bytes must be 0 or more");
  if (o->mtp < FM_MTP_AUTO || o->mtp > FM_MAX_DRAFTS)
    return fm_fail(err, FM_EINVAL, "mtp must be at most %d drafts, got %d", FM_MAX_DRAFTS, o->mtp);
  if (o->experts && strcmp(o->experts, "auto") != 0 && strcmp(o->experts, "host") != 0)
    return fm_fail(err, FM_EINVAL, "experts must be \"auto\" or \"host\", got \"%s\"", o->experts);
  if (o->mtp > 0 && !g->num_nextn_predict_layers)
    return fm_fail(err, FM_EUNSUPPORTED, "mtp: the checkpoint has no MTP layer");
  return FM_OK;
}

/* Pages of the cache, and how many of them prefixes may keep. */
static fm_status size_cache(fm_setup *s, const fm_config *g, const fm_load_options *o, fm_error *err) {
  int64_t page = fm_kv_page_size(g, s->cache, s->drafts > 0);
  // one page more a sequence: a last page shared after a fork is copied before the old one is free
  int64_t each = (s->ctx + FM_PAGE - 1) / FM_PAGE + 1;
  int dp = s->forms.dp;                  // each group of ranks has pages for its share of the sequences
  s->n_pages = (s->seqs + dp - 1) / dp * each * dp;
  if (o->cache_bytes && o->cache_bytes / page < s->n_pages) s->n_pages = o->cache_bytes / page / dp * dp;
  if (s->n_pages < each * dp)
    return fm_hint(err, fm_fail(err, FM_ELIMIT, "cache_bytes = %lld does not hold one sequence of %lld tokens",
                                (long long)o->cache_bytes, (long long)s->ctx),
                   "%lld bytes do", (long long)(each * page * dp));
  s->prefix_pages = o->prefix_bytes < 0 ? s->n_pages : o->prefix_bytes / page;
  return FM_OK;
}

fm_status fm_setup_make(fm_setup *s, const fm_backend *ops, const fm_config *g, fm_dtype stored, const fm_load_options *o,
                        fm_error *err) {
  TRY(check_dtype(s, ops, g, stored, o, err));
  s->seqs = o->seqs ? o->seqs : 4;
  TRY(fm_forms_choose(&s->forms, o, g, (double)fm_dtype_size(stored), s->seqs, err));
  s->n_ranks = fm_device_count(o->device);
  if (s->n_ranks > 1 && !ops->comm && ops->open)
    return fm_fail(err, FM_EUNSUPPORTED, "devices of the %s do not work together in this version", ops->name);
  if (s->forms.ep > 1 && ops->upload && ops->open && !ops->experts_of)
    return fm_hint(err, fm_fail(err, FM_EUNSUPPORTED, "ep = %d: experts are not spread over devices of the %s", s->forms.ep, ops->name),
                   "parallel = { tp = %d } splits each of them", s->n_ranks);
  int64_t limit = g->max_position_embeddings;
  s->ctx = o->ctx ? o->ctx : (limit < 4096 ? limit : 4096);
  s->host_experts = o->experts && strcmp(o->experts, "host") == 0 && ops->upload && g->n_routed_experts > 0;
  s->drafts = g->num_nextn_predict_layers ? (o->mtp < 0 ? 1 : o->mtp) : 0;
  if (o->mtp == FM_MTP_AUTO && s->drafts) s->drafts = FM_AUTO_DRAFTS;
  if (s->host_experts && s->n_ranks > 1) return fm_fail(err, FM_EUNSUPPORTED, "experts = \"host\" is for one device");
  s->budget = o->budget ? o->budget : (o->chunk > ops->chunk ? o->chunk : ops->chunk);
  s->chunk = o->chunk ? o->chunk : s->budget;
  return size_cache(s, g, o, err);
}

/* ---- plan --------------------------------------------------------------------------------------- */

int64_t fm_setup_scratch(const fm_config *g, const fm_backend *ops, const fm_setup *s) {
  int64_t qk = g->family == FM_QWEN2 ? g->head_dim : fm_config_qk_head_dim(g);
  int64_t attn = g->num_attention_heads * (qk + (g->family == FM_QWEN2 ? g->head_dim : g->v_head_dim))
                 + g->q_lora_rank + fm_config_cache_width(g) + g->hidden_size;
  int64_t wide = g->n_routed_experts
                 ? g->num_experts_per_tok * (2 * g->moe_intermediate_size + 2 * g->hidden_size) : 0;
  int64_t mlp = 2 * g->intermediate_size + g->hidden_size;
  wide = wide > mlp ? wide : mlp;
  int64_t drafts = s->drafts && s->drafts < FM_AUTO_DRAFTS ? FM_AUTO_DRAFTS : s->drafts;
  int64_t rows = ops->upload ? s->seqs * (1 + drafts) : 8;
  int64_t wide_rows = s->budget > ops->chunk ? s->budget : ops->chunk;
  int64_t size = wide_rows * (3 * g->hidden_size + (attn > wide ? attn : wide)) * 4 + rows * g->vocab_size * 4;
  // taken once and never grown, with room for what operations keep in between
  return ops->upload ? 2 * size + ((int64_t)128 << 20) + 128 * (int64_t)g->vocab_size * 4 : size;
}

fm_dtype fm_stored_dtype(const fm_store *store) {
  fm_dtype best = FM_F32;                          // any f8 makes it an f8 checkpoint, else any bf16 or f16 counts
  for (int64_t i = 0; i < fm_store_count(store); i++) {
    fm_dtype t = fm_store_at(store, i)->t.dtype;
    if (t == FM_F8_E4M3) return t;
    if (t == FM_BF16 || t == FM_F16) best = t;
  }
  return best;
}

/* What one rank holds; c is open, unless the card is only described. */
static fm_status fill_rank(fm_rank_plan *p, int64_t *max_ctx, fm_ctx *c, fm_store *store, const fm_config *g, const fm_setup *s, int i,
                           int64_t host_weights, fm_error *err) {
  fm_shard shard;
  fm_shard_make(&shard, g, s->forms, s->drafts > 0, i);
  int64_t page = fm_kv_shard_page_size(g, s->cache, &shard), dp = s->forms.dp, seqs = (s->seqs + dp - 1) / dp;
  if (c->dev && c->ops->memory(c->dev, &p->memory, &p->free_memory) != FM_OK)
    return fm_fail(err, FM_EDEVICE, "the device does not tell its memory");
  TRY(fm_weights_size(store, g, s->drafts > 0, &shard, &p->weights, err));
  p->weights -= host_weights;
  if (!fm_mul(s->n_pages / dp, page, &p->cache))
    return fm_fail(err, FM_EOVERFLOW, "ctx * seqs = %lld * %lld is too large", (long long)s->ctx, (long long)s->seqs);
  p->scratch = fm_setup_scratch(g, c->ops, s);
  int64_t room = (c->ops->upload ? p->free_memory : p->memory / (c->dev ? s->n_ranks : 1)) - p->weights - p->scratch;
  int64_t pages = room > 0 ? room / (page * seqs) - 1 : 0;
  *max_ctx = pages > 0 ? pages * FM_PAGE : 0;
  return FM_OK;
}

fm_status fm_plan_fill(fm_plan *p, fm_ctx *c, fm_store *store, const fm_config *g, const fm_setup *s, const fm_load_options *o,
                       fm_error *err) {
  int64_t max_ctx = 0;
  p->device = c->ops->name;
  p->parameters = fm_store_parameters(store);
  p->ctx = s->ctx;
  p->seqs = s->seqs;
  p->max_ctx = g->max_position_embeddings;
  if (s->host_experts) {
    p->host_weights = fm_weights_expert_bytes(store, g, s->drafts > 0);
    fm_cpu_backend()->memory(NULL, &p->host_memory, &p->host_free);
  }
  p->ranks = fm_array(s->n_ranks, sizeof *p->ranks);
  if (!p->ranks) return fm_no_memory(err, s->n_ranks * (int64_t)sizeof *p->ranks);
  for (p->n_ranks = 0; p->n_ranks < s->n_ranks; p->n_ranks++) {
    fm_rank_plan *r = &p->ranks[p->n_ranks];
    fm_device_name(r->device, o->device, p->n_ranks, &r->memory);
    r->free_memory = r->memory;
    if (s->n_ranks == 1 && c->dev) snprintf(r->device, sizeof r->device, "%s", c->ops->name);
    TRY(fill_rank(r, &max_ctx, c, store, g, s, p->n_ranks, p->host_weights, err));
    if (max_ctx < p->max_ctx) p->max_ctx = max_ctx;
    p->weights += r->weights, p->cache += r->cache, p->scratch += r->scratch;
  }
  p->weights += p->host_weights;
  p->memory = p->ranks->memory, p->free_memory = p->ranks->free_memory;
  if (s->n_ranks == 1) return FM_OK;
  return fm_forms_weigh(&p->forms, &p->n_forms, o, g, (double)fm_dtype_size(fm_stored_dtype(store)), s->seqs, err);
}

void fm_plan_free(fm_plan *p) {
  fm_free(p->ranks);
  fm_free(p->forms);
  *p = (fm_plan){ 0 };
}

static fm_status plan(fm_plan *p, fm_ctx *c, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_config cfg;
  fm_store *store;
  fm_setup s;
  TRY(fm_config_load(&cfg, dir, err));
  TRY(fm_setup_check(&cfg, o, err));
  TRY(fm_store_open(&store, dir, err));
  fm_status status = fm_setup_make(&s, c->ops, &cfg, fm_stored_dtype(store), o, err);
  if (status == FM_OK) status = fm_plan_fill(p, c, store, &cfg, &s, o, err);
  fm_store_close(store);
  return status;
}

/* Memory of its own, and arithmetic in whatever is stored: only asked what it needs, never opened. */
static fm_status no_upload(fm_ctx *c, void *dst, const void *src, int64_t size) {
  (void)dst, (void)src, (void)size;
  return fm_fail(&c->err, FM_EDEVICE, "the card is not here");
}

static const fm_backend card = {
  .abi = FM_BACKEND_ABI, .name = "card", .arithmetic = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3,
  .cache_dtypes = 1u << FM_F32 | 1u << FM_BF16 | 1u << FM_F8_E4M3, .chunk = 4096, .upload = no_upload,
};

fm_status fm_plan_make(fm_plan *out, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_load_options dflt = fm_load_options_default();
  fm_plan p = { 0 };
  fm_ctx c;
  if (!o) o = &dflt;
  char name[64];
  int64_t described;
  fm_device_name(name, o->device, 0, &described);
  if (described >= 0) c = (fm_ctx){ .ops = &card };
  else TRY(fm_ctx_open(&c, name, 1, err));
  fm_status status = plan(&p, &c, dir, o, err);
  if (c.dev) fm_ctx_close(&c);
  if (status == FM_OK) *out = p;
  else fm_plan_free(&p);
  return status;
}
