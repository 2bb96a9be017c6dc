/*
** kv.h - paged key/value cache.
** A page holds FM_PAGE tokens of every layer, MTP layer included. Sequences with a common prefix share pages,
** which are counted; a shared page is copied before it is written. Owner: fm_kv owns the pages; a fm_kv_seq borrows them and gives
** them back in fm_kv_drop.
*/
#ifndef FM_MODEL_KV_H
#define FM_MODEL_KV_H

#include "io/config.h"
#include "model/shard.h"
#include "op/op.h"

/* What one rank keeps of the pages of its group. */
typedef struct fm_kv_part {
  fm_ctx *c;                    /* NULL: with another process, none of it is here */
  int group;
  int64_t layer, n_layers;      /* which layers */
  int slice, n_slices;          /* which heads of GQA's; MLA: 0 of 1 */
  char *data;                   /* made by fm_kv_new, as are the sizes of a layer and a page in bytes */
  int64_t width, layer_size, page_size;
} fm_kv_part;

typedef struct fm_kv {
  fm_kv_part *part;
  int n_parts, n_groups;
  int64_t n_pages, n_free, width, latent, layer_size, page_size;   /* in all; of whole rows, layers, pages, in bytes */
  int64_t n_layers;
  fm_dtype dtype;
  int32_t *refs, *free_list;    /* free pages of a group stand from its first page's place on */
  int64_t *group_free;          /* (n_groups) how many */
  uint32_t *seen, look;         /* pages met since fm_kv_count_begin */
} fm_kv;

typedef struct fm_kv_seq {
  int32_t *pages;
  int64_t n_pages, cap;
  int group;                    /* whose pages they are; free to change while there are none */
  int64_t len;                  /* tokens of the main layers that are there */
  int64_t mtp_first, mtp_len;   /* indices [mtp_first, mtp_len) of the MTP layer are there */
  int64_t shift;                /* index j is rotated as position j + shift */
  int32_t *kept;                /* pages of the first kept_len rows as they were before they were turned, counted */
  int64_t cap_kept, kept_len, kept_shift;
} fm_kv_seq;

/* Bytes of a page for this config. */
int64_t   fm_kv_page_size(const fm_config *cfg, fm_dtype dtype, bool mtp);
/* Of what one rank keeps of it. */
int64_t   fm_kv_shard_page_size(const fm_config *cfg, fm_dtype dtype, const fm_shard *s);
fm_status fm_kv_new (fm_kv **out, fm_ctx *c, const fm_config *cfg, fm_dtype dtype, bool mtp, int64_t n_pages,
                     fm_error *err);
/* n_parts parts of n_groups groups; n_pages is a multiple of n_groups. */
fm_status fm_kv_new_parts(fm_kv **out, const fm_kv_part *part, int n_parts, int n_groups, const fm_config *cfg, fm_dtype dtype,
                          bool mtp, int64_t n_pages, fm_error *err);
void      fm_kv_free(fm_kv *kv);
/* A layer that part i keeps. */
fm_cache  fm_kv_layer(const fm_kv *kv, int i, int64_t layer);
int       fm_kv_group(const fm_kv *kv, int32_t page);

/* Makes indices [from, to) writable: takes pages, copies shared ones. FM_ELIMIT when pages run out (nothing is lost). */
fm_status fm_kv_reserve(fm_kv *kv, fm_kv_seq *s, int64_t from, int64_t to, fm_error *err);
/* Forgets what stands at len and after, and gives whole pages back. */
void      fm_kv_truncate(fm_kv *kv, fm_kv_seq *s, int64_t len);
/* dst, empty before, shares everything src holds. */
fm_status fm_kv_fork(fm_kv *kv, fm_kv_seq *dst, const fm_kv_seq *src, fm_error *err);
void      fm_kv_drop(fm_kv *kv, fm_kv_seq *s);
int64_t   fm_kv_pages(int64_t rows);

/* Takes rows [keep, keep + n) out; n is a multiple of FM_PAGE, keep + n < s->len. Rows behind move down by n, with their pages.
   The first keep rows are kept aside in s->kept, and are to be written anew: they have pages of their own. Which rows of MTP are there
   follows. FM_ELIMIT when pages run out, FM_EMEMORY: nothing was changed then. */
fm_status fm_kv_take_out(fm_kv *kv, fm_kv_seq *s, int64_t keep, int64_t n, fm_error *err);

/* The last pages of the list, beyond those of its rows, become s->kept: kept_len rows as they were at kept_shift. FM_EMEMORY. */
fm_status fm_kv_set_kept(fm_kv_seq *s, int64_t kept_len, int64_t kept_shift, fm_error *err);

/* A page's bytes to host memory and back. */
fm_status fm_kv_read_page (fm_kv *kv, int32_t page, void *to, fm_error *err);
fm_status fm_kv_write_page(fm_kv *kv, int32_t page, const void *from, fm_error *err);

/* For whoever keeps pages beside sequences: counts a page once more, and once less. */
void      fm_kv_keep(fm_kv *kv, int32_t page);
void      fm_kv_release(fm_kv *kv, int32_t page);
/* How many pages of s were not counted since the last fm_kv_count_begin. */
void      fm_kv_count_begin(fm_kv *kv);
int64_t   fm_kv_count(fm_kv *kv, const fm_kv_seq *s);
/* Room in the list of s for so many pages; false: no memory. */
bool      fm_kv_room(fm_kv_seq *s, int64_t pages);
/* Entry i of the list of s, not filled before, is that page, which is counted. */
void      fm_kv_share(fm_kv *kv, fm_kv_seq *s, int64_t i, int32_t page);

#endif
