/*
** engine.c - load in steps, close; the clock that moves everything.
*/
#include "run/plan.h"

#include <string.h>

#include "base/file.h"
#include "base/pool.h"

/* ---- load --------------------------------------------------------------------------------------- */

struct fm_loader {
  fm_model *m;                           /* NULL once handed out */
  fm_setup s;
  fm_reading reading;
  int64_t slot, done, total;
  int rank;
  int64_t bytes; bool filled;            /* of the slot that is being placed */
  char *devices;                         /* of all processes; NULL: as the options say */
};

static fm_status open_tokenizer(fm_model *m, fm_error *err) {
  char path[4096];
  snprintf(path, sizeof path, "%s/tokenizer.json", m->dir);
  if (!fm_file_exists(path)) return FM_OK;         // none: ids go in and ids come out
  return fm_tokenizer_open(&m->tok, m->dir, err);
}

/* A device with a memory of its own either holds it all or is not begun with. */
static fm_status check_room(fm_model *m, fm_store *store, const fm_setup *s, const fm_load_options *o, fm_error *err) {
  fm_plan p = { 0 };
  if (!m->c.ops->upload) return FM_OK;
  fm_status status = fm_plan_fill(&p, &m->c, store, &m->cfg, s, o, err);
  for (int i = 0; i < p.n_ranks && status == FM_OK; i++) {
    const fm_rank_plan *r = &p.ranks[i];
    int64_t need = r->weights + r->cache + r->scratch, experts = fm_weights_expert_bytes(store, &m->cfg, s->drafts > 0);
    if (need <= r->free_memory) continue;
    status = fm_fail(err, FM_EMEMORY, "%s needs %.2f GiB on the %s, %.2f GiB are free", m->dir, (double)need / 0x1p30, r->device,
                     (double)r->free_memory / 0x1p30);
    if (!p.max_ctx && experts > p.host_weights)
      fm_hint(err, status, "its weights alone are %.2f GiB; experts = \"host\" leaves %.2f GiB of them in host memory",
              (double)p.weights / 0x1p30, (double)experts / 0x1p30);
    else if (!p.max_ctx) fm_hint(err, status, "its weights alone are %.2f GiB", (double)r->weights / 0x1p30);
    else fm_hint(err, status, "with seqs = %lld the largest ctx that fits is %lld", (long long)p.seqs, (long long)p.max_ctx);
  }
  fm_plan_free(&p);
  return status;
}

/* One of the devices, its threads where the options want them; ranks of one machine share its cores. */
static fm_status open_device(const fm_model *m, fm_ctx *c, const char *device, const fm_load_options *o, fm_error *err) {
  int n = o->threads, cpus = 0, ranks = m->wire ? m->seat.n_local : fm_device_count(o->device);
  if (o->cpus) TRY(fm_pool_count(o->cpus, &cpus, err));
  if (!n && !cpus && ranks > 1) cpus = fm_pool_cores();
  if (!n && cpus) n = cpus > ranks ? cpus / ranks : 1;
  TRY(fm_ctx_open(c, device, n, err));
  return o->cpus && c->ops->pin ? c->ops->pin(c->dev, o->cpus, err) : FM_OK;
}

static fm_status not_here(const char *name, fm_error *err) {
  return fm_hint(err, fm_fail(err, FM_EUNSUPPORTED, "%s is only described: a plan can be made for it, a model cannot be loaded", name),
                 "device = \"cpu\" is here");
}

/* Ranks beside the first: their devices, and places for their weights. */
static fm_status open_ranks(fm_loader *l, fm_store *store, const fm_load_options *o, fm_error *err) {
  fm_model *m = l->m;
  char name[64];
  int64_t described;
  TRY(fm_ranks_new(&m->ranks, &m->cfg, l->s.forms, l->s.drafts > 0, &m->c, m->wire, err));
  int me = l->rank = fm_ranks_me(m->ranks);
  for (int i = 0; i < l->s.n_ranks; i++) {
    fm_rank *r = fm_ranks_at(m->ranks, i);
    int64_t size;
    fm_device_name(name, o->device, i, &described);
    if (described >= 0) return not_here(name, err);
    if (!r->c) continue;
    if (i != me) TRY(open_device(m, r->c, name, o, err));
    if (r->c->ops != m->c.ops) return fm_fail(err, FM_EUNSUPPORTED, "devices of two kinds do not work together: %s", o->device);
    if (i != me) TRY(fm_weights_new(&r->w, NULL, &m->cfg, m->drafts > 0, err));
    else r->w = m->w;
    r->w->store = store;
    r->w->borrows = i != me;
    r->w->shard = r->shard;
    r->c->arithmetic = m->c.arithmetic, r->c->debug = m->c.debug, r->c->loose = m->c.loose;
    TRY(fm_weights_size(store, &m->cfg, m->drafts > 0, &r->shard, &size, err));
    l->total += size;
  }
  return FM_OK;
}

/* The first device, and what follows for it from options and checkpoint; whether it has room. */
static fm_status set_up(fm_loader *l, fm_store *store, const fm_load_options *o, fm_error *err) {
  fm_model *m = l->m;
  fm_setup *s = &l->s;
  char name[64];
  int64_t described;
  fm_device_name(name, o->device, 0, &described);
  if (described >= 0) return not_here(name, err);
  TRY(open_device(m, &m->c, name, o, err));
  TRY(fm_setup_make(s, m->c.ops, &m->cfg, fm_stored_dtype(store), o, err));
  if (m->wire && m->c.ops->upload && s->forms.ep > 1)
    return fm_hint(err, fm_fail(err, FM_EUNSUPPORTED, "ep = %d: experts are spread over GPUs of one process only", s->forms.ep),
                   "parallel = { dp = %d, tp = %d, ep = 1 }", s->forms.dp, s->forms.tp);
  TRY(check_room(m, store, s, o, err));
  m->ctx = s->ctx, m->seqs = s->seqs, m->chunk = s->chunk, m->budget = s->budget;
  m->drafts = s->drafts;
  m->mtp_auto = o->mtp == FM_MTP_AUTO;
  m->c.arithmetic = s->arithmetic;
  m->c.debug |= o->debug;
  m->c.loose = o->nondeterministic;
  return s->host_experts ? open_device(m, &m->host, "cpu", o, err) : FM_OK;
}

static fm_status open_parts(fm_loader *l, const fm_load_options *given, fm_error *err) {
  fm_model *m = l->m;
  fm_load_options own = *given, *o = &own;
  if (l->devices) own.device = l->devices;
  fm_store *store;
  TRY(fm_config_load(&m->cfg, m->dir, err));
  TRY(fm_setup_check(&m->cfg, o, err));
  TRY(fm_store_open(&store, m->dir, err));
  fm_status status = set_up(l, store, o, err);
  if (status != FM_OK) {
    fm_store_close(store);
    return status;
  }
  fm_depth_begin(&m->depth);
  TRY(fm_weights_new(&m->w, store, &m->cfg, m->drafts > 0, err));
  if (l->s.n_ranks > 1) TRY(open_ranks(l, store, o, err));
  else TRY(fm_weights_size(store, &m->cfg, m->drafts > 0, NULL, &l->total, err));
  m->w->experts_stay = l->s.host_experts;
  if (l->s.host_experts) m->stats.host_weight_bytes = fm_weights_expert_bytes(store, &m->cfg, m->drafts > 0);
  return open_tokenizer(m, err);
}

fm_status fm_loader_open(fm_loader **out, const char *dir, const fm_load_options *o, fm_error *err) {
  fm_load_options dflt = fm_load_options_default();
  if (!o) o = &dflt;
  fm_loader *l = fm_zalloc(sizeof *l);
  if (!l) return fm_no_memory(err, sizeof *l);
  l->reading = o->verify ? FM_ALL : FM_SCALES;
  l->m = fm_zalloc(sizeof *l->m);
  if (l->m) l->m->refs = 1;
  if (l->m) l->m->dir = fm_strndup(dir, strlen(dir));
  fm_status status = l->m && l->m->dir ? fm_far_join(l->m, o, &l->devices, err) : fm_no_memory(err, sizeof *l->m);
  if (status == FM_OK) status = open_parts(l, o, err);
  if (status != FM_OK) {
    fm_loader_close(l);
    return status;
  }
  *out = l;
  return FM_OK;
}

fm_status fm_loader_step(fm_loader *l, int64_t *done, int64_t *total, fm_error *err) {
  fm_model *m = l->m;
  fm_weights *w = m->ranks ? fm_ranks_at(m->ranks, l->rank)->w : m->w;
  fm_ctx *c = m->ranks ? fm_ranks_at(m->ranks, l->rank)->c : &m->c;
  bool placed;
  if (l->slot <= w->n_layers) {
    if (!l->filled) TRY(fm_weights_fill(w, &m->cfg, l->slot, l->reading, &l->bytes, err));
    l->filled = true;
    TRY(fm_weights_place(w, c, &placed, err));
    if (placed) {
      l->filled = false;
      l->done += l->bytes;
      m->stats.weight_bytes += l->bytes;
      if (!m->wire) l->rank = (l->rank + 1) % l->s.n_ranks;
      l->slot += l->rank == 0 || m->wire;
    }
  }
  *done = l->done;
  *total = l->total;
  return FM_OK;
}

static void log_loaded(const fm_model *m) {
  const char *simd;
  int threads;
  m->c.ops->info(m->c.dev, &simd, &threads);
  fm_log(FM_LOG_INFO, "%s: %lld layers, %s arithmetic, on the %s (%s, %d), cache of %lld pages of %d tokens in %s, %s", m->dir,
         (long long)m->cfg.num_hidden_layers, fm_dtype_name(m->c.arithmetic), m->c.ops->name, simd, threads,
         (long long)m->kv->n_pages, FM_PAGE, fm_dtype_name(m->kv->dtype), m->drafts ? "MTP drafts" : "no drafts");
}

static fm_status make_cache(fm_loader *l, fm_error *err) {
  fm_model *m = l->m;
  fm_kv_part part[FM_MOST_RANKS];
  if (!m->ranks) return fm_kv_new(&m->kv, &m->c, &m->cfg, l->s.cache, m->drafts > 0, l->s.n_pages, err);
  fm_ranks_parts(m->ranks, part);
  return fm_kv_new_parts(&m->kv, part, l->s.n_ranks, l->s.forms.dp, &m->cfg, l->s.cache, m->drafts > 0, l->s.n_pages, err);
}

fm_status fm_loader_finish(fm_loader *l, fm_model **out, fm_error *err) {
  fm_model *m = l->m;
  if (!m || l->slot <= m->w->n_layers) return fm_fail(err, FM_EINVAL, "loading is not done yet");
  int64_t v = m->cfg.vocab_size;
  TRY(make_cache(l, err));
  if (l->s.prefix_pages)
    TRY(fm_prefix_new(&m->prefix, m->kv, l->s.prefix_pages, m->drafts ? m->cfg.hidden_size : 0, &m->clock, err));
  int64_t n_valid = m->tok ? fm_tokenizer_size(m->tok) : v;
  n_valid = n_valid < v ? n_valid : v;
  if (m->ranks) TRY(fm_ranks_ready(m->ranks, &m->net, m->kv, m->ctx, n_valid, err));
  else TRY(fm_net_init(&m->net, &m->c, &m->cfg, m->w, m->kv, m->ctx, n_valid, err));
  if (l->s.host_experts) m->net.host = &m->host;
  int64_t scratch = fm_setup_scratch(&m->cfg, m->c.ops, &l->s);
  TRY(fm_ctx_reserve(&m->c, m->ranks ? 2 * scratch : scratch, err));     // rank 0 gathers what all have
  for (int i = 0; m->ranks && i < l->s.n_ranks; i++)
    if (fm_ranks_at(m->ranks, i)->c == &fm_ranks_at(m->ranks, i)->own) TRY(fm_ctx_reserve(&fm_ranks_at(m->ranks, i)->own, scratch, err));
  TRY(fm_sampler_new(&m->sampler, v, n_valid, err));
  TRY(fm_model_warm(m, err));
  m->digest = fm_store_digest(m->w->store);
  if (m->wire) TRY(fm_far_agree(m, &l->s.forms, m->digest, err));
  log_loaded(m);
  l->m = NULL;
  *out = m;
  return FM_OK;
}

void fm_loader_close(fm_loader *l) {
  if (!l) return;
  if (l->m) fm_model_close(l->m);
  fm_free(l->devices);
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
  fm_batch_free(&m->work.now);
  fm_batch_free(&m->work.then);
  fm_free(m->order);
  fm_free(m->work.rule);
  fm_sampler_free(m->sampler);
  fm_grammars_free(m->grammars);
  fm_prefix_free(m->prefix);
  fm_tokenizer_free(m->tok);
  if (!fm_ranks_stop(m->ranks)) {        // what a lost rank may still touch is left to it, the context inside of *m too
    fm_log(FM_LOG_WARNING, "%s: a rank did not come back, its memory is not given back either", m->dir);
    return;
  }
  fm_net_free(&m->net);
  fm_kv_free(m->kv);
  fm_ranks_free(m->ranks);
  fm_wire_close(m->wire);
  fm_weights_free(m->w);
  if (m->c.dev) fm_ctx_close(&m->c);
  if (m->host.dev) fm_ctx_close(&m->host);
  fm_free(m->dir);
  fm_free(m);
}

/* ---- facts ---------------------------------------------------------------------------------------- */

const fm_config *fm_model_config(const fm_model *m) { return &m->cfg; }
fm_tokenizer *fm_model_tokenizer(const fm_model *m) { return m->tok; }
int fm_model_mtp(const fm_model *m) { return m->drafts; }
int64_t fm_model_seqs(const fm_model *m) { return m->seqs; }
const char *fm_model_dir(const fm_model *m) { return m->dir; }
int64_t fm_model_vocab_size(const fm_model *m) { return m->cfg.vocab_size; }
int64_t fm_model_ctx(const fm_model *m) { return m->ctx; }
bool fm_model_has_tokenizer(const fm_model *m) { return m->tok != NULL; }

fm_stats fm_model_stats(const fm_model *m) {
  fm_stats s = m->stats;
  s.device = m->c.ops->name;
  m->c.ops->info(m->c.dev, &s.simd, &s.threads);
  fm_forms of = m->ranks ? fm_ranks_forms(m->ranks) : (fm_forms){ 1, 1, 1, 1 };
  s.ranks = m->ranks ? fm_ranks_size(m->ranks) : 1;
  s.processes = m->wire ? m->seat.world : 1;
  s.process = m->wire ? m->seat.rank : 0;
  s.tp = of.tp, s.dp = of.dp, s.pp = of.pp, s.ep = of.ep;
  s.pages = m->kv->n_pages;
  s.pages_used = m->kv->n_pages - m->kv->n_free;
  s.page_tokens = FM_PAGE;
  s.prefix_pages = fm_prefix_pages(m->prefix);
  s.cache_bytes = m->kv->n_pages * m->kv->page_size;
  s.scratch_bytes = fm_arena_size(&m->c.arena) + m->c.slab_size;
  return s;
}

static fm_status read_back(fm_ctx *c, void *to, const void *from, int64_t size, fm_error *err) {
  if (!c->ops->download) memcpy(to, from, (size_t)size);
  else if (c->ops->download(c, to, from, size) != FM_OK) {
    if (err) *err = c->err;
    return c->err.code;
  }
  return FM_OK;
}

fm_status fm_model_expert_load(fm_model *m, int64_t layer, int64_t *count, fm_error *err) {
  int64_t n = m->cfg.n_routed_experts;
  int ranks = m->ranks ? fm_ranks_size(m->ranks) : 1;
  if (layer < 0 || layer >= m->w->n_layers)
    return fm_fail(err, FM_EINVAL, "layer %lld of %lld", (long long)layer, (long long)m->w->n_layers);
  if (!n || !fm_config_layer_is_moe(&m->cfg, layer)) return fm_fail(err, FM_EUNSUPPORTED, "layer %lld has no experts", (long long)layer);
  int64_t *one = fm_array(n, sizeof *one);
  if (!one) return fm_no_memory(err, n * (int64_t)sizeof *one);
  fm_status status = FM_OK;
  memset(count, 0, (size_t)n * sizeof *count);
  fm_sched_settle(m);
  for (int i = 0; i < ranks && status == FM_OK; i++) {
    const fm_net *net = m->ranks ? &fm_ranks_at(m->ranks, i)->net : &m->net;
    if (net->load) status = read_back(net->c, one, net->load + layer * n, n * (int64_t)sizeof *one, err);
    else status = fm_fail(err, FM_EUNSUPPORTED, "each process counts the choices of its own rows only");
    for (int64_t e = 0; e < n && status == FM_OK; e++) count[e] += one[e];
  }
  fm_free(one);
  return status;
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

/* Slices until ms are over, or, without ms, until a pass is complete. The first is run in any case; the next one when it is going to
   end in time. */
static void run_slices(fm_model *m, double begin, double ms, bool *busy) {
  const fm_work *w = &m->work;
  double now = begin;
  bool whole;
  do {
    double before = now, *mean = &m->pace.slice_ms[w->kind][w->stage];
    fm_sched_slice(m, ms <= 0, busy, &whole);
    now = fm_now_ms();
    fm_mean_add(mean, now - before, 0.2);
  } while (*busy && (ms > 0 ? now + m->pace.slice_ms[w->kind][w->stage] < begin + ms : !whole));
  m->stats.overshoot_ms = ms > 0 && now > begin + ms ? now - begin - ms : 0;
}

fm_status fm_model_step(fm_model *m, double ms, bool *busy, fm_error *err) {
  (void)err;
  *busy = true;
  m->calls++;
  if (m->wire) ms = 0;                   // all processes stop at the same place
  m->slice_ms = ms > 0 ? ms / 3 : 0;
  run_slices(m, fm_now_ms(), ms, busy);
  if (m->stats.overshoot_ms > m->stats.max_overshoot_ms) m->stats.max_overshoot_ms = m->stats.overshoot_ms;
  return FM_OK;
}
