/*
** far.c - several processes that run the same script, each a rank: they ask for the same passes in the same order. What would make them
** differ is the same for all: seeds that are drawn begin with one number, and steps end with a pass, not with a clock.
*/
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "op/load.h"
#include "op/team.h"
#include "run/engine.h"

/* The device of this process: with a GPU for each of those on a machine its own one. */
static void own_device(char name[64], const fm_load_options *o, const fm_seat *seat) {
  const char *asked = o->device, *said = getenv("FATHOM_DEVICE");
  if (!asked || strcmp(asked, "auto") == 0) asked = said && *said ? said : "auto";
  bool open = strcmp(asked, "auto") == 0;
  const fm_backend *ops;
  int index;
  fm_device *dev = NULL;
  snprintf(name, 64, "%s", asked);
  if (seat->local < 0 || (!open && strcmp(asked, "cuda") != 0)) return;
  snprintf(name, 64, "cuda:%d", seat->local);
  if (!open) return;
  if (fm_backend_find(&ops, &index, name, NULL) == FM_OK && ops->open(&dev, index, 1, NULL) == FM_OK) ops->close(dev);
  else snprintf(name, 64, "cpu");
}

fm_status fm_far_join(fm_model *m, const fm_load_options *o, char **devices, fm_error *err) {
  char name[64];
  *devices = NULL;
  if (fm_device_count(o->device) > 1) return FM_OK;
  TRY(fm_seat_find(&m->seat, err));
  if (m->seat.world == 1) return FM_OK;
  if (m->seat.world > FM_MOST_RANKS) return fm_fail(err, FM_EUNSUPPORTED, "%d processes: at most %d", m->seat.world, FM_MOST_RANKS);
  TRY(fm_wire_open(&m->wire, &m->seat, fm_team_limit(0), err));
  own_device(name, o, &m->seat);
  size_t len = strlen(name) + 1;
  char *all = fm_alloc((int64_t)len * m->seat.world);
  if (!all) return fm_no_memory(err, (int64_t)len * m->seat.world);
  for (int i = 0; i < m->seat.world; i++) {
    memcpy(all + (size_t)i * len, name, len);
    all[(size_t)(i + 1) * len - 1] = i + 1 < m->seat.world ? ',' : 0;
  }
  *devices = all;
  return FM_OK;
}

/* What all have to have in common. */
typedef struct facts {
  uint64_t digest, seeds;
  int64_t ctx, seqs, chunk, budget, pages;
  int32_t pp, dp, tp, ep, drafts, arithmetic, cache, loose;
  char kind[16];
} facts;

static const char *differs(const facts *a, const facts *b) {
  if (strcmp(a->kind, b->kind) != 0) return "kinds of devices";
  if (a->digest != b->digest) return "checkpoints";
  if (a->pp != b->pp || a->dp != b->dp || a->tp != b->tp || a->ep != b->ep) return "parallel";
  if (a->ctx != b->ctx || a->seqs != b->seqs || a->chunk != b->chunk || a->budget != b->budget || a->pages != b->pages)
    return "sizes (ctx, seqs, chunk, budget, cache_bytes)";
  if (a->drafts != b->drafts || a->arithmetic != b->arithmetic || a->cache != b->cache || a->loose != b->loose)
    return "options (mtp, dtype, cache_dtype, deterministic)";
  return NULL;
}

fm_status fm_far_agree(fm_model *m, const fm_forms *f, uint64_t digest, fm_error *err) {
  facts all[FM_MOST_RANKS], mine = {
    .digest = digest, .ctx = m->ctx, .seqs = m->seqs, .chunk = m->chunk, .budget = m->budget, .pages = m->kv->n_pages,
    .pp = f->pp, .dp = f->dp, .tp = f->tp, .ep = f->ep, .drafts = m->drafts, .arithmetic = (int32_t)m->c.arithmetic,
    .cache = (int32_t)m->kv->dtype, .loose = m->c.loose };
  int rank[FM_MOST_RANKS], n = m->seat.world, me = m->seat.rank;
  int64_t size[FM_MOST_RANKS];
  void *out[FM_MOST_RANKS];
  const void *in[FM_MOST_RANKS];
  snprintf(mine.kind, sizeof mine.kind, "%s", m->c.ops->name);
  if (getrandom(&mine.seeds, sizeof mine.seeds, 0) != (ssize_t)sizeof mine.seeds) mine.seeds = (uint64_t)(uintptr_t)m;
  for (int i = 0; i < n; i++) rank[i] = i, size[i] = (int64_t)sizeof mine, out[i] = &all[i], in[i] = &mine;
  TRY(fm_wire_swap(m->wire, rank, n, out, size, in, size, err));
  m->seeds = (int64_t)(all[0].seeds >> 11);
  for (int i = 0; i < n; i++) {
    const char *what = differs(&all[i], &mine);
    if (!what) continue;
    fm_fail(err, FM_EDEVICE, "processes %d and %d have different %s", me, i, what);
    return fm_hint(err, FM_EDEVICE, "all of them run the same script with the same options");
  }
  return FM_OK;
}
