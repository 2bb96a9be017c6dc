/*
** engine.c - plan, load in steps, close; the clock that moves everything.
*/
#include "run/engine.h"

#include <math.h>
#include <string.h>

/* ---- options ------------------------------------------------------------------------------------ */

fm_load_options fm_load_options_default(void) {
  return (fm_load_options){ .mtp = -1 };
}

static fm_status check_dtype(const fm_load_options *o, fm_dtype *cache, fm_error *err) {
  const char *d = o->dtype ? o->dtype : "auto", *k = o->cache_dtype ? o->cache_dtype : "auto";
  if (strcmp(d, "auto") != 0 && strcmp(d, "f32") != 0) {
    fm_fail(err, FM_EUNSUPPORTED, "dtype \"%s\": the cpu computes in f32", d);
    return fm_hint(err, FM_EUNSUPPORTED, "stored bf16 and fp8 weights stay as they are either way");
  }
  if (strcmp(k, "auto") == 0 || strcmp(k, "f32") == 0) *cache = FM_F32;
  else if (strcmp(k, "bf16") == 0) *cache = FM_BF16;
  else return fm_fail(err, FM_EUNSUPPORTED, "cache_dtype \"%s\": the cpu has \"f32\" and \"bf16\"", k);
  return FM_OK;
}

/* Everything that follows from config and options, before anything is read. */
typedef struct setup { fm_dtype cache; int64_t ctx, seqs, n_pages; int drafts; } setup;

static fm_status make_setup(setup *s, const fm_config *g, const fm_load_options *o, fm_error *err) {
  TRY(check_dtype(o, &s->cache, err));
  int64_t limit = g->max_position_embeddings;
  s->ctx = o->ctx ? o->ctx : (limit < 4096 ? limit : 4096);
  s->seqs = o->seqs ? o->seqs : 4;
  if (s->ctx < 1 || s->ctx > limit)
    return fm_fail(err, FM_EINVAL, "ctx must be 1 to max_position_embeddings (%lld), got %lld", (long long)limit,
                   (long long)s->ctx);
  if (s->seqs < 1 || s->seqs > 1 << 16)
    return fm_fail(err, FM_EINVAL, "seqs must be 1 to 65536, got %lld", (long long)s->seqs);
  if (o->threads < 0 || o->threads > 1024)
    return fm_fail(err, FM_EINVAL, "threads must be 0 to 1024, got %d", o->threads);
  if (o->mtp < -1 || o->mtp > FM_MAX_DRAFTS)
    return fm_fail(err, FM_EINVAL, "mtp must be at most %d drafts, got %d", FM_MAX_DRAFTS, o->mtp);
  if (o->mtp > 0 && !g->num_nextn_predict_layers)
    return fm_fail(err, FM_EUNSUPPORTED, "mtp: the checkpoint has no MTP layer");
  s->drafts = g->num_nextn_predict_layers ? (o->mtp < 0 ? 1 : o->mtp) : 0;
  // one page more a sequence: a last page shared after a fork is copied before the old one is free
  s->n_pages = s->seqs * ((s->ctx + FM_PAGE - 1) / FM_PAGE + 1);
  return FM_OK;
}

/* ---- plan --------------------------------------------------------------------------------------- */

/* Bytes of activations of one pass of FM_CHUNK rows, at its widest. */
static int64_t scratch_size(const fm_config *g) {
  int64_t qk = g->family == FM_QWEN2 ? g->head_dim : fm_config_qk_head_dim(g);
  int64_t attn = g->num_attention_heads * (qk + (g->family == FM_QWEN2 ? g->head_dim : g->v_head_dim))
                 + g->q_lora_rank + fm_config_cache_width(g) + g->hidden_size;
  int64_t wide = g->n_routed_experts
                 ? g->num_experts_per_tok * (2 * g->moe_intermediate_size + 2 * g->hidden_size) : 0;
  int64_t mlp = 2 * g->intermediate_size + g->hidden_size;
  wide = wide > mlp ? wide : mlp;
  return FM_CHUNK * (3 * g->hidden_size + (attn > wide ? attn : wide)) * 4 + 8 * g->vocab_size * 4;
}

static fm_status fill_plan(fm_plan *p, const fm_store *store, const fm_config *g, const setup *s, fm_error *err) {
  fm_ctx c;
  int64_t free_bytes, page = fm_kv_page_size(g, s->cache, s->drafts > 0);
  TRY(fm_ctx_open(&c, "cpu", 1, err));
  fm_status status = c.ops->memory(c.dev, &p->memory, &free_bytes);
  fm_ctx_close(&c);
  if (status != FM_OK) return fm_fail(err, status, "the device does not tell its memory");
  p->parameters = fm_store_parameters(store);
  p->weights = fm_store_bytes(store);
  if (!fm_mul(s->n_pages, page, &p->cache))
    return fm_fail(err, FM_EOVERFLOW, "ctx * seqs = %lld * %lld is too large", (long long)s->ctx,
                   (long long)s->seqs);
  p->scratch = scratch_size(g);
  p->ctx = s->ctx;
  p->seqs = s->seqs;
  int64_t room = p->memory - p->weights - p->scratch;
  int64_t pages = room > 0 ? room / (page * s->seqs) - 1 : 0;
  p->max_ctx = pages > 0 ? pages * FM_PAGE : 0;
  if (p->max_ctx > g->max_position_embeddings) p->max_ctx = g->max_position_embeddings;
  return FM_OK;
}

fm_status fm_plan_make(fm_plan *out, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_load_options dflt = fm_load_options_default();
  fm_config cfg;
  fm_store *store;
  setup s;
  fm_plan p = { 0 };
  if (!o) o = &dflt;
  TRY(fm_config_load(&cfg, dir, err));
  TRY(make_setup(&s, &cfg, o, err));
  TRY(fm_store_open(&store, dir, err));
  fm_status status = fill_plan(&p, store, &cfg, &s, err);
  fm_store_close(store);
  if (status == FM_OK) *out = p;
  return status;
}

/* ---- load --------------------------------------------------------------------------------------- */

struct fm_loader {
  fm_model *m;                           /* NULL once handed out */
  setup s;
  bool verify;
  int64_t slot, done, total;
};

static fm_status open_tokenizer(fm_model *m, fm_error *err) {
  fm_error why;
  fm_status status = fm_tokenizer_open(&m->tok, m->dir, &why);
  if (status == FM_EIO) return FM_OK;              // none: ids go in and ids come out
  if (status != FM_OK && err) *err = why;
  return status;
}

static fm_status open_parts(fm_loader *l, const fm_load_options *o, fm_error *err) {
  fm_model *m = l->m;
  fm_store *store;
  TRY(fm_config_load(&m->cfg, m->dir, err));
  TRY(make_setup(&l->s, &m->cfg, o, err));
  m->ctx = l->s.ctx;
  m->seqs = l->s.seqs;
  m->drafts = l->s.drafts;
  TRY(fm_ctx_open(&m->c, o->device ? o->device : "auto", o->threads, err));
  TRY(fm_store_open(&store, m->dir, err));
  l->total = fm_store_bytes(store);
  TRY(fm_weights_new(&m->w, store, &m->cfg, m->drafts > 0, err));
  return open_tokenizer(m, err);
}

fm_status fm_loader_open(fm_loader **out, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_load_options dflt = fm_load_options_default();
  if (!o) o = &dflt;
  fm_loader *l = fm_zalloc(sizeof *l);
  if (!l) return fm_no_memory(err, sizeof *l);
  l->verify = o->verify;
  l->m = fm_zalloc(sizeof *l->m);
  if (l->m) l->m->refs = 1;
  if (l->m) l->m->dir = fm_strndup(dir, strlen(dir));
  fm_status status = l->m && l->m->dir ? open_parts(l, o, err) : fm_no_memory(err, sizeof *l->m);
  if (status != FM_OK) {
    fm_loader_close(l);
    return status;
  }
  *out = l;
  return FM_OK;
}

fm_status fm_loader_step(fm_loader *l, int64_t *done, int64_t *total, fm_error *err) {
  int64_t bytes = 0;
  fm_weights *w = l->m->w;
  if (l->slot <= w->n_layers) {
    TRY(fm_weights_fill(w, &l->m->cfg, l->slot, l->verify, &bytes, err));
    l->slot++;
    l->done += bytes;
    l->m->stats.weight_bytes += bytes;
  }
  // tensors that nobody asked for count as done with the last slot
  if (l->slot > w->n_layers || l->done > l->total) l->done = l->total;
  *done = l->slot > w->n_layers ? l->total : l->done - (l->done == l->total);
  *total = l->total;
  return FM_OK;
}

fm_status fm_loader_finish(fm_loader *l, fm_model **out, fm_error *err) {
  fm_model *m = l->m;
  if (!m || l->slot <= m->w->n_layers) return fm_fail(err, FM_EINVAL, "loading is not done yet");
  int64_t v = m->cfg.vocab_size;
  TRY(fm_kv_new(&m->kv, &m->c, &m->cfg, l->s.cache, m->drafts > 0, l->s.n_pages, err));
  TRY(fm_net_init(&m->net, &m->c, &m->cfg, m->w, m->kv, m->ctx, err));
  TRY(fm_sampler_new(&m->sampler, v, m->tok ? fm_tokenizer_size(m->tok) : v, err));
  m->digest = fm_store_digest(m->w->store);
  l->m = NULL;
  *out = m;
  return FM_OK;
}

void fm_loader_close(fm_loader *l) {
  if (!l) return;
  if (l->m) fm_model_close(l->m);
  fm_free(l);
}

fm_status fm_load(fm_model **out, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_loader *l;
  TRY(fm_loader_open(&l, dir, o, err));
  int64_t done = 0, total = 1;
  fm_status status = FM_OK;
  while (status == FM_OK && done < total) status = fm_loader_step(l, &done, &total, err);
  if (status == FM_OK) status = fm_loader_finish(l, out, err);
  fm_loader_close(l);
  return status;
}

void fm_model_keep(fm_model *m) { m->refs++; }

void fm_model_close(fm_model *m) {
  if (!m || --m->refs > 0) return;
  fm_free(m->work.task);
  fm_free(m->work.seg);
  fm_free(m->work.h);
  fm_sampler_free(m->sampler);
  fm_net_free(&m->net);
  fm_kv_free(m->kv);
  fm_weights_free(m->w);
  fm_tokenizer_free(m->tok);
  if (m->c.dev) fm_ctx_close(&m->c);
  fm_free(m->dir);
  fm_free(m);
}

/* ---- facts ---------------------------------------------------------------------------------------- */

const fm_config *fm_model_config(const fm_model *m) { return &m->cfg; }
fm_tokenizer *fm_model_tokenizer(const fm_model *m) { return m->tok; }
int fm_model_mtp(const fm_model *m) { return m->drafts; }
const char *fm_model_dir(const fm_model *m) { return m->dir; }
int64_t fm_model_vocab_size(const fm_model *m) { return m->cfg.vocab_size; }
int64_t fm_model_ctx(const fm_model *m) { return m->ctx; }
bool fm_model_has_tokenizer(const fm_model *m) { return m->tok != NULL; }

fm_stats fm_model_stats(const fm_model *m) {
  fm_stats s = m->stats;
  s.device = m->c.ops->name;
  m->c.ops->info(m->c.dev, &s.simd, &s.threads);
  s.pages = m->kv->n_pages;
  s.pages_used = m->kv->n_pages - m->kv->n_free;
  s.page_tokens = FM_PAGE;
  s.cache_bytes = m->kv->n_pages * m->kv->page_size;
  s.scratch_bytes = fm_arena_size(&m->c.arena);
  return s;
}

static fm_status need_tokenizer(const fm_model *m, fm_error *err) {
  if (m->tok) return FM_OK;
  return fm_fail(err, FM_EUNSUPPORTED, "%s has no tokenizer.json: ids go in and ids come out", m->dir);
}

fm_status fm_model_encode(const fm_model *m, const char *text, size_t len, bool special, int32_t **ids,
                          int64_t *n, fm_error *err) {
  int64_t cap = 0, used = 0;
  int32_t *list = NULL;
  TRY(need_tokenizer(m, err));
  fm_status status = fm_tokenizer_encode(m->tok, text, len, special, &list, &used, &cap, err);
  if (status != FM_OK) {
    fm_free(list);
    return status;
  }
  *ids = list;
  *n = used;
  return FM_OK;
}

fm_status fm_model_decode(const fm_model *m, const int32_t *ids, int64_t n, char **text, size_t *len,
                          fm_error *err) {
  int64_t cap = 0, used = 0;
  char *out = NULL;
  TRY(need_tokenizer(m, err));
  fm_status status = fm_tokenizer_decode(m->tok, ids, n, m->cfg.vocab_size, &out, &used, &cap, err);
  if (status != FM_OK) {
    fm_free(out);
    return status;
  }
  *text = out;
  *len = (size_t)used;
  return FM_OK;
}

/* ---- step ------------------------------------------------------------------------------------------ */

fm_status fm_model_step(fm_model *m, double ms, bool *busy, fm_error *err) {
  double begin = fm_now_ms(), slice = 0, now = begin;
  bool whole;
  (void)err;
  *busy = true;
  do {
    double before = now;
    fm_sched_slice(m, busy, &whole);
    now = fm_now_ms();
    slice = now - before > slice ? now - before : slice;
    // the next slice is taken to last as long as the longest so far
  } while (*busy && (ms > 0 ? now + slice < begin + ms : !whole));
  if (ms > 0) {
    double over = now - begin - ms;
    m->stats.overshoot_ms = over > 0 ? over : 0;
    if (over > m->stats.max_overshoot_ms) m->stats.max_overshoot_ms = over;
  }
  return FM_OK;
}
