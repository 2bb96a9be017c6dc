/*
** share.c - a model handed from one scripting state to another of the same process: a number, good for one adoption.
** The list of models on offer is the only thing here that threads may touch at once.
*/
#include <stdatomic.h>

#include "run/engine.h"

typedef struct offer { struct offer *next; uint64_t key; fm_model *m; } offer;

static struct { atomic_flag busy; offer *first; uint64_t last; } list = { .busy = ATOMIC_FLAG_INIT };

static void enter(void) {
  while (atomic_flag_test_and_set_explicit(&list.busy, memory_order_acquire)) {}
}
static void leave(void) { atomic_flag_clear_explicit(&list.busy, memory_order_release); }

fm_status fm_model_share(fm_model *m, uint64_t *key, fm_error *err) {
  offer *o = fm_zalloc(sizeof *o);
  if (!o) return fm_no_memory(err, sizeof *o);
  fm_model_keep(m);
  o->m = m;
  enter();
  *key = o->key = ++list.last;
  o->next = list.first;
  list.first = o;
  leave();
  return FM_OK;
}

fm_status fm_model_adopt(fm_model **out, uint64_t key, fm_error *err) {
  enter();
  offer **at = &list.first;
  while (*at && (*at)->key != key) at = &(*at)->next;
  offer *o = *at;
  if (o) *at = o->next;
  leave();
  if (!o) return fm_fail(err, FM_ELIMIT, "no model is offered under %llu: each share is good for one adoption",
                         (unsigned long long)key);
  *out = o->m;
  fm_free(o);
  return FM_OK;
}
