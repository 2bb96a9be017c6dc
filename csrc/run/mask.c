/*
** mask.c - walks over the trie, once for each kind of place.
*/
#include "run/mask.h"

#include <string.h>

enum {
  MAX_STATES = 1 << 13, MAX_PLACES = 1 << 20,      /* then everything is forgotten and found again */
  MAX_SHEET_BYTES = 8 << 20,
  MAX_UNDER = 1 << 14,                   /* walks below frames in one mask: hundreds at most where a text is read in few ways */
  TOO_MANY_PLACES = 1 << 23,             /* in one mask: 64 MiB */
  BIG = 1024,                            /* nodes under a node from which it pays to look at them as one */
  CONTEXT = 4                            /* frames looked at together */
};

/* What follows from one state: the tokens that do not leave its frame before their end, and where others do. */
typedef struct sheet {
  int32_t state;
  int32_t *id; int64_t n_ids;            /* a few tokens, or */
  uint64_t *bits;                        /* one bit each */
  int32_t *leave; int64_t n_leave;       /* nodes of the trie with more below them */
  /* For repetitions with bounds, once wanted: kinds of characters that are one turn each, */
  bool counted;
  uint64_t kinds, *plain;                /* tokens of them alone, */
  int32_t *odd; int64_t n_odd;           /* and places of the others in the trie's list */
} sheet;

/* place[from ..]; sheet -1: none yet. loops: kinds of characters that lead back here, once looked at. */
typedef struct state { int64_t from; uint64_t loops; int32_t n, sheet; bool ends, looked; } state;

struct fm_masks {
  const fm_rules *r;
  const fm_trie *t;
  fm_machine x;                          /* stacks above the unknown */
  int64_t n_words;
  uint8_t class_of[256], member[256];    /* bytes that no node tells apart, and one of each kind */
  int32_t n_classes;
  state *state; int64_t n_states, cap_states;      /* state 0: nothing fits */
  fm_place *place; int64_t n_places, cap_places;
  int32_t *delta; int64_t cap_delta;     /* (n_states, n_classes); -1: not known yet */
  int32_t *slot; int64_t n_slots;        /* states by their places */
  int32_t *after; int64_t cap_after;     /* by stack of one frame: the state when it ends; 0: not known yet */
  sheet *sheet; int64_t n_sheets, cap_sheets, sheet_bytes;
  fm_places tmp, set;
  int32_t *path; int64_t cap_path;       /* states along the way down, a stretch for each walk inside another */
  int32_t *leave; int64_t n_leave, cap_leave;      /* of a sheet's walk: where the frame is left */
  int64_t under;                         /* walks below frames of this mask */
  uint64_t *scratch, *fresh;             /* masks: of one group, of a sheet in the making */
  fm_status status;                      /* of the walk under way; the first failure stays */
};

/* ---- kinds of bytes --------------------------------------------------------------------------------- */

static void classify(fm_masks *k) {
  bool border[257] = { true };
  for (int64_t i = 0; i < k->r->n; i++) {
    const fm_node *n = &k->r->node[i];
    if (n->kind == FM_BYTES) border[n->min] = border[n->max + 1] = true;
  }
  for (int b = 0; b < 256; b++) {
    if (border[b]) k->member[k->n_classes++] = (uint8_t)b;
    k->class_of[b] = (uint8_t)(k->n_classes - 1);
  }
}

/* ---- states -------------------------------------------------------------------------------------------- */

static uint64_t hash_places(const fm_place *p, int64_t n) {
  uint64_t h = (uint64_t)n;
  for (int64_t i = 0; i < n; i++)
    h = (h ^ (uint64_t)(uint32_t)p[i].node << 32 ^ (uint32_t)p[i].stack) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
  return h;
}

static int32_t *find(const fm_masks *k, const fm_place *p, int64_t n) {
  uint64_t mask = (uint64_t)k->n_slots - 1, i = hash_places(p, n) & mask;
  for (; k->slot[i]; i = (i + 1) & mask) {
    const state *s = &k->state[k->slot[i]];
    if (s->n == n && memcmp(k->place + s->from, p, (size_t)n * sizeof *p) == 0) break;
  }
  return &k->slot[i];
}

static fm_status grow_slots(fm_masks *k) {
  if (2 * (k->n_states + 1) <= k->n_slots) return FM_OK;
  int64_t n = k->n_slots ? 2 * k->n_slots : 256;
  int32_t *slot = fm_array(n, sizeof *slot);
  if (!slot) return fm_no_memory(&k->x.err, n * (int64_t)sizeof *slot);
  fm_free(k->slot);
  k->slot = slot;
  k->n_slots = n;
  for (int32_t i = 1; i < k->n_states; i++) *find(k, k->place + k->state[i].from, k->state[i].n) = i;
  return FM_OK;
}

static fm_status room_for_state(fm_masks *k, int64_t n_places) {
  fm_error *err = &k->x.err;
  TRY(fm_grow(&k->state, &k->cap_states, k->n_states + 1, sizeof *k->state, err));
  TRY(fm_grow(&k->place, &k->cap_places, k->n_places + n_places, sizeof *k->place, err));
  TRY(fm_grow(&k->delta, &k->cap_delta, (k->n_states + 1) * k->n_classes, sizeof *k->delta, err));
  return grow_slots(k);
}

/* The state of a set of places; 0 for the empty set. */
static fm_status intern(fm_masks *k, const fm_places *p, int32_t *out) {
  *out = 0;
  if (!p->n) return FM_OK;
  if (k->n_places > TOO_MANY_PLACES) return fm_too_ambiguous(&k->x.err);
  TRY(room_for_state(k, p->n));
  int32_t *slot = find(k, p->at, p->n);
  if (!*slot) {
    memcpy(k->place + k->n_places, p->at, (size_t)p->n * sizeof *p->at);
    memset(k->delta + k->n_states * k->n_classes, 0xFF, (size_t)k->n_classes * sizeof *k->delta);
    k->state[k->n_states] = (state){ .from = k->n_places, .n = (int32_t)p->n, .sheet = -1, .ends = fm_places_end(p) };
    k->n_places += p->n;
    *slot = (int32_t)k->n_states++;
  }
  *out = *slot;
  return FM_OK;
}

static fm_status find_next(fm_masks *k, int32_t from, int32_t class, int32_t *out) {
  fm_places in = { k->place + k->state[from].from, k->state[from].n, 0 };
  TRY(fm_machine_step(&k->x, &in, k->member[class], &k->tmp));
  TRY(intern(k, &k->tmp, out));
  k->delta[from * k->n_classes + class] = *out;
  return FM_OK;
}

/* The state after a byte of this class, met for the first time. Without memory nothing fits, and k->status says why. */
static int32_t make_next(fm_masks *k, int32_t from, int32_t class) {
  int32_t to = 0;
  if (k->status == FM_OK) k->status = find_next(k, from, class, &to);
  return to;
}

static int32_t next_state(fm_masks *k, int32_t from, uint8_t byte) {
  int32_t class = k->class_of[byte], to = k->delta[from * k->n_classes + class];
  return to >= 0 ? to : make_next(k, from, class);
}

/* The state when what is on a stack of ours has ended; -1 as a stack: there was no memory for it. */
static int32_t state_back(fm_masks *k, int32_t stack) {
  int32_t to = 0;
  if (stack < 0) k->status = k->x.err.code;
  int64_t had = k->cap_after;
  if (k->status == FM_OK) k->status = fm_grow(&k->after, &k->cap_after, stack + 1, sizeof *k->after, &k->x.err);
  if (k->status != FM_OK) return 0;
  memset(k->after + had, 0, (size_t)(k->cap_after - had) * sizeof *k->after);
  if (k->after[stack]) return k->after[stack];
  k->status = fm_machine_return(&k->x, &k->tmp, stack);
  if (k->status == FM_OK) k->status = intern(k, &k->tmp, &to);
  return k->after[stack] = to;
}

/* The state when frame `f` of another machine has ended, with nothing known below it. */
static int32_t state_after(fm_masks *k, const fm_frame *f) {
  return state_back(k, fm_machine_push(&k->x, f->next, f->body, f->min, f->max, 0));
}

/* ---- kinds of characters ------------------------------------------------------------------------------- */

/* Whether n more bytes of a character, the first of them lo .. hi, always lead to `to`. */
static bool rest_leads(fm_masks *k, int32_t from, int n, int lo, int hi, int32_t to) {
  for (int b = lo; b <= hi; b++) {
    if (b > lo && k->class_of[b] == k->class_of[b - 1]) continue;
    int32_t s = next_state(k, from, (uint8_t)b);
    if (n == 1 ? s != to : !s || !rest_leads(k, s, n - 1, 0x80, 0xBF, to)) return false;
  }
  return true;
}

/* Whether every character beyond ASCII leads from one state to the other. */
static bool beyond_leads(fm_masks *k, int32_t from, int32_t to) {
  for (int b = 0xC2; b <= 0xF4; b++) {
    int n = b < 0xE0 ? 1 : b < 0xF0 ? 2 : 3;
    int lo = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80, hi = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    int32_t s = next_state(k, from, (uint8_t)b);
    if (!s || !rest_leads(k, s, n, lo, hi, to)) return false;
  }
  return true;
}

/* Kinds whose every character leads from one state to the other. */
static uint64_t kinds_between(fm_masks *k, int32_t from, int32_t to) {
  uint64_t kinds = ~(1ull << FM_KIND_ODD);
  for (int b = 0; b < 0x80; b++)
    if (next_state(k, from, (uint8_t)b) != to) kinds &= ~(1ull << fm_trie_kind((uint8_t)b));
  if (!beyond_leads(k, from, to)) kinds &= ~(1ull << FM_KIND_BEYOND);
  return to ? kinds : 0;
}

/* Looks at which kinds of characters lead back to s, where the node below seems to promise some. */
static void look(fm_masks *k, int32_t node, int32_t s) {
  if (k->state[s].ends || k->state[s].looked || next_state(k, s, k->t->byte[node + 1]) != s) return;
  uint64_t loops = kinds_between(k, s, s);
  k->state[s].loops = loops;
  k->state[s].looked = true;
}

static void forget_sheets(fm_masks *k) {
  for (int64_t i = 0; i < k->n_sheets; i++) {
    fm_free(k->sheet[i].id);
    fm_free(k->sheet[i].bits);
    fm_free(k->sheet[i].leave);
    fm_free(k->sheet[i].plain);
    fm_free(k->sheet[i].odd);
  }
  k->n_sheets = k->sheet_bytes = 0;
}

static void forget(fm_masks *k) {
  forget_sheets(k);
  k->n_states = 1;
  k->n_places = 0;
  if (k->slot) memset(k->slot, 0, (size_t)k->n_slots * sizeof *k->slot);
  if (k->after) memset(k->after, 0, (size_t)k->cap_after * sizeof *k->after);
  fm_machine_reset(&k->x);
}

/* ---- walks ------------------------------------------------------------------------------------------------ */

static void set_bit(uint64_t *bits, int32_t id) { bits[id >> 6] |= 1ull << (id & 63); }

/* Room for one more walk inside another: a walk that starts at depth d is at most d walks deep. */
static int32_t *path_of(fm_masks *k, int64_t level) {
  const int64_t stretch = FM_TRIE_DEPTH + 1;
  if (k->status == FM_OK) k->status = fm_grow(&k->path, &k->cap_path, (level + 1) * stretch, sizeof *k->path, &k->x.err);
  return k->status == FM_OK ? k->path + level * stretch : NULL;
}

static void note_leave(fm_masks *k, int32_t node) {
  if (k->status == FM_OK) k->status = fm_grow(&k->leave, &k->cap_leave, k->n_leave + 1, sizeof *k->leave, &k->x.err);
  if (k->status == FM_OK) k->leave[k->n_leave++] = node;
}

/*
** Below `node`, where the automaton is in state `s`: sets the bits of the tokens that it can follow. Where the frame is left with
** more below, the walk goes on by what is on `stack` of machine x; without a machine the place is noted.
*/
static void walk(fm_masks *k, int32_t node, int32_t s, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack);

/* Goes on below `node` by what stands on the stack. */
static void walk_under(fm_masks *k, int32_t node, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack) {
  while (stack && k->status == FM_OK) {
    if (++k->under > MAX_UNDER) k->status = fm_too_ambiguous(&k->x.err);
    int32_t s = state_after(k, &x->frame[stack]);
    stack = x->frame[stack].parent;
    walk(k, node, s, level, bits, x, stack);
    if (!k->state[s].ends) return;
  }
}

static void walk(fm_masks *k, int32_t node, int32_t s, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack) {
  const fm_trie *t = k->t;
  const int32_t n_classes = k->n_classes, end = t->skip[node];
  int32_t *path = path_of(k, level), to;
  if (!path) return;
  path[t->depth[node]] = s;
  for (int32_t i = node + 1; i < end;) {           // the one loop that counts: a node takes a few ns
    int32_t depth = t->depth[i], from = path[depth - 1];
    if (!(t->kinds[i] & ~k->state[from].loops)) {  // all that is here stays where we are
      for (int32_t j = t->first[i]; j < t->first[t->skip[i]]; j++) set_bit(bits, t->id[j]);
      i = t->skip[i];
      continue;
    }
    if ((to = k->delta[from * n_classes + k->class_of[t->byte[i]]]) < 0) to = make_next(k, from, k->class_of[t->byte[i]]);
    if (!to) {
      i = t->skip[i];
      continue;
    }
    path[depth] = to;
    if (t->skip[i] - i > BIG) look(k, i, to);
    for (int32_t j = t->first[i]; j < t->first[i + 1]; j++) set_bit(bits, t->id[j]);
    if (k->state[to].ends && t->skip[i] > i + 1) {
      if (!x) note_leave(k, i);
      else walk_under(k, i, level + 1, bits, x, stack);
      path = k->path + level * (FM_TRIE_DEPTH + 1);          // it may have moved
    }
    i++;
  }
}

/* ---- sheets -------------------------------------------------------------------------------------------------- */

static void *copy(const void *p, int64_t size) {
  void *q = fm_alloc(size);
  if (q && size) memcpy(q, p, (size_t)size);
  return q;
}

static int64_t count_bits(const uint64_t *bits, int64_t n_words) {
  int64_t n = 0;
  for (int64_t i = 0; i < n_words; i++) n += __builtin_popcountll(bits[i]);
  return n;
}

/* Keeps what a walk has found. */
static fm_status write_sheet(fm_masks *k, sheet *s) {
  int64_t n = count_bits(k->fresh, k->n_words), list = n * (int64_t)sizeof *s->id, size = k->n_words * 8;
  bool few = list <= size;
  s->n_leave = k->n_leave;
  s->leave = copy(k->leave, k->n_leave * (int64_t)sizeof *s->leave);
  if (few) s->id = fm_alloc(size = list);
  else s->bits = copy(k->fresh, size);
  for (int64_t i = 0; s->id && i < k->n_words; i++)
    for (uint64_t w = k->fresh[i]; w; w &= w - 1) s->id[s->n_ids++] = (int32_t)(i * 64 + __builtin_ctzll(w));
  k->sheet_bytes += size + k->n_leave * (int64_t)sizeof *s->leave;
  return s->leave && (s->id || s->bits) ? FM_OK : fm_no_memory(&k->x.err, size);
}

static sheet *sheet_of(fm_masks *k, int32_t s) {
  if (k->state[s].sheet >= 0) return &k->sheet[k->state[s].sheet];
  k->n_leave = 0;
  memset(k->fresh, 0, (size_t)k->n_words * 8);
  walk(k, 0, s, 0, k->fresh, NULL, 0);
  if (k->status == FM_OK)
    k->status = fm_grow(&k->sheet, &k->cap_sheets, k->n_sheets + 1, sizeof *k->sheet, &k->x.err);
  if (k->status != FM_OK) return NULL;
  sheet *h = &k->sheet[k->n_sheets++];
  *h = (sheet){ .state = s };
  k->status = write_sheet(k, h);
  k->state[s].sheet = k->status == FM_OK ? (int32_t)(k->n_sheets - 1) : -1;
  return k->status == FM_OK ? h : NULL;
}

/* ---- masks ------------------------------------------------------------------------------------------------------ */

/* The state of places that share a stack, above `top` of our own machine. */
static int32_t state_of(fm_masks *k, const fm_place *p, int64_t n, int32_t top) {
  int32_t s = 0;
  k->set.n = 0;
  if (top < 0) k->status = k->x.err.code;
  if (k->status == FM_OK) k->status = fm_grow(&k->set.at, &k->set.cap, n, sizeof *k->set.at, &k->x.err);
  if (k->status != FM_OK) return 0;
  for (int64_t i = 0; i < n; i++) k->set.at[k->set.n++] = (fm_place){ p[i].node, top };
  k->status = intern(k, &k->set, &s);
  return s;
}

static void add_sheet(const fm_masks *k, const sheet *h, uint64_t *bits) {
  for (int64_t i = 0; i < h->n_ids; i++) set_bit(bits, h->id[i]);
  for (int64_t i = 0; h->bits && i < k->n_words; i++) bits[i] |= h->bits[i];
}

/* A group of places on one stack, and the frames above which its tokens mostly stay. */
typedef struct group {
  const fm_machine *x;
  const fm_place *p; int64_t n;
  int32_t frame[CONTEXT]; int n_frames;  /* from the top */
  int32_t under;
} group;

/* Frames are looked at together while what follows them may be nothing: else tokens would leave everywhere. A repetition is
   looked at with its body. */
static group group_of(const fm_masks *k, const fm_machine *x, const fm_place *p, int64_t n) {
  group g = { .x = x, .p = p, .n = n, .under = p->stack };
  const int64_t *least = k->r->least;
  bool empty = x->frame[g.under].body >= 0;
  for (int64_t i = 0; i < n; i++) empty |= least[k->r->node[p[i].node].next] == 0;
  for (; g.under && empty && g.n_frames < CONTEXT; g.under = x->frame[g.under].parent) {
    g.frame[g.n_frames++] = g.under;
    empty = least[x->frame[g.under].next] == 0;
  }
  return g;
}

/* The group's frames on our own machine, the topmost with these counters. */
static int32_t stack_of(fm_masks *k, const group *g, int32_t min, int32_t max) {
  int32_t stack = 0;
  for (int i = g->n_frames; i-- > 0 && stack >= 0;) {
    const fm_frame *f = &g->x->frame[g->frame[i]];
    stack = fm_machine_push(&k->x, f->next, f->body, i ? f->min : min, i ? f->max : max, stack);
  }
  return stack;
}

static void fill_plainly(fm_masks *k, const group *g, int32_t s, uint64_t *bits) {
  const sheet *h = s ? sheet_of(k, s) : NULL;
  if (!h) return;
  add_sheet(k, h, bits);
  // a sheet moves when others are made, which the walks below do not do
  for (int64_t i = 0; i < h->n_leave; i++) walk_under(k, h->leave[i], 0, bits, g->x, g->under);
}

/* ---- repetitions with bounds ----------------------------------------------------------------------------------- */

/* Kinds of characters that are one turn of the group's repetition each, and no way out of it. */
static uint64_t turn_kinds(fm_masks *k, const group *g) {
  int32_t five = stack_of(k, g, 0, 5), four = stack_of(k, g, 0, 4), s = state_of(k, g->p, g->n, five);
  int32_t after5 = state_back(k, five), after4 = state_back(k, four);
  return k->status == FM_OK ? kinds_between(k, s, after5) & kinds_between(k, after5, after4) : 0;
}

/* Parts the tokens of the sheet without bounds into plain ones and others. */
static fm_status count_sheet(fm_masks *k, const group *g, sheet *h) {
  const fm_trie *t = k->t;
  int64_t cap = 0;
  h->kinds = turn_kinds(k, g);
  TRY(k->status);
  h->counted = true;
  if (!h->kinds) return FM_OK;
  h->plain = copy(h->bits, k->n_words * 8);
  if (!h->plain) return fm_no_memory(&k->x.err, k->n_words * 8);
  for (int64_t i = 0; i < t->n_tokens; i++) {
    int32_t id = t->id[i];
    if (!(t->token_kinds[i] & ~h->kinds) || !(h->bits[id >> 6] >> (id & 63) & 1)) continue;
    h->plain[id >> 6] &= ~(1ull << (id & 63));
    TRY(fm_grow(&h->odd, &cap, h->n_odd + 1, sizeof *h->odd, &k->x.err));
    h->odd[h->n_odd++] = (int32_t)i;
  }
  k->sheet_bytes += k->n_words * 8 + cap * (int64_t)sizeof *h->odd;
  return FM_OK;
}

/* The state after bytes, from s on; 0: they do not fit. */
static int32_t run(fm_masks *k, int32_t s, const char *bytes, int32_t len) {
  for (int32_t i = 0; i < len && s; i++) s = next_state(k, s, (uint8_t)bytes[i]);
  return s;
}

/* Bytes of the path to a node: those of the first token under it. */
static const char *bytes_of(const fm_trie *t, int64_t at, size_t *len) { return fm_tokenizer_bytes(t->tok, t->id[at], len); }

/* Tokens of a repetition with bounds: plain ones by their length, the others one by one in the exact state s. */
static void fill_counted(fm_masks *k, const group *g, const sheet *h, int32_t s, int32_t max, uint64_t *bits) {
  const fm_trie *t = k->t;
  size_t len;
  memcpy(k->scratch, h->plain, (size_t)k->n_words * 8);
  for (int64_t i = 0; i < t->n_tokens && t->points[t->by_points[i]] > max; i++) {
    int32_t id = t->id[t->by_points[i]];
    k->scratch[id >> 6] &= ~(1ull << (id & 63));
  }
  for (int64_t i = 0; i < h->n_odd; i++) {
    const char *bytes = bytes_of(t, h->odd[i], &len);
    if (run(k, s, bytes, (int32_t)len)) set_bit(k->scratch, t->id[h->odd[i]]);
  }
  for (int64_t i = 0; i < h->n_leave; i++) {
    const char *bytes = bytes_of(t, t->first[h->leave[i]], &len);
    int32_t at = run(k, s, bytes, t->depth[h->leave[i]]);
    if (at && k->state[at].ends) walk_under(k, h->leave[i], 0, k->scratch, g->x, g->under);
  }
  for (int64_t i = 0; i < k->n_words; i++) bits[i] |= k->scratch[i];
}

/* Adds the tokens of a group. */
static void fill_group(fm_masks *k, const group *g, uint64_t *bits) {
  const fm_frame *f = &g->x->frame[g->p->stack];
  int32_t s = state_of(k, g->p, g->n, stack_of(k, g, f->min, f->max));
  bool bounds = g->n_frames && f->body >= 0 && (f->min > 0 || f->max < FM_MANY);
  if (!bounds) {
    fill_plainly(k, g, s, bits);
    return;
  }
  int32_t twin = state_of(k, g->p, g->n, stack_of(k, g, 0, FM_MANY));
  sheet *h = twin ? sheet_of(k, twin) : NULL;
  if (h && h->bits && !h->counted) k->status = count_sheet(k, g, h);      // few tokens are soon walked to
  if (!h || k->status != FM_OK) return;
  if (h->counted && h->kinds) fill_counted(k, g, h, s, f->max, bits);
  else fill_plainly(k, g, s, bits);
}

fm_status fm_masks_fill(fm_masks *k, const fm_machine *x, const fm_places *now, uint64_t *bits, fm_error *err) {
  k->status = FM_OK;
  k->under = k->x.work = 0;
  if (k->n_states > MAX_STATES || k->n_places > MAX_PLACES || k->sheet_bytes > MAX_SHEET_BYTES) forget(k);
  memset(bits, 0, (size_t)k->n_words * 8);
  for (int64_t i = 0, j; i < now->n && k->status == FM_OK; i = j) {
    for (j = i + 1; j < now->n && now->at[j].stack == now->at[i].stack;) j++;
    if (now->at[i].node == FM_END) j = i + 1;      // the end of the document, sorted before the rest of its stack
    else {
      group g = group_of(k, x, now->at + i, j - i);
      fill_group(k, &g, bits);
    }
  }
  if (k->status != FM_OK && err) *err = k->x.err;
  return k->status;
}

fm_status fm_masks_new(fm_masks **out, const fm_rules *r, const fm_trie *trie, fm_error *err) {
  fm_masks *k = fm_zalloc(sizeof *k);
  if (!k) return fm_no_memory(err, sizeof *k);
  k->r = r;
  k->t = trie;
  k->n_words = (trie->n_ids + 63) / 64;
  classify(k);
  k->scratch = fm_array(k->n_words, 8);
  k->fresh = fm_array(k->n_words, 8);
  fm_status status = k->scratch && k->fresh ? fm_machine_init(&k->x, r, err) : fm_no_memory(err, k->n_words * 8);
  if (status == FM_OK) status = fm_grow(&k->state, &k->cap_states, 1, sizeof *k->state, err);
  if (status == FM_OK) status = fm_grow(&k->delta, &k->cap_delta, k->n_classes, sizeof *k->delta, err);
  if (status != FM_OK) {
    fm_masks_free(k);
    return status;
  }
  k->state[0] = (state){ .sheet = -1 };
  memset(k->delta, 0, (size_t)k->n_classes * sizeof *k->delta);
  k->n_states = 1;
  *out = k;
  return FM_OK;
}

void fm_masks_free(fm_masks *k) {
  if (!k) return;
  forget_sheets(k);
  fm_free(k->sheet);
  fm_free(k->state);
  fm_free(k->place);
  fm_free(k->delta);
  fm_free(k->slot);
  fm_free(k->after);
  fm_free(k->tmp.at);
  fm_free(k->set.at);
  fm_free(k->path);
  fm_free(k->leave);
  fm_free(k->scratch);
  fm_free(k->fresh);
  fm_machine_free(&k->x);
  fm_free(k);
}
