/*
** warm.c - a new model runs through once, on a device with a memory of its own: such a device fetches code and opens libraries when
** something is first asked for, which is part of loading, not of the first answer.
*/
#include "run/engine.h"

/* One pass of n rows on pages of its own; what it says is not looked at. */
static fm_status run(fm_model *m, const int32_t *ids, const float *h, int64_t n, fm_role role, bool mtp) {
  fm_kv_seq seq = { 0 };
  fm_draw_rule rule = { 0 };
  fm_seg seg = { .seq = &seq, .ids = ids, .h = mtp ? h : NULL, .index = mtp, .n = n, .role = role, .n_logits = 1 };
  fm_pass p;
  bool done = false;
  float *row;
  fm_error err;
  if (fm_kv_reserve(m->kv, &seq, 0, mtp + n, &err) != FM_OK) return FM_OK;       // a small cache: no more than that
  seq.mtp_first = mtp;
  fm_mark mark = fm_arena_mark(&m->c.arena);
  fm_status status = fm_pass_begin(&p, &m->net, &seg, 1, mtp, &rule);
  if (status == FM_OK) {
    while (status == FM_OK && !done) status = fm_pass_layer(&p, &done);
    if (status == FM_OK) status = fm_to_host(&m->c, &row, p.hidden, 1, m->cfg.hidden_size);
    fm_pass_end(&p);
  }
  fm_arena_release(&m->c.arena, mark);
  fm_kv_drop(m->kv, &seq);
  return status;
}

/* Numbers of rows that go different ways on some device. */
enum { MOST = 40 };
static const int64_t few[] = { 1, 2, 12, 24, MOST };

static fm_status run_all(fm_model *m, const int32_t *ids, const float *h) {
  int64_t most = m->seqs * (1 + m->drafts);
  for (int mtp = 0; mtp <= (m->drafts > 0); mtp++) {
    int64_t room = m->ctx - mtp;
    if (room >= 16) TRY(run(m, ids, h, 16, FM_PROMPT, mtp));
    for (size_t i = 0; i < sizeof few / sizeof *few && few[i] <= most && few[i] <= room; i++)
      TRY(run(m, ids, h, few[i], FM_GENERATED, mtp));
  }
  return FM_OK;
}

fm_status fm_model_warm(fm_model *m, fm_error *err) {
  int32_t ids[MOST] = { 0 };
  bool debug = m->c.debug;
  // experts of the host would be read from the disk for nothing
  if (!m->c.ops->upload || m->net.host || m->ranks) return FM_OK;
  float *h = fm_array(MOST * m->cfg.hidden_size, sizeof *h);
  if (!h) return fm_no_memory(err, MOST * m->cfg.hidden_size * (int64_t)sizeof *h);
  m->c.debug = false;                              // what is wrong with the weights is said when they are used
  fm_status status = run_all(m, ids, h);
  m->c.debug = debug;
  fm_free(h);
  fm_net_forget_load(&m->net);
  if (status != FM_OK && err) *err = m->c.err;
  return status;
}
