/*
** kv.c - paged key/value cache: counts, copies on write, gives back.
*/
#include "model/kv.h"

#include <string.h>

static int64_t layer_size(const fm_config *cfg, fm_dtype dtype) {
  return FM_PAGE * fm_cache_row_size(dtype, fm_config_cache_width(cfg), cfg->kv_lora_rank);
}

int64_t fm_kv_page_size(const fm_config *cfg, fm_dtype dtype, bool mtp) {
  return (cfg->num_hidden_layers + (mtp ? 1 : 0)) * layer_size(cfg, dtype);
}

fm_status fm_kv_new(fm_kv **out, fm_ctx *c, const fm_config *cfg, fm_dtype dtype, bool mtp,
                    int64_t n_pages, fm_error *err) {
  fm_kv *kv = fm_zalloc(sizeof *kv);
  if (!kv) return fm_no_memory(err, sizeof *kv);
  kv->c = c;
  kv->dtype = dtype;
  kv->n_layers = cfg->num_hidden_layers + (mtp ? 1 : 0);
  kv->width = fm_config_cache_width(cfg);
  kv->latent = cfg->kv_lora_rank;
  kv->layer_size = layer_size(cfg, dtype);
  kv->page_size = fm_kv_page_size(cfg, dtype, mtp);
  kv->n_pages = kv->n_free = n_pages;
  kv->refs = fm_array(n_pages, sizeof *kv->refs);
  kv->free_list = fm_array(n_pages, sizeof *kv->free_list);
  kv->seen = fm_array(n_pages, sizeof *kv->seen);
  int64_t size;
  fm_status status = FM_OK;
  if (!kv->refs || !kv->free_list || !kv->seen) status = fm_no_memory(err, n_pages * 12);
  else if (!fm_mul(n_pages, kv->page_size, &size))
    status = fm_fail(err, FM_EOVERFLOW, "a cache of %lld pages is too large", (long long)n_pages);
  else status = c->ops->alloc(c->dev, (void **)&kv->data, size, err);
  if (status != FM_OK) {
    fm_kv_free(kv);
    return status;
  }
  for (int64_t i = 0; i < n_pages; i++) kv->free_list[i] = (int32_t)(n_pages - 1 - i);
  *out = kv;
  return FM_OK;
}

void fm_kv_free(fm_kv *kv) {
  if (!kv) return;
  if (kv->data) kv->c->ops->release(kv->c->dev, kv->data);
  fm_free(kv->refs);
  fm_free(kv->free_list);
  fm_free(kv->seen);
  fm_free(kv);
}

fm_cache fm_kv_layer(const fm_kv *kv, int64_t layer) {
  return (fm_cache){ .base = kv->data + layer * kv->layer_size, .page_stride = kv->page_size,
                     .width = kv->width, .dtype = kv->dtype, .latent = kv->latent };
}

void fm_kv_keep(fm_kv *kv, int32_t page) { kv->refs[page]++; }

void fm_kv_release(fm_kv *kv, int32_t page) {
  if (--kv->refs[page] == 0) kv->free_list[kv->n_free++] = page;
}

static int32_t take(fm_kv *kv) {
  int32_t page = kv->free_list[--kv->n_free];
  kv->refs[page] = 1;
  return page;
}

fm_status fm_kv_reserve(fm_kv *kv, fm_kv_seq *s, int64_t from, int64_t to, fm_error *err) {
  int64_t first = from / FM_PAGE, want = (to + FM_PAGE - 1) / FM_PAGE, need = 0;
  for (int64_t i = first; i < want; i++) need += i >= s->n_pages || kv->refs[s->pages[i]] > 1;
  if (need > kv->n_free)
    return fm_fail(err, FM_ELIMIT, "the cache has no free page: %lld needed, %lld of %lld free",
                   (long long)need, (long long)kv->n_free, (long long)kv->n_pages);
  TRY(fm_grow(&s->pages, &s->cap, want, sizeof *s->pages, err));
  for (int64_t i = first; i < s->n_pages && i < want; i++) {
    int32_t old = s->pages[i];
    if (kv->refs[old] == 1) continue;
    int32_t page = take(kv);
    kv->c->ops->copy(kv->c->dev, kv->data + page * kv->page_size, kv->data + old * kv->page_size,
                     kv->page_size);
    fm_kv_release(kv, old);
    s->pages[i] = page;
  }
  while (s->n_pages < want) s->pages[s->n_pages++] = take(kv);
  return FM_OK;
}

void fm_kv_truncate(fm_kv *kv, fm_kv_seq *s, int64_t len) {
  int64_t keep = (len + FM_PAGE - 1) / FM_PAGE;
  while (s->n_pages > keep) fm_kv_release(kv, s->pages[--s->n_pages]);
  if (s->len > len) s->len = len;
  if (s->mtp_len > len) s->mtp_len = len;
  if (s->mtp_first > s->mtp_len) s->mtp_first = s->mtp_len;
}

fm_status fm_kv_fork(fm_kv *kv, fm_kv_seq *dst, const fm_kv_seq *src, fm_error *err) {
  TRY(fm_grow(&dst->pages, &dst->cap, src->n_pages, sizeof *dst->pages, err));
  for (int64_t i = 0; i < src->n_pages; i++) {
    dst->pages[i] = src->pages[i];
    kv->refs[src->pages[i]]++;
  }
  dst->n_pages = src->n_pages;
  dst->len = src->len;
  dst->mtp_first = src->mtp_first;
  dst->mtp_len = src->mtp_len;
  dst->shift = src->shift;
  return FM_OK;
}

void fm_kv_drop(fm_kv *kv, fm_kv_seq *s) {
  fm_kv_truncate(kv, s, 0);
  fm_free(s->pages);
  *s = (fm_kv_seq){ 0 };
}

/* The device's last error as the caller's. */
static fm_status told(const fm_ctx *c, fm_status status, fm_error *err) {
  if (status != FM_OK && err) *err = c->err;
  return status;
}

fm_status fm_kv_read_page(fm_kv *kv, int32_t page, void *to, fm_error *err) {
  const char *from = kv->data + page * kv->page_size;
  if (kv->c->ops->download) return told(kv->c, kv->c->ops->download(kv->c, to, from, kv->page_size), err);
  memcpy(to, from, (size_t)kv->page_size);
  return FM_OK;
}

fm_status fm_kv_write_page(fm_kv *kv, int32_t page, const void *from, fm_error *err) {
  char *to = kv->data + page * kv->page_size;
  if (kv->c->ops->upload) return told(kv->c, kv->c->ops->upload(kv->c, to, from, kv->page_size), err);
  memcpy(to, from, (size_t)kv->page_size);
  return FM_OK;
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
