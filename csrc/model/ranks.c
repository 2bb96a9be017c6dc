/*
** ranks.c - a model on several ranks: dealing a pass, running it, gathering what came of it.
*/
#include "model/ranks.h"

#include <string.h>

typedef struct grouping { int size; fm_group **group; int n; } grouping;

struct fm_ranks {
  fm_team *team;                         /* of one where the others are processes */
  fm_wire *wire;
  fm_comm *all;                          /* wire: of all processes */
  int me;                                /* the caller's rank */
  fm_forms of;
  bool mtp;
  int n;
  const fm_config *cfg;
  grouping tp, ep, share, pipe;
  fm_rank *rank;
  /* the pass under way, for the ranks' threads */
  fm_pass *pass;
};

int fm_ranks_size(const fm_ranks *r) { return r->n; }
int fm_ranks_me(const fm_ranks *r) { return r->me; }
fm_rank *fm_ranks_at(fm_ranks *r, int i) { return &r->rank[i]; }
fm_forms fm_ranks_forms(const fm_ranks *r) { return r->of; }

/* ---- life ------------------------------------------------------------------------------------------------ */

fm_status fm_ranks_new(fm_ranks **out, const fm_config *cfg, fm_forms of, bool mtp, fm_ctx *c, fm_wire *wire, fm_error *err) {
  fm_ranks *r = fm_zalloc(sizeof *r);
  if (!r) return fm_no_memory(err, sizeof *r);
  *r = (fm_ranks){ .of = of, .mtp = mtp, .n = of.pp * of.dp * of.tp, .cfg = cfg, .wire = wire, .me = wire ? fm_wire_me(wire) : 0 };
  r->rank = fm_array(r->n, sizeof *r->rank);
  fm_status status = r->rank ? fm_team_new(&r->team, wire ? 1 : r->n, 0, err) : fm_no_memory(err, r->n * (int64_t)sizeof *r->rank);
  if (status != FM_OK) {
    fm_ranks_free(r);
    return status;
  }
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    fm_shard_make(&k->shard, cfg, of, mtp, i);
    k->c = i == r->me ? c : wire ? NULL : &k->own;
    k->cfg = *cfg;
    k->cfg.num_attention_heads /= of.tp;
    k->cfg.num_key_value_heads /= of.tp;
  }
  *out = r;
  return FM_OK;
}

static void leave(fm_comm *m) {
  if (m) m->ops->leave(m);
}

static void dissolve(const fm_ranks *r, grouping *g) {
  for (int i = 0; g->group && i < g->n; i++)
    if (g->group[i]) r->rank[r->me].c->ops->comm->dissolve(g->group[i]);
  fm_free(g->group);
}

bool fm_ranks_stop(fm_ranks *r) {
  if (!r) return true;
  if (!fm_team_free(r->team)) return false;
  r->team = NULL;
  return true;
}

void fm_ranks_free(fm_ranks *r) {
  if (!r || !fm_ranks_stop(r)) return;
  for (int i = 0; r->rank && i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    leave(k->net.tp), leave(k->net.ep), leave(k->net.share), leave(k->net.pipe);
    if (k->net.c) fm_net_free(&k->net);
    if (i != r->me) fm_weights_free(k->w);
    fm_free(k->home);
    fm_free(k->seg);
    fm_free(k->place);
    fm_free(k->rule);
  }
  leave(r->all);
  if (r->rank && r->rank[r->me].c->ops)
    dissolve(r, &r->tp), dissolve(r, &r->ep), dissolve(r, &r->share), dissolve(r, &r->pipe);
  for (int i = 0; r->rank && i < r->n; i++)
    if (r->rank[i].own.dev) fm_ctx_close(&r->rank[i].own);
  fm_free(r->rank);
  fm_free(r);
}

void fm_ranks_parts(fm_ranks *r, fm_kv_part *out) {
  bool heads = r->cfg->family == FM_QWEN2;         // a latent is the same for all heads
  for (int i = 0; i < r->n; i++) {
    const fm_shard *s = &r->rank[i].shard;
    out[i] = (fm_kv_part){ .c = r->rank[i].c, .group = s->d, .layer = s->layer, .n_layers = s->end - s->layer,
                           .slice = heads ? s->t : 0, .n_slices = heads ? r->of.tp : 1 };
  }
}

static fm_status found(fm_ranks *r, grouping *g, int size, fm_error *err) {
  *g = (grouping){ .size = size, .n = size > 1 ? r->n / size : 0 };
  if (size == 1) return FM_OK;
  g->group = fm_array(g->n, sizeof(fm_group *));
  if (!g->group) return fm_no_memory(err, g->n * (int64_t)sizeof(fm_group *));
  for (int i = 0; i < g->n; i++) TRY(r->rank[0].c->ops->comm->found(&g->group[i], fm_team_hub(r->team), size, err));
  return FM_OK;
}

static fm_status join(const fm_rank *k, grouping *g, fm_comm **out, int which, int me, fm_error *err) {
  return g->size > 1 ? k->c->ops->comm->join(out, g->group[which], k->c->dev, me, err) : FM_OK;
}

/* Ranks first, first + step, ... of which `me` is this process's. */
static fm_status join_far(fm_ranks *r, fm_comm **out, int first, int step, int n, int me, fm_error *err) {
  fm_rank *k = &r->rank[r->me];
  int rank[FM_MOST_RANKS];
  for (int i = 0; i < n; i++) rank[i] = first + i * step;
  if (!k->c->ops->comm || !k->c->ops->comm->join_far)
    return fm_fail(err, FM_EUNSUPPORTED, "the %s does not work together with other processes", k->c->ops->name);
  return n > 1 ? k->c->ops->comm->join_far(out, r->wire, rank, n, me, k->c->dev, err) : FM_OK;
}

static fm_status connect_far(fm_ranks *r, int ep, int share, fm_error *err) {
  fm_net *net = &r->rank[r->me].net;
  int i = r->me, stage = r->of.dp * r->of.tp;
  TRY(join_far(r, &net->tp, i - i % r->of.tp, 1, r->of.tp, i % r->of.tp, err));
  TRY(join_far(r, &net->ep, i - i % ep, 1, ep, i % ep, err));
  TRY(join_far(r, &net->share, i - i % share, 1, share, i % share, err));
  TRY(join_far(r, &net->pipe, i % stage, stage, r->of.pp, i / stage, err));
  return join_far(r, &r->all, 0, 1, r->n, i, err);
}

static fm_status connect(fm_ranks *r, fm_error *err) {
  fm_forms of = r->of;
  int stage = of.dp * of.tp, ep = r->cfg->n_routed_experts ? of.ep : 1, share = ep < of.tp ? ep : of.tp;
  if (r->wire) return connect_far(r, ep, share, err);
  TRY(found(r, &r->tp, of.tp, err));
  TRY(found(r, &r->ep, ep, err));
  TRY(found(r, &r->share, share, err));
  TRY(found(r, &r->pipe, of.pp, err));
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    TRY(join(k, &r->tp, &k->net.tp, i / of.tp, i % of.tp, err));
    TRY(join(k, &r->ep, &k->net.ep, i / ep, i % ep, err));
    TRY(join(k, &r->share, &k->net.share, i / share, i % share, err));
    TRY(join(k, &r->pipe, &k->net.pipe, i % stage, i / stage, err));
  }
  return FM_OK;
}

fm_status fm_ranks_ready(fm_ranks *r, fm_net *net, fm_kv *kv, int64_t n_positions, int64_t n_valid, fm_error *err) {
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    if (!k->c) continue;
    TRY(fm_net_init(&k->net, k->c, &k->cfg, k->w, kv, n_positions, n_valid, err));
    k->net.part = i;
    k->net.shard = &k->shard;
  }
  TRY(connect(r, err));
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    if (!k->net.ep) continue;
    k->home = fm_array(k->net.ep->n, sizeof *k->home);
    if (!k->home) return fm_no_memory(err, k->net.ep->n * (int64_t)sizeof *k->home);
    k->net.home = k->home;
  }
  fm_rank *me = &r->rank[r->me];
  *net = (fm_net){ .cfg = r->cfg, .w = me->w, .kv = kv, .c = me->c, .ranks = r, .n_positions = n_positions, .n_turns = me->net.n_turns,
                   .n_valid = n_valid };
  return FM_OK;
}

/* ---- dealing ----------------------------------------------------------------------------------------------- */

/* Rank k's own segments. Logits are the last stage's. */
static fm_status deal_to(const fm_ranks *r, fm_rank *k, const fm_seg *segs, int64_t n_segs, const fm_draw_rule *rule, fm_error *err) {
  int64_t n_rule = 0;
  k->n_segs = 0;
  TRY(fm_grow(&k->seg, &k->cap_seg, n_segs, sizeof *k->seg, err));
  TRY(fm_grow(&k->place, &k->cap_place, n_segs, sizeof *k->place, err));
  for (int64_t i = 0; i < n_segs; i++) {
    const fm_seg *s = &segs[i];
    if (s->seq->group != k->shard.d) continue;
    if (rule) TRY(fm_grow(&k->rule, &k->cap_rule, n_rule + s->n_logits, sizeof *k->rule, err));
    if (rule && s->n_logits) memcpy(k->rule + n_rule, rule + s->logits_row, (size_t)s->n_logits * sizeof *rule);
    n_rule += s->n_logits;
    k->place[k->n_segs] = (struct fm_dealt){ s->row, s->logits_row };
    k->seg[k->n_segs] = *s;
    if (k->shard.stage + 1 < r->of.pp) k->seg[k->n_segs].n_logits = 0;
    k->n_segs++;
  }
  if (k->c) k->pass = (fm_pass){ .net = &k->net, .mark = fm_scratch_here(k->c) };
  return FM_OK;
}

static int64_t rows_of(const fm_rank *k, bool logits) {
  int64_t n = 0;
  for (int64_t i = 0; i < k->n_segs; i++) n += logits ? k->seg[i].n_logits : k->seg[i].n;
  return n;
}

/* Which rows each rank of a rank's ep is at home for: of those that some have in common a part. */
static void say_homes(const fm_ranks *r, fm_rank *k) {
  int ep = fm_comm_size(k->net.ep), share = ep < r->of.tp ? ep : r->of.tp, first = k->shard.rank - k->shard.rank % ep;
  for (int i = 0; k->home && i < ep; i++) {
    int64_t n = rows_of(&r->rank[first + i], false);
    int which = (first + i) % share;
    k->home[i] = fm_part(n, share, which + 1) - fm_part(n, share, which);
  }
}

/* Groups whose ranks have not met since the last failure do so now: what is noted cannot. */
static fm_status meet(fm_ranks *r, fm_rank *k) {
  unsigned epoch = fm_hub_epoch(fm_team_hub(r->team));
  if (k->met && k->epoch == epoch) return FM_OK;
  k->c->ops->enter(k->c->dev);
  fm_comm *const comm[] = { k->net.tp, k->net.ep, k->net.share, k->net.pipe, r->all };
  for (size_t i = 0; i < sizeof comm / sizeof *comm; i++) TRY(fm_op_barrier(k->c, comm[i]));
  k->c->ops->leave(k->c->dev);
  k->met = true;
  k->epoch = epoch;
  return FM_OK;
}

static fm_status begin_one(void *arg, int i, fm_error *err) {
  fm_ranks *r = arg;
  fm_rank *k = &r->rank[i];
  fm_status met = meet(r, k);
  if (met != FM_OK) {
    *err = k->c->err;
    return met;
  }
  const fm_draw_rule *rule = r->pass->rule && k->n_segs && !k->shard.t ? k->rule : NULL;
  fm_status status = fm_pass_begin(&k->pass, &k->net, k->seg, k->n_segs, r->pass->mtp, rule);
  if (status != FM_OK) *err = k->c->err;
  return status;
}

static fm_status run(fm_ranks *r, fm_team_fn fn) {
  fm_ctx *c = r->rank[r->me].c;
  fm_error err;
  fm_status status = r->wire ? fn(r, r->me, &err) : fm_team_run(r->team, fn, r, &err);
  if (status == FM_OK) return FM_OK;
  if (r->wire) fm_wire_break(r->wire, err.message);        // the others wait for what does not come
  c->err = err;
  return status;
}

fm_status fm_ranks_begin(fm_pass *p, fm_seg *segs, int64_t n_segs, const fm_draw_rule *rule) {
  fm_ranks *r = p->net->ranks;
  fm_ctx *c = p->net->c;
  int64_t d = r->cfg->hidden_size;
  for (int64_t i = 0; i < n_segs; i++) {
    segs[i].row = p->n;
    segs[i].logits_row = p->n_logits;
    p->n += segs[i].n;
    p->n_logits += segs[i].n_logits;
  }
  p->rule = (fm_draw_rule *)(uintptr_t)(p->n_logits && c->ops->draw ? rule : NULL);
  r->pass = p;
  bool generated = (n_segs > 0 && segs[0].role == FM_GENERATED) || (c->loose && p->n <= FM_FEW_ROWS);   // a pass has one role
  for (int i = 0; i < r->n; i++)
    if (r->rank[i].c) r->rank[i].pass = (fm_pass){ .net = &r->rank[i].net, .mark = fm_scratch_here(r->rank[i].c) };
  TRY(fm_scratch(c, &p->hidden, p->n, d));
  TRY(fm_scratch(c, &p->logits, p->n_logits, r->cfg->vocab_size));
  TRY(fm_scratch_drawn(c, &p->drawn, p->n_logits));
  for (int i = 0; i < r->n; i++) TRY(deal_to(r, &r->rank[i], segs, n_segs, p->rule, &c->err));
  for (int i = 0; i < r->n; i++) {
    say_homes(r, &r->rank[i]);
    r->rank[i].net.generated = generated;
  }
  return run(r, begin_one);
}

/* ---- running ------------------------------------------------------------------------------------------------- */

/* Whether the rank speaks for its rows: the first of those that share them, where they are. */
static bool speaks(const fm_rank *k, int stage) { return k->shard.t == 0 && k->shard.stage == stage; }

static void copy(fm_ctx *c, void *to, const void *from, int64_t size) {
  if (size) c->ops->copy(c->dev, to, from, size);
}

/* A rank's rows into their places among all, neighbours at once. */
static void gather(fm_ctx *c, const fm_rank *k, float *to, const float *from, int64_t width) {
  for (int64_t i = 0, row = 0, n; i < k->n_segs; row += n) {
    int64_t first = k->place[i].row;
    for (n = 0; i < k->n_segs && k->place[i].row == first + n; i++) n += k->seg[i].n;
    copy(c, to + first * width, from + row * width, n * width * (int64_t)sizeof *to);
  }
}

static void gather_logits(fm_ctx *c, const fm_rank *k, const fm_pass *p, const float *logits, const fm_drawn *drawn) {
  int64_t v = p->net->cfg->vocab_size;
  for (int64_t i = 0, row = 0, n; i < k->n_segs; row += n) {
    int64_t first = k->place[i].logits_row;
    for (n = 0; i < k->n_segs && k->place[i].logits_row == first + n; i++) n += k->seg[i].n_logits;
    copy(c, p->logits + first * v, logits + row * v, n * v * (int64_t)sizeof *p->logits);
    if (p->rule) copy(c, p->drawn + first, drawn + row, n * (int64_t)sizeof *p->drawn);
  }
}

/* What a rank with a memory of its own has gathered is there. Rank 0's is in the caller's order anyway. */
static fm_status settle(fm_rank *k) {
  int32_t word;
  return k->shard.rank && k->c->ops->download ? k->c->ops->download(k->c, &word, k->pass.hidden, sizeof word) : FM_OK;
}

/* Another process's n rows of `size` bytes, or this one's, which all are told: what this one has, or scratch. */
static fm_status tell(fm_ranks *r, int who, void **data, int64_t n, int64_t size) {
  fm_ctx *c = r->rank[r->me].c;
  float *room;
  if (who != r->me) {
    TRY(fm_scratch(c, &room, n, (size + 3) / 4));
    *data = room;
  }
  return fm_op_broadcast(c, r->all, *data, n * size, who);
}

/* Who speaks for some rows tells all processes what came of them. */
static fm_status tell_all(fm_ranks *r) {
  fm_ctx *c = r->rank[r->me].c;
  fm_pass *p = r->pass;
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    int64_t n = rows_of(k, false), n_logits = rows_of(k, true);
    if (!speaks(k, r->of.pp - 1) || !n) continue;
    fm_scratch_mark mark = fm_scratch_here(c);
    void *hidden = k->pass.hidden, *logits = k->pass.logits, *drawn = k->pass.drawn;
    fm_status status = tell(r, i, &hidden, n, r->cfg->hidden_size * (int64_t)sizeof(float));
    if (status == FM_OK) status = tell(r, i, &logits, n_logits, r->cfg->vocab_size * (int64_t)sizeof(float));
    if (status == FM_OK && p->rule) status = tell(r, i, &drawn, n_logits, (int64_t)sizeof *p->drawn);
    if (status == FM_OK) gather(c, k, p->hidden, hidden, r->cfg->hidden_size);
    if (status == FM_OK) gather_logits(c, k, p, logits, drawn);
    fm_scratch_back(c, mark);
    TRY(status);
  }
  return FM_OK;
}

static fm_status gather_own(fm_ranks *r, fm_rank *k) {
  if (r->wire) return tell_all(r);
  if (!speaks(k, r->of.pp - 1) || !k->pass.n) return FM_OK;
  gather(k->c, k, r->pass->hidden, k->pass.hidden, r->cfg->hidden_size);
  gather_logits(k->c, k, r->pass, k->pass.logits, k->pass.drawn);
  return settle(k);
}

static fm_status layer_one(void *arg, int i, fm_error *err) {
  fm_ranks *r = arg;
  fm_rank *k = &r->rank[i];
  bool done;
  fm_status status = fm_pass_layer(&k->pass, &done);
  if (status == FM_OK && done) status = gather_own(r, k);
  if (status != FM_OK) *err = k->c->err;
  return status;
}

fm_status fm_ranks_layer(fm_pass *p) {
  fm_ranks *r = p->net->ranks;
  TRY(run(r, layer_one));
  p->layer = r->rank[r->me].pass.layer;            // a noted pass is done at once
  return FM_OK;
}

/* The stage that the residual stream is at. */
static int stage_of(const fm_ranks *r, int64_t layer) {
  int s = 0;
  while (s < r->of.pp - 1 && layer >= fm_part(r->cfg->num_hidden_layers, r->of.pp, s + 1)) s++;
  return s;
}

fm_status fm_ranks_states(fm_pass *p, float **x) {
  fm_ranks *r = p->net->ranks;
  int64_t d = r->cfg->hidden_size;
  TRY(fm_scratch(p->net->c, x, p->n, d));
  for (int i = 0; i < r->n; i++) {
    fm_rank *k = &r->rank[i];
    int64_t n = rows_of(k, false);
    void *rows = k->pass.x;
    if (!n || !speaks(k, stage_of(r, p->layer))) continue;
    if (r->wire) TRY(tell(r, i, &rows, n, d * (int64_t)sizeof(float)));
    gather(r->wire ? p->net->c : k->c, k, *x, rows, d);
    if (!r->wire && settle(k) != FM_OK) return p->net->c->err = k->c->err, k->c->err.code;
  }
  return FM_OK;
}

void fm_ranks_end(fm_pass *p) {
  fm_ranks *r = p->net->ranks;
  if (r->pass != p) return;
  if (fm_team_lost(r->team)) return;     // what it holds is left to it
  for (int i = r->n - 1; i >= 0; i--)
    if (r->rank[i].c) fm_pass_end(&r->rank[i].pass);
  r->pass = NULL;
}
