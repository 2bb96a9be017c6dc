/* shortest.h - walks the shortest way through a grammar that was read: it must get shorter by one with every byte, and end. */
#include <stdlib.h>

#include "run/automaton.h"

/* A byte of the place from which the end is nearest. */
static uint8_t nearest(const fm_machine *x, const fm_places *now) {
  int64_t which = 0;
  fm_places_least(x, now, &which);
  return (uint8_t)x->r->node[now->at[which].node].min;
}

static void walk_shortest(const fm_rules *r) {
  fm_machine x;
  fm_places now = { 0 }, then = { 0 };
  fm_error err;
  if (fm_machine_init(&x, r, &err) != FM_OK) abort();
  fm_status status = fm_machine_start(&x, &now, r->root);
  int64_t left = r->least[r->root];
  for (int i = 0; i < 2000 && left > 0 && status == FM_OK; i++, left--) {
    if (fm_places_least(&x, &now, NULL) != left) abort();
    x.work = 0;
    status = fm_machine_step(&x, &now, nearest(&x, &now), &then);
    if (status == FM_OK && !then.n) abort();
    fm_places swap = now;
    now = then;
    then = swap;
  }
  if (status != FM_OK && status != FM_ELIMIT) abort();
  if (status == FM_OK && left == 0 && !fm_places_end(&now)) abort();
  fm_free(now.at);
  fm_free(then.at);
  fm_machine_free(&x);
}
