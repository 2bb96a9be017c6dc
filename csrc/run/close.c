/*
** close.c - walks the shortest way once, then cuts its bytes into as few tokens as possible.
*/
#include "run/close.h"

/* A byte of the node's range that reads well. */
static char byte_of(const fm_node *n) { return (char)(n->min < ' ' && n->max >= ' ' ? ' ' : n->min); }

/* What follows the end of the topmost frame on the shortest way. */
static fm_status back(fm_machine *x, fm_place *p) {
  fm_frame f = x->frame[p->stack];
  if (f.body >= 0 && f.min > 1) {
    *p = (fm_place){ f.body, fm_machine_push(x, f.next, f.body, f.min - 1, f.max == FM_MANY ? FM_MANY : f.max - 1, f.parent) };
  } else {
    *p = (fm_place){ f.next, f.parent };
  }
  return p->stack < 0 ? x->err.code : FM_OK;
}

/* One node further on the shortest way; a byte is spelled out. */
static fm_status advance(fm_close *c, fm_machine *x, fm_place *p) {
  const fm_node *n = &x->r->node[p->node];
  const int64_t *least = x->r->least;
  switch (n->kind) {
    case FM_BYTES:
      TRY(fm_grow(&c->bytes, &c->cap_bytes, c->n_bytes + 1, 1, &x->err));
      c->bytes[c->n_bytes++] = byte_of(n);
      p->node = n->next;
      return FM_OK;
    case FM_SPLIT:
      p->node = least[n->next] <= least[n->other] ? n->next : n->other;
      return FM_OK;
    case FM_CALL:
      *p = (fm_place){ x->r->rule[n->other].start, fm_machine_push(x, n->next, -1, 0, 0, p->stack) };
      break;
    case FM_LOOP:
      if (n->min == 0) p->node = n->next;
      else *p = (fm_place){ n->other, fm_machine_push(x, n->next, n->other, n->min, n->max, p->stack) };
      break;
    default: return back(x, p);
  }
  return p->stack < 0 ? x->err.code : FM_OK;
}

/* The first token that ends at a node and is not banned; -1: none. */
static int32_t token_of(const fm_trie *t, int32_t node, const uint64_t *banned) {
  for (int32_t i = t->first[node]; i < t->first[node + 1]; i++)
    if (!banned || !(banned[t->id[i] >> 6] >> (t->id[i] & 63) & 1)) return t->id[i];
  return -1;
}

/* best[i]: the fewest tokens for the bytes from i on; step[i]: the node of the first of them. */
static void cut(fm_close *c, const fm_trie *t, const uint64_t *banned) {
  int64_t n = c->n_bytes;
  c->best[n] = 0;
  for (int64_t i = n; i-- > 0;) {
    c->best[i] = INT32_MAX;
    int32_t node = 0;
    for (int64_t j = i; j < n && (node = fm_trie_child(t, node, (uint8_t)c->bytes[j])) != 0; j++) {
      if (c->best[j + 1] == INT32_MAX || c->best[j + 1] + 1 >= c->best[i] || token_of(t, node, banned) < 0) continue;
      c->best[i] = c->best[j + 1] + 1;
      c->step[i] = node;
    }
  }
}

fm_status fm_close_plan(fm_close *c, fm_machine *x, const fm_places *now, const fm_trie *t, const uint64_t *banned,
                        fm_error *err) {
  int64_t which = 0, least = fm_places_least(x, now, &which);
  c->n = c->n_bytes = 0;
  if (least > FM_CLOSE_BYTES) return fm_fail(err, FM_ELIMIT, "the shortest document has %lld bytes", (long long)least);
  TRY(fm_grow(&c->best, &c->cap_best, least + 1, sizeof *c->best, err));
  TRY(fm_grow(&c->step, &c->cap_step, least + 1, sizeof *c->step, err));
  TRY(fm_grow(&c->id, &c->cap, least, sizeof *c->id, err));
  fm_place p = now->at[which];
  fm_status status = FM_OK;
  while (status == FM_OK && (p.node != FM_END || p.stack)) status = advance(c, x, &p);
  if (status != FM_OK) {
    if (err) *err = x->err;
    return status;
  }
  cut(c, t, banned);
  if (c->best[0] == INT32_MAX) return fm_fail(err, FM_ELIMIT, "no tokens spell the shortest document");
  for (int64_t i = 0; i < c->n_bytes; i += t->depth[c->step[i]]) c->id[c->n++] = token_of(t, c->step[i], banned);
  return FM_OK;
}

void fm_close_free(fm_close *c) {
  fm_free(c->id);
  fm_free(c->bytes);
  fm_free(c->best);
  fm_free(c->step);
  *c = (fm_close){ .n = 0 };
}
