/*
** kv.c - paged key/value cache: counts, copies on write, gives back.
*/
#include "model/kv.h"

#include <string.h>

static int64_t layer_size(const fm_config *cfg, fm_dtype dtype, int64_t width) {
  return FM_PAGE * fm_cache_row_size(dtype, width, cfg->kv_lora_rank);
}

int64_t fm_kv_page_size(const fm_config *cfg, fm_dtype dtype, bool mtp) {
  return (cfg->num_hidden_layers + (mtp ? 1 : 0)) * layer_size(cfg, dtype, fm_config_cache_width(cfg));
}

int64_t fm_kv_shard_page_size(const fm_config *cfg, fm_dtype dtype, const fm_shard *s) {
  int slices = cfg->family == FM_QWEN2 ? s->of.tp : 1;
  return (s->end - s->layer) * layer_size(cfg, dtype, fm_config_cache_width(cfg) / slices);
}

static int64_t per_group(const fm_kv *kv) { return kv->n_pages / kv->n_groups; }

int fm_kv_group(const fm_kv *kv, int32_t page) { return (int)(page / per_group(kv)); }

static fm_status take_parts(fm_kv *kv, const fm_kv_part *part, const fm_config *cfg, fm_error *err) {
  int64_t size;
  for (int i = 0; i < kv->n_parts; i++) {
    fm_kv_part *p = &kv->part[i];
    *p = part[i];
    p->data = NULL;
    p->width = kv->width / p->n_slices;
    p->layer_size = layer_size(cfg, kv->dtype, p->width);
    p->page_size = p->n_layers * p->layer_size;
    if (!fm_mul(per_group(kv), p->page_size, &size))
      return fm_fail(err, FM_EOVERFLOW, "a cache of %lld pages is too large", (long long)kv->n_pages);
    if (p->c) TRY(p->c->ops->alloc(p->c->dev, (void **)&p->data, size, err));
  }
  return FM_OK;
}

static fm_status take_lists(fm_kv *kv, fm_error *err) {
  int64_t n = kv->n_pages;
  kv->part = fm_array(kv->n_parts, sizeof *kv->part);
  kv->refs = fm_array(n, sizeof *kv->refs);
  kv->free_list = fm_array(n, sizeof *kv->free_list);
  kv->seen = fm_array(n, sizeof *kv->seen);
  kv->group_free = fm_array(kv->n_groups, sizeof *kv->group_free);
  if (!kv->part || !kv->refs || !kv->free_list || !kv->seen || !kv->group_free) return fm_no_memory(err, n * 12);
  for (int64_t i = 0, each = per_group(kv); i < n; i++) kv->free_list[i] = (int32_t)(i / each * each + each - 1 - i % each);
  for (int g = 0; g < kv->n_groups; g++) kv->group_free[g] = per_group(kv);
  return FM_OK;
}

fm_status fm_kv_new_parts(fm_kv **out, const fm_kv_part *part, int n_parts, int n_groups, const fm_config *cfg, fm_dtype dtype,
                          bool mtp, int64_t n_pages, fm_error *err) {
  fm_kv *kv = fm_zalloc(sizeof *kv);
  if (!kv) return fm_no_memory(err, sizeof *kv);
  kv->n_parts = n_parts;
  kv->n_groups = n_groups;
  kv->dtype = dtype;
  kv->n_layers = cfg->num_hidden_layers + (mtp ? 1 : 0);
  kv->width = fm_config_cache_width(cfg);
  kv->latent = cfg->kv_lora_rank;
  kv->layer_size = layer_size(cfg, dtype, kv->width);
  kv->page_size = fm_kv_page_size(cfg, dtype, mtp);
  kv->n_pages = kv->n_free = n_pages;
  fm_status status = take_lists(kv, err);
  if (status == FM_OK) status = take_parts(kv, part, cfg, err);
  if (status != FM_OK) {
    fm_kv_free(kv);
    return status;
  }
  *out = kv;
  return FM_OK;
}

fm_status fm_kv_new(fm_kv **out, fm_ctx *c, const fm_config *cfg, fm_dtype dtype, bool mtp, int64_t n_pages, fm_error *err) {
  fm_kv_part all = { .c = c, .n_layers = cfg->num_hidden_layers + (mtp ? 1 : 0), .n_slices = 1 };
  return fm_kv_new_parts(out, &all, 1, 1, cfg, dtype, mtp, n_pages, err);
}

void fm_kv_free(fm_kv *kv) {
  if (!kv) return;
  for (int i = 0; kv->part && i < kv->n_parts; i++)
    if (kv->part[i].data) kv->part[i].c->ops->release(kv->part[i].c->dev, kv->part[i].data);
  fm_free(kv->part);
  fm_free(kv->refs);
  fm_free(kv->free_list);
  fm_free(kv->seen);
  fm_free(kv->group_free);
  fm_free(kv);
}

/* Where a page stands in a part: those of the groups before are counted, and are not there. */
static char *page_at(const fm_kv *kv, const fm_kv_part *p, int64_t page) {
  return p->data + (page - p->group * per_group(kv)) * p->page_size;
}

fm_cache fm_kv_layer(const fm_kv *kv, int i, int64_t layer) {
  const fm_kv_part *p = &kv->part[i];
  // pages are found by their number in all groups: where page 0 would be
  uintptr_t first = (uintptr_t)p->data - (uintptr_t)(p->group * per_group(kv) * p->page_size);
  return (fm_cache){ .base = (char *)first + (layer - p->layer) * p->layer_size, .page_stride = p->page_size,
                     .width = p->width, .dtype = kv->dtype, .latent = kv->latent };
}

void fm_kv_keep(fm_kv *kv, int32_t page) { kv->refs[page]++; }

void fm_kv_release(fm_kv *kv, int32_t page) {
  int g = fm_kv_group(kv, page);
  if (--kv->refs[page] > 0) return;
  kv->free_list[g * per_group(kv) + kv->group_free[g]++] = page;
  kv->n_free++;
}

static int32_t take(fm_kv *kv, int group) {
  int32_t page = kv->free_list[group * per_group(kv) + --kv->group_free[group]];
  kv->n_free--;
  kv->refs[page] = 1;
  return page;
}

static void copy_page(fm_kv *kv, int32_t to, int32_t from) {
  for (int i = 0; i < kv->n_parts; i++) {
    const fm_kv_part *p = &kv->part[i];
    if (p->c && p->group == fm_kv_group(kv, to))
      p->c->ops->copy(p->c->dev, page_at(kv, p, to), page_at(kv, p, from), p->page_size);
  }
}

fm_status fm_kv_reserve(fm_kv *kv, fm_kv_seq *s, int64_t from, int64_t to, fm_error *err) {
  int64_t first = from / FM_PAGE, want = (to + FM_PAGE - 1) / FM_PAGE, need = 0;
  for (int64_t i = first; i < want; i++) need += i >= s->n_pages || kv->refs[s->pages[i]] > 1;
  if (need > kv->group_free[s->group])
    return fm_fail(err, FM_ELIMIT, "the cache has no free page: %lld needed, %lld of %lld free",
                   (long long)need, (long long)kv->group_free[s->group], (long long)per_group(kv));
  TRY(fm_grow(&s->pages, &s->cap, want, sizeof *s->pages, err));
  for (int64_t i = first; i < s->n_pages && i < want; i++) {
    int32_t old = s->pages[i];
    if (kv->refs[old] == 1) continue;
    int32_t page = take(kv, s->group);
    copy_page(kv, page, old);
    fm_kv_release(kv, old);
    s->pages[i] = page;
  }
  while (s->n_pages < want) s->pages[s->n_pages++] = take(kv, s->group);
  return FM_OK;
}

int64_t fm_kv_pages(int64_t rows) { return (rows + FM_PAGE - 1) / FM_PAGE; }

static void forget_kept(fm_kv *kv, fm_kv_seq *s) {
  for (int64_t i = 0; i < fm_kv_pages(s->kept_len); i++) fm_kv_release(kv, s->kept[i]);
  s->kept_len = s->kept_shift = 0;
}

void fm_kv_truncate(fm_kv *kv, fm_kv_seq *s, int64_t len) {
  if (len < s->kept_len) forget_kept(kv, s);
  if (len == 0) s->shift = 0;
  int64_t keep = (len + FM_PAGE - 1) / FM_PAGE;
  while (s->n_pages > keep) fm_kv_release(kv, s->pages[--s->n_pages]);
  if (s->len > len) s->len = len;
  if (s->mtp_len > len) s->mtp_len = len;
  if (s->mtp_first > s->mtp_len) s->mtp_first = s->mtp_len;
}

/* A list that counts every page of another. */
static void share(fm_kv *kv, int32_t *dst, const int32_t *src, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    dst[i] = src[i];
    kv->refs[src[i]]++;
  }
}

fm_status fm_kv_fork(fm_kv *kv, fm_kv_seq *dst, const fm_kv_seq *src, fm_error *err) {
  int64_t n_kept = fm_kv_pages(src->kept_len);
  TRY(fm_grow(&dst->pages, &dst->cap, src->n_pages, sizeof *dst->pages, err));
  TRY(fm_grow(&dst->kept, &dst->cap_kept, n_kept, sizeof *dst->kept, err));
  share(kv, dst->pages, src->pages, src->n_pages);
  share(kv, dst->kept, src->kept, n_kept);
  dst->n_pages = src->n_pages;
  dst->group = src->group;
  dst->len = src->len;
  dst->mtp_first = src->mtp_first;
  dst->mtp_len = src->mtp_len;
  dst->shift = src->shift;
  dst->kept_len = src->kept_len;
  dst->kept_shift = src->kept_shift;
  return FM_OK;
}

void fm_kv_drop(fm_kv *kv, fm_kv_seq *s) {
  fm_kv_truncate(kv, s, 0);
  fm_free(s->pages);
  fm_free(s->kept);
  *s = (fm_kv_seq){ 0 };
}

/* ---- a window that moves ---- */

/* Whether page i of the list must be another one before it is written; `held`: s->kept is about to count it too. */
static bool shared(const fm_kv *kv, const fm_kv_seq *s, int64_t i, bool held) { return kv->refs[s->pages[i]] + held > 1; }

/* Counts the pages of the first `keep` rows once more, as s->kept. */
static void keep_aside(fm_kv *kv, fm_kv_seq *s, int64_t keep) {
  forget_kept(kv, s);
  share(kv, s->kept, s->pages, fm_kv_pages(keep));
  s->kept_len = keep;
  s->kept_shift = s->shift;
}

/* Where row i stands when rows [keep, keep + n) are gone. */
static int64_t moved(int64_t i, int64_t keep, int64_t n) { return i <= keep ? i : i <= keep + n ? keep : i - n; }

fm_status fm_kv_take_out(fm_kv *kv, fm_kv_seq *s, int64_t keep, int64_t n, fm_error *err) {
  int64_t first = keep / FM_PAGE, part = keep % FM_PAGE, gone = n / FM_PAGE, need = 0, freed = 0;
  bool aside = s->kept_len != keep;
  for (int64_t i = 0; i < first; i++) need += shared(kv, s, i, aside);
  if (part) need += shared(kv, s, first + gone, false);
  for (int64_t i = first; i < first + gone; i++) freed += !shared(kv, s, i, aside && i < fm_kv_pages(keep));
  int64_t there = kv->group_free[s->group] + freed;
  if (need > there)
    return fm_fail(err, FM_ELIMIT, "the cache has no free page: %lld needed to move a window, %lld free", (long long)need,
                   (long long)there);
  TRY(fm_grow(&s->kept, &s->cap_kept, fm_kv_pages(keep), sizeof *s->kept, err));
  if (aside) keep_aside(kv, s, keep);
  for (int64_t i = first; i < first + gone; i++) fm_kv_release(kv, s->pages[i]);
  memmove(s->pages + first, s->pages + first + gone, (size_t)(s->n_pages - first - gone) * sizeof *s->pages);
  s->n_pages -= gone;
  for (int64_t i = 0; i < first + (part > 0); i++) {
    int32_t old = s->pages[i];
    if (kv->refs[old] == 1) continue;
    s->pages[i] = take(kv, s->group);
    if (i == first) copy_page(kv, s->pages[i], old);        // rows of the window stand behind those that are kept
    fm_kv_release(kv, old);
  }
  s->len = moved(s->len, keep, n);
  s->mtp_first = moved(s->mtp_first, keep, n);
  s->mtp_len = moved(s->mtp_len, keep, n);
  return FM_OK;
}

fm_status fm_kv_set_kept(fm_kv_seq *s, int64_t kept_len, int64_t kept_shift, fm_error *err) {
  int64_t n = fm_kv_pages(kept_len);
  TRY(fm_grow(&s->kept, &s->cap_kept, n, sizeof *s->kept, err));
  s->n_pages -= n;
  if (n) memcpy(s->kept, s->pages + s->n_pages, (size_t)n * sizeof *s->kept);
  s->kept_len = kept_len;
  s->kept_shift = kept_shift;
  return FM_OK;
}

/* ---- pages and the host ---- */

/* The device's last error as the caller's. */
static fm_status told(const fm_ctx *c, fm_status status, fm_error *err) {
  if (status != FM_OK && err) *err = c->err;
  return status;
}

/* Rows of a part's layers between their place in a whole page and a page of the part: of GQA's heads a slice of the keys and one of
   the values. */
static void move_rows_of(const fm_kv *kv, const fm_kv_part *p, char *whole, char *own, bool out) {
  int64_t row = kv->layer_size / FM_PAGE, mine = p->layer_size / FM_PAGE, cut = p->n_slices > 1 ? 2 : 1, size = mine / cut;
  for (int64_t i = 0; i < p->n_layers * FM_PAGE; i++)
    for (int64_t j = 0; j < cut; j++) {
      char *w = whole + (p->layer * FM_PAGE + i) * row + j * row / cut + p->slice * size, *o = own + i * mine + j * size;
      memcpy(out ? w : o, out ? o : w, (size_t)size);
    }
}

static fm_status move_page(fm_kv *kv, const fm_kv_part *p, int32_t page, char *whole, bool out, fm_error *err) {
  char *at = page_at(kv, p, page);
  if (!p->c->ops->download) {
    move_rows_of(kv, p, whole, at, out);
    return FM_OK;
  }
  char *own = fm_alloc(p->page_size);
  if (!own) return fm_no_memory(err, p->page_size);
  if (!out) move_rows_of(kv, p, whole, own, false);
  fm_status status = out ? p->c->ops->download(p->c, own, at, p->page_size) : p->c->ops->upload(p->c, at, own, p->page_size);
  if (status == FM_OK && out) move_rows_of(kv, p, whole, own, true);
  fm_free(own);
  return told(p->c, status, err);
}

static fm_status move_whole(fm_kv *kv, int32_t page, char *whole, bool out, fm_error *err) {
  for (int i = 0; i < kv->n_parts; i++)
    if (!kv->part[i].c)
      return fm_hint(err, fm_fail(err, FM_EUNSUPPORTED, "parts of the cache are with other processes"), "save with pages = false");
  for (int i = 0; i < kv->n_parts; i++)
    if (kv->part[i].group == fm_kv_group(kv, page)) TRY(move_page(kv, &kv->part[i], page, whole, out, err));
  return FM_OK;
}

fm_status fm_kv_read_page(fm_kv *kv, int32_t page, void *to, fm_error *err) { return move_whole(kv, page, to, true, err); }

fm_status fm_kv_write_page(fm_kv *kv, int32_t page, const void *from, fm_error *err) {
  return move_whole(kv, page, (char *)(uintptr_t)from, false, err);
}

bool fm_kv_room(fm_kv_seq *s, int64_t pages) {
  return fm_grow(&s->pages, &s->cap, pages, sizeof *s->pages, NULL) == FM_OK;
}

void fm_kv_share(fm_kv *kv, fm_kv_seq *s, int64_t i, int32_t page) {
  s->pages[i] = page;
  fm_kv_keep(kv, page);
}

void fm_kv_count_begin(fm_kv *kv) { kv->look++; }

int64_t fm_kv_count(fm_kv *kv, const fm_kv_seq *s) {
  int64_t n = 0;
  for (int64_t i = 0; i < s->n_pages; i++) {
    n += kv->seen[s->pages[i]] != kv->look;
    kv->seen[s->pages[i]] = kv->look;
  }
  return n;
}
