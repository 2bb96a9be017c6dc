/*
** model.c - fm_config -> list of blocks -> forward.
*/
#include "model/ranks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void fill_tables(float *cos_to, float *sin_to, const fm_config *g, int64_t n, int64_t half, double *freq) {
  double amplitude;
  fm_config_inv_freq(g, freq, &amplitude);
  for (int64_t p = 0; p < n; p++)
    for (int64_t i = 0; i < half; i++) {
      cos_to[p * half + i] = (float)(cos((double)p * freq[i]) * amplitude);
      sin_to[p * half + i] = (float)(sin((double)p * freq[i]) * amplitude);
    }
}

static fm_status make_tables(fm_net *net, int64_t half, fm_error *err) {
  fm_ctx *c = net->c;
  int64_t n = net->n_turns, size = n * half * (int64_t)sizeof(float);
  fm_status status = c->ops->alloc(c->dev, (void **)&net->cos, size, err);
  if (status == FM_OK) status = c->ops->alloc(c->dev, (void **)&net->sin, size, err);
  if (status != FM_OK) return status;
  float *table = c->ops->upload ? fm_array(2 * n * half, sizeof *table) : net->cos;
  double *freq = fm_array(half, sizeof *freq);
  if (!table || !freq) {
    status = fm_no_memory(err, 2 * size);
  } else {
    fill_tables(table, c->ops->upload ? table + n * half : net->sin, net->cfg, n, half, freq);
    if (c->ops->upload && (c->ops->upload(c, net->cos, table, size) || c->ops->upload(c, net->sin, table + n * half, size))) {
      status = c->err.code;
      if (err) *err = c->err;
    }
  }
  if (c->ops->upload) fm_free(table);
  fm_free(freq);
  return status;
}

static int64_t load_size(const fm_config *g) {
  return (g->num_hidden_layers + g->num_nextn_predict_layers) * g->n_routed_experts * (int64_t)sizeof(int64_t);
}

void fm_net_forget_load(fm_net *net) {
  if (net->load) net->c->ops->clear(net->c->dev, net->load, load_size(net->cfg));
}

fm_status fm_net_init(fm_net *net, fm_ctx *c, const fm_config *cfg, const fm_weights *w, fm_kv *kv,
                      int64_t n_positions, int64_t n_valid, fm_error *err) {
  int64_t half = (cfg->family == FM_QWEN2 ? cfg->head_dim : cfg->qk_rope_head_dim) / 2;
  *net = (fm_net){ .cfg = cfg, .w = w, .kv = kv, .c = c, .n_positions = n_positions, .n_turns = 2 * n_positions,
                   .n_valid = n_valid };
  int64_t size = load_size(cfg);
  fm_status status = make_tables(net, half, err);
  if (status == FM_OK && size) status = c->ops->alloc(c->dev, (void **)&net->load, size, err);
  if (status == FM_OK) fm_net_forget_load(net);
  if (status != FM_OK) fm_net_free(net);
  return status;
}

void fm_net_free(fm_net *net) {
  if (net->cos) net->c->ops->release(net->c->dev, net->cos);
  if (net->sin) net->c->ops->release(net->c->dev, net->sin);
  if (net->load) net->c->ops->release(net->c->dev, net->load);
  *net = (fm_net){ 0 };
}

fm_rope fm_pass_rope(const fm_pass *p, int64_t dim) {
  return (fm_rope){ .pos = p->pos, .cos = p->net->cos, .sin = p->net->sin, .dim = dim,
                    .interleaved = p->net->cfg->rope_interleave };
}

/* ---- what a device reads of a pass: ids, positions, rows of logits, rules, spans, page lists ----------- */

static int64_t pages_of(const fm_seg *s) { return (s->index + s->n + FM_PAGE - 1) / FM_PAGE; }

static char *cut(char **at, int64_t size) {
  char *p = *at;
  *at += (size + 15) / 16 * 16;
  return p;
}

/* Sizes of all its parts, each rounded up to 16 bytes; the page lists, whose length alone changes from step to step, last. */
static int64_t block_size(const fm_pass *p, const fm_seg *segs, int64_t n_segs) {
  int64_t pages = 0;
  for (int64_t i = 0; i < n_segs; i++) pages += pages_of(&segs[i]);
  return 16 * 8 + 8 * p->n + p->n_logits * (int64_t)(4 + sizeof(fm_draw_rule)) + n_segs * (int64_t)sizeof(fm_span) + 4 * pages;
}

/* Prompt spans first, generated ones after, each in the order of the segments. */
static void place_spans(fm_pass *p, fm_seg *segs, int64_t n_segs, char *at) {
  fm_span *next[2] = { p->prompt, p->decode };
  int64_t row = 0, logit = 0;
  for (int64_t i = 0; i < n_segs; i++) {
    fm_seg *s = &segs[i];
    int32_t *pages = (int32_t *)(void *)at;
    int64_t n_pages = pages_of(s);
    at += n_pages * (int64_t)sizeof *pages;
    memcpy(pages, s->seq->pages, (size_t)n_pages * sizeof *pages);
    s->row = row;
    s->logits_row = logit;
    *next[s->role == FM_GENERATED]++ = (fm_span){
      .row = row, .n = s->n, .index = s->index, .pages = pages, .first_key = p->mtp ? s->seq->mtp_first : 0 };
    for (int64_t j = 0; j < s->n; j++) {
      p->ids[row] = s->ids[j];
      // an MTP row is stored at the index of its id and rotated as the state it continues
      p->pos[row] = (int32_t)(s->index + j - p->mtp + s->seq->shift);
      if (j >= s->n - s->n_logits) p->logit_row[logit++] = (int32_t)row;
      row++;
    }
  }
}

static fm_status stage(fm_pass *p, fm_seg *segs, int64_t n_segs, const fm_draw_rule *rule) {
  fm_ctx *c = p->net->c;
  int64_t size = block_size(p, segs, n_segs);
  void *block = NULL;
  if (c->ops->stage) TRY(c->ops->stage(c, &block, size));
  else block = fm_arena_alloc(&c->arena, size);
  if (!block) return fm_no_memory(&c->err, size);
  char *at = block;
  p->ids = (void *)cut(&at, p->n * (int64_t)sizeof *p->ids);
  p->pos = (void *)cut(&at, p->n * (int64_t)sizeof *p->pos);
  p->logit_row = (void *)cut(&at, p->n_logits * (int64_t)sizeof *p->logit_row);
  if (rule) {
    p->rule = (void *)cut(&at, p->n_logits * (int64_t)sizeof *rule);
    memcpy(p->rule, rule, (size_t)p->n_logits * sizeof *rule);
  }
  p->prompt = (void *)cut(&at, n_segs * (int64_t)sizeof *p->prompt);
  p->decode = p->prompt + p->n_prompt;
  p->n_span = n_segs;
  place_spans(p, segs, n_segs, at);
  return c->ops->send ? c->ops->send(c) : FM_OK;
}

/* ---- the pass ------------------------------------------------------------------------------------------ */

fm_status fm_pass_add(fm_pass *p, fm_mm mm) {
  fm_ctx *c = p->net->c;
  int64_t d = p->net->cfg->hidden_size;
  float *part = p->x;
  if (p->net->tp) TRY(fm_scratch(c, &part, p->n, d));
  mm.out = part, mm.ldo = d, mm.n = p->n, mm.add = !p->net->tp;
  TRY(fm_op_matmul(c, &mm, 1));
  return p->net->tp ? fm_op_all_reduce(c, p->net->tp, p->x, part, p->n * d) : FM_OK;
}

/* Whether this rank computes the layer; head and MTP layer are the last stage's. */
static bool mine(const fm_pass *p, int64_t layer) {
  const fm_shard *s = p->net->shard;
  return !s || (layer >= s->layer && (layer < s->end || s->end == s->n_layers));
}

/* A rank without rows still has experts that others need. */
static fm_status block(fm_pass *p, const fm_layer *l) {
  if (p->n) TRY(p->net->cfg->family == FM_QWEN2 ? fm_block_gqa(p, l) : fm_block_mla(p, l));
  if (l->moe) return p->n || p->net->ep ? fm_block_moe(p, l) : FM_OK;
  return p->n ? fm_block_mlp(p, l) : FM_OK;
}

/* Where the next layer is another stage's, x goes there. */
static fm_status hand_over(fm_pass *p) {
  const fm_shard *s = p->net->shard;
  int64_t size = p->n * p->net->cfg->hidden_size * (int64_t)sizeof *p->x, in[FM_MOST_STAGES] = { 0 }, out[FM_MOST_STAGES] = { 0 };
  int to = 1;
  if (!p->net->pipe || !p->n) return FM_OK;
  while (to < s->of.pp && fm_part(p->net->cfg->num_hidden_layers, s->of.pp, to) != p->layer) to++;
  if (to == s->of.pp || p->mtp) return FM_OK;
  if (s->stage == to - 1) in[to] = size;
  if (s->stage == to) out[to - 1] = size;
  return fm_op_all_to_all(p->net->c, p->net->pipe, p->x, out, p->x, in);
}

/* Logits of some final states; of ranks that have a part of the head each the first one is given all. */
static fm_status head(fm_pass *p, const float *rows) {
  fm_ctx *c = p->net->c;
  const fm_weights *w = p->net->w;
  int64_t v = w->head.rows, width[FM_MOST_RANKS];
  int tp = fm_comm_size(p->net->tp), me = fm_comm_me(p->net->tp);
  float *part = p->logits;
  if (tp > 1) TRY(fm_scratch(c, &part, p->n_logits, v));
  fm_mm mm = { .w = &w->head, .x = rows, .ldx = p->net->cfg->hidden_size, .out = part, .ldo = v, .n = p->n_logits };
  TRY(fm_op_matmul(c, &mm, 1));
  if (tp == 1) return FM_OK;
  for (int r = 0; r < tp; r++) width[r] = fm_head_part(p->net->cfg, tp, r + 1) - fm_head_part(p->net->cfg, tp, r);
  return fm_op_all_columns(c, p->net->tp, me ? NULL : p->logits, part, p->n_logits, width);
}

static fm_status finish(fm_pass *p) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t d = g->hidden_size;
  TRY(fm_op_rms_norm(c, p->hidden, d, p->x, d, p->mtp ? p->net->w->mtp.norm : p->net->w->norm, p->n, d,
                     (float)g->rms_norm_eps));
  if (!p->n_logits) return FM_OK;
  float *rows = p->hidden;
  fm_mat all = { .data = p->hidden, .dtype = FM_F32, .rows = p->n, .cols = d };
  if (p->n_logits < p->n) {
    TRY(fm_scratch(c, &rows, p->n_logits, d));
    TRY(fm_op_embed(c, rows, &all, p->logit_row, p->n_logits));
  }
  TRY(head(p, rows));
  return p->rule ? c->ops->draw(c, p->drawn, p->logits, p->rule, p->n_logits, g->vocab_size, p->net->n_valid) : FM_OK;
}

/* Debug: what the operations that follow belong to. */
static void say_where(fm_pass *p, const char *what) {
  fm_ctx *c = p->net->c;
  if (!c->debug) return;
  if (what) snprintf(c->where, sizeof c->where, "%s%s", p->mtp ? "the MTP module's " : "the ", what);
  else snprintf(c->where, sizeof c->where, "layer %lld", (long long)p->layer);
}

static fm_status layer(fm_pass *p) {
  fm_ctx *c = p->net->c;
  say_where(p, p->layer == p->n_layers ? "head" : NULL);
  fm_scratch_mark mark = fm_scratch_here(c);
  c->ops->enter(c->dev);
  fm_status status = !mine(p, p->layer) ? FM_OK : p->layer < p->n_layers ? block(p, &p->net->w->layer[p->layer])
                                                : p->n ? finish(p) : FM_OK;
  c->ops->leave(c->dev);
  fm_scratch_back(c, mark);
  p->layer++;
  return status == FM_OK ? hand_over(p) : status;
}

static fm_status embed(fm_pass *p, const float *h) {
  fm_ctx *c = p->net->c;
  if (!p->n || !mine(p, p->layer)) return FM_OK;
  fm_scratch_mark mark = fm_scratch_here(c);
  say_where(p, "input");
  fm_status status = p->mtp ? fm_mtp_join(p, h) : fm_op_embed(c, p->x, &p->net->w->embed, p->ids, p->n);
  fm_scratch_back(c, mark);
  return status;
}

/* What the other ranks' rows have to do with it. */
static int64_t hash_of_homes(const fm_pass *p) {
  uint64_t h = 0;
  for (int r = 0; p->net->home && r < fm_comm_size(p->net->ep); r++) h = (h ^ (uint64_t)p->net->home[r]) * 0x100000001b3 + 1;
  return (int64_t)h;
}

/* The whole pass at once, as the device has noted it, or notes it now. */
static fm_status recorded(fm_pass *p, const float *h, int64_t slab) {
  fm_ctx *c = p->net->c;
  bool known;
  bool stands = false;                   // rules that want more take more operations
  for (int64_t i = 0; p->rule && i < p->n_logits; i++) stands = stands || p->rule[i].stands;
  int64_t key[8] = { p->n, p->n_span, p->n_logits, p->mtp, (p->rule != NULL) + stands, slab, hash_of_homes(p) };
  TRY(c->ops->record(c, key, &known));
  fm_status status = known ? FM_OK : embed(p, h);
  while (status == FM_OK && !known && p->layer <= p->n_layers) status = layer(p);
  p->layer = p->n_layers + 1;
  fm_status played = c->ops->play(c, status == FM_OK);
  return status != FM_OK ? status : played;
}

/* States of all segments side by side, on the device. */
static fm_status gather_states(fm_pass *p, const fm_seg *segs, int64_t n_segs, float **out) {
  fm_ctx *c = p->net->c;
  int64_t d = p->net->cfg->hidden_size;
  float *h = fm_arena_alloc(&c->arena, p->n * d * (int64_t)sizeof *h);
  if (!h) return fm_no_memory(&c->err, p->n * d * (int64_t)sizeof *h);
  for (int64_t i = 0; i < n_segs; i++)
    memcpy(h + segs[i].row * d, segs[i].h, (size_t)(segs[i].n * d) * sizeof *h);
  return fm_to_device(c, out, h, p->n, d);
}

static fm_status begin(fm_pass *p, fm_seg *segs, int64_t n_segs, const fm_draw_rule *rule) {
  fm_ctx *c = p->net->c;
  const fm_config *g = p->net->cfg;
  int64_t slab = c->slab_used;
  float *h = NULL;
  for (int64_t i = 0; i < n_segs; i++) {
    p->n += segs[i].n;
    p->n_logits += segs[i].n_logits;
    if (segs[i].role == FM_GENERATED) p->n_decode++;
    else p->n_prompt++;
  }
  // by role, so that no row's bits hang on how many run beside it; where that is given up, a few rows of a prompt go the faster way
  c->generated = p->net->shard ? p->net->generated : p->n_prompt == 0 || (c->loose && p->n <= FM_FEW_ROWS);
  TRY(fm_scratch(c, &p->x, p->n, g->hidden_size));
  TRY(fm_scratch(c, &p->hidden, p->n, g->hidden_size));
  TRY(fm_scratch(c, &p->logits, fm_comm_me(p->net->tp) ? 0 : p->n_logits, g->vocab_size));
  TRY(fm_scratch_drawn(c, &p->drawn, p->n_logits));
  TRY(stage(p, segs, n_segs, c->ops->draw ? rule : NULL));
  if (p->mtp) TRY(gather_states(p, segs, n_segs, &h));
  // what is looked at or computed by the host between operations cannot be noted
  bool noted = c->ops->record && c->generated && p->n_prompt == 0 && !c->debug && !p->net->host;
  return noted ? recorded(p, h, slab) : embed(p, h);
}

fm_status fm_pass_begin(fm_pass *p, fm_net *net, fm_seg *segs, int64_t n_segs, bool mtp, const fm_draw_rule *rule) {
  *p = (fm_pass){ .net = net, .mtp = mtp, .mark = fm_scratch_here(net->c) };
  p->layer = mtp ? net->cfg->num_hidden_layers : 0;
  p->n_layers = net->cfg->num_hidden_layers + mtp;
  fm_status status = net->ranks ? fm_ranks_begin(p, segs, n_segs, rule) : begin(p, segs, n_segs, rule);
  if (status != FM_OK) fm_pass_end(p);
  return status;
}

fm_status fm_pass_layer(fm_pass *p, bool *done) {
  fm_status status = p->layer > p->n_layers ? FM_OK : p->net->ranks ? fm_ranks_layer(p) : layer(p);
  *done = p->layer > p->n_layers;
  return status;
}

fm_status fm_pass_states(fm_pass *p, float **x) {
  if (p->net->ranks) return fm_ranks_states(p, x);
  *x = p->x;
  return FM_OK;
}

void fm_pass_end(fm_pass *p) {
  if (p->net->ranks) fm_ranks_end(p);
  fm_scratch_back(p->net->c, p->mark);
}
