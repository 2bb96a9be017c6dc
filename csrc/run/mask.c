/*
** mask.c - walks over the trie, once for each kind of place.
*/
#include "run/mask.h"

#include <string.h>

enum {
  MAX_STATES = 1 << 14,                  /* then everything is forgotten and found again */
  MAX_SHEET_BYTES = 64 << 20,
  FEW = 1024,                            /* a sheet of fewer tokens is a list */
  /* A counter above this is taken for endless, and tokens of more bytes are looked at one by one: of DeepSeek-V3's 128,000
     tokens 912 are longer than 16 bytes. */
  FAR = 16
};

/* What follows from one state: the tokens that do not leave its frame before their end, and where others do. */
typedef struct sheet {
  int32_t state;
  int32_t *id; int64_t n_ids;            /* a few tokens, or */
  uint64_t *bits;                        /* one bit each */
  int32_t *leave; int64_t n_leave;       /* nodes of the trie with more below them */
} sheet;

typedef struct state { int64_t from; int32_t n, sheet; bool ends; } state;   /* place[from ..]; sheet -1: none yet */

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
  int32_t *found; int64_t n_found, cap_found;      /* of the walk under way: tokens, */
  int32_t *leave; int64_t n_leave, cap_leave;      /* and where the frame is left */
  uint64_t *scratch;
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
  TRY(room_for_state(k, p->n));
  int32_t *slot = find(k, p->at, p->n);
  if (!*slot) {
    memcpy(k->place + k->n_places, p->at, (size_t)p->n * sizeof *p->at);
    memset(k->delta + k->n_states * k->n_classes, 0xFF, (size_t)k->n_classes * sizeof *k->delta);
    k->state[k->n_states] = (state){ k->n_places, (int32_t)p->n, -1, fm_places_end(p) };
    k->n_places += p->n;
    *slot = (int32_t)k->n_states++;
  }
  *out = *slot;
  return FM_OK;
}

static fm_status make_next(fm_masks *k, int32_t from, int32_t class, int32_t *out) {
  fm_places in = { k->place + k->state[from].from, k->state[from].n, 0 };
  TRY(fm_machine_step(&k->x, &in, k->member[class], &k->tmp));
  TRY(intern(k, &k->tmp, out));
  k->delta[from * k->n_classes + class] = *out;
  return FM_OK;
}

/* The state after a byte. Without memory nothing fits, and k->status says why. */
static int32_t next_state(fm_masks *k, int32_t from, uint8_t byte) {
  int32_t class = k->class_of[byte], to = k->delta[from * k->n_classes + class];
  if (to >= 0) return to;
  to = 0;
  if (k->status == FM_OK) k->status = make_next(k, from, class, &to);
  return to;
}

/* The state when frame `f` of another machine has ended, with nothing known below it. */
static int32_t state_after(fm_masks *k, const fm_frame *f) {
  int32_t alone = fm_machine_push(&k->x, f->next, f->body, f->min, f->max, 0), to = 0;
  if (alone < 0) k->status = k->x.err.code;
  int64_t had = k->cap_after;
  if (k->status == FM_OK) k->status = fm_grow(&k->after, &k->cap_after, alone + 1, sizeof *k->after, &k->x.err);
  if (k->status != FM_OK) return 0;
  memset(k->after + had, 0, (size_t)(k->cap_after - had) * sizeof *k->after);
  if (k->after[alone]) return k->after[alone];
  k->status = fm_machine_return(&k->x, &k->tmp, alone);
  if (k->status == FM_OK) k->status = intern(k, &k->tmp, &to);
  return k->after[alone] = to;
}

static void forget_sheets(fm_masks *k) {
  for (int64_t i = 0; i < k->n_sheets; i++) {
    fm_free(k->sheet[i].id);
    fm_free(k->sheet[i].bits);
    fm_free(k->sheet[i].leave);
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

/*
** Below `node`, where the automaton is in state `s`: calls found tokens out and stops where they cannot go on.
** With bits the tokens are set there, and places where the frame is left are walked on from `stack` of machine x; without,
** both are listed in k->found and k->leave.
*/
static void walk(fm_masks *k, int32_t node, int32_t s, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack);

/* Goes on below `node` by what stands on the stack. */
static void walk_under(fm_masks *k, int32_t node, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack) {
  while (stack && k->status == FM_OK) {
    int32_t s = state_after(k, &x->frame[stack]);
    stack = x->frame[stack].parent;
    walk(k, node, s, level, bits, x, stack);
    if (!k->state[s].ends) return;
  }
}

static void note(fm_masks *k, int32_t **list, int64_t *n, int64_t *cap, int32_t what) {
  if (k->status == FM_OK) k->status = fm_grow(list, cap, *n + 1, sizeof **list, &k->x.err);
  if (k->status == FM_OK) (*list)[(*n)++] = what;
}

static void visit(fm_masks *k, int32_t i, bool ends, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack) {
  const fm_trie *t = k->t;
  for (int32_t j = t->first[i]; j < t->first[i + 1]; j++) {
    if (bits) set_bit(bits, t->id[j]);
    else note(k, &k->found, &k->n_found, &k->cap_found, t->id[j]);
  }
  if (!ends || t->skip[i] == i + 1) return;
  if (bits) walk_under(k, i, level + 1, bits, x, stack);
  else note(k, &k->leave, &k->n_leave, &k->cap_leave, i);
}

static void walk(fm_masks *k, int32_t node, int32_t s, int64_t level, uint64_t *bits, const fm_machine *x, int32_t stack) {
  const fm_trie *t = k->t;
  int32_t *path = path_of(k, level);
  if (!path) return;
  path[t->depth[node]] = s;
  for (int32_t i = node + 1, end = t->skip[node]; i < end;) {
    int32_t depth = t->depth[i], to = next_state(k, path[depth - 1], t->byte[i]);
    if (!to) {
      i = t->skip[i];
      continue;
    }
    path[depth] = to;
    if (t->first[i] != t->first[i + 1] || k->state[to].ends) {
      visit(k, i, k->state[to].ends, level, bits, x, stack);
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

/* Keeps what a walk has listed. */
static fm_status write_sheet(fm_masks *k, sheet *s) {
  int64_t size = k->n_leave * (int64_t)sizeof *s->leave;
  s->n_leave = k->n_leave;
  s->leave = copy(k->leave, size);
  if (k->n_found <= FEW) {
    s->n_ids = k->n_found;
    size += k->n_found * (int64_t)sizeof *s->id;
    s->id = copy(k->found, k->n_found * (int64_t)sizeof *s->id);
  } else {
    size += k->n_words * 8;
    s->bits = fm_array(k->n_words, 8);
    for (int64_t i = 0; s->bits && i < k->n_found; i++) set_bit(s->bits, k->found[i]);
  }
  k->sheet_bytes += size;
  return s->leave && (s->id || s->bits) ? FM_OK : fm_no_memory(&k->x.err, size);
}

static const sheet *sheet_of(fm_masks *k, int32_t s) {
  if (k->state[s].sheet >= 0) return &k->sheet[k->state[s].sheet];
  k->n_found = k->n_leave = 0;
  walk(k, 0, s, 0, NULL, NULL, 0);
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

/* Whether a token may come: in state s above `stack`. */
static bool runs(fm_masks *k, const char *bytes, size_t len, int32_t s, const fm_machine *x, int32_t stack) {
  for (size_t i = 0; s; i++) {
    if (i == len) return true;
    if (k->state[s].ends && stack && runs(k, bytes + i, len - i, state_after(k, &x->frame[stack]), x, x->frame[stack].parent))
      return true;
    s = next_state(k, s, (uint8_t)bytes[i]);
  }
  return false;
}

/* The state of places [from, to), which share a stack, above frame `top` alone; *top 0: above nothing. */
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

static void fill_from(fm_masks *k, int32_t s, const fm_machine *x, int32_t under, uint64_t *bits) {
  const sheet *h = s ? sheet_of(k, s) : NULL;
  if (!h) return;
  add_sheet(k, h, bits);
  // a sheet may move when others are made, which the walks below do not do
  for (int64_t i = 0; i < h->n_leave; i++) walk_under(k, h->leave[i], 0, bits, x, under);
}

/* Tokens of more than `len` bytes again, one by one from state s. */
static void check_long(fm_masks *k, int32_t s, const fm_machine *x, int32_t under, int32_t len, uint64_t *bits) {
  for (int64_t i = 0; i < k->t->n_tokens && k->status == FM_OK; i++) {
    int32_t id = k->t->by_length[i];
    size_t size;
    const char *bytes = fm_tokenizer_bytes(k->t->tok, id, &size);
    if (size <= (size_t)len) return;
    bits[id >> 6] &= ~(1ull << (id & 63));
    if (runs(k, bytes, size, s, x, under)) set_bit(bits, id);
  }
}

static int32_t endless(int32_t count) { return count > FAR ? FM_MANY : count; }

/* Adds the tokens of places p[0 .. n), which share a stack. */
static void fill_group(fm_masks *k, const fm_machine *x, const fm_place *p, int64_t n, uint64_t *bits) {
  const fm_frame *f = &x->frame[p->stack];
  if (!p->stack || f->body < 0) {
    fill_from(k, state_of(k, p, n, 0), x, p->stack, bits);
    return;
  }
  int32_t min = endless(f->min), max = endless(f->max), near = f->min > FAR ? f->min : FM_MANY;
  if (f->max > FAR && f->max < near) near = f->max;
  int32_t s = state_of(k, p, n, fm_machine_push(&k->x, f->next, f->body, min, max, 0));
  if (near > FM_TRIE_DEPTH) {                      // no token is long enough to tell
    fill_from(k, s, x, f->parent, bits);
    return;
  }
  memset(k->scratch, 0, (size_t)k->n_words * 8);
  fill_from(k, s, x, f->parent, k->scratch);
  s = state_of(k, p, n, fm_machine_push(&k->x, f->next, f->body, f->min, f->max, 0));
  check_long(k, s, x, f->parent, near, k->scratch);
  for (int64_t i = 0; i < k->n_words; i++) bits[i] |= k->scratch[i];
}

fm_status fm_masks_fill(fm_masks *k, const fm_machine *x, const fm_places *now, uint64_t *bits, fm_error *err) {
  k->status = FM_OK;
  if (k->n_states > MAX_STATES || k->sheet_bytes > MAX_SHEET_BYTES) forget(k);
  memset(bits, 0, (size_t)k->n_words * 8);
  for (int64_t i = 0, j; i < now->n && k->status == FM_OK; i = j) {
    for (j = i + 1; j < now->n && now->at[j].stack == now->at[i].stack;) j++;
    if (now->at[i].node == FM_END) j = i + 1;      // the end of the document, sorted before the rest of its stack
    else fill_group(k, x, now->at + i, j - i, bits);
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
  fm_status status = k->scratch ? fm_machine_init(&k->x, r, err) : fm_no_memory(err, k->n_words * 8);
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
  fm_free(k->found);
  fm_free(k->leave);
  fm_free(k->scratch);
  fm_machine_free(&k->x);
  fm_free(k);
}
