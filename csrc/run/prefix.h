/*
** prefix.h - tree of cached prefixes over kv pages, with a byte budget.
** A node is one page: the ids and roles that stand in it, and, by the path that leads to it, all that stands before. Whoever has the
** same ids in the same roles takes its page; each group of ranks (kv.h) has a tree of its own. Inner nodes are whole pages; a leaf may be
** a begun one. Owner: fm_prefix owns its nodes and holds a count on each one's page; a sequence that runs through a node may hold it
** (users), which keeps it and its path.
*/
#ifndef FM_RUN_PREFIX_H
#define FM_RUN_PREFIX_H

#include "model/kv.h"

typedef struct fm_prefix fm_prefix;
typedef struct fm_node fm_node;

/* Ids and roles of a sequence, as the tree compares them. */
typedef struct fm_text { const int32_t *ids; const uint8_t *roles; } fm_text;

/* Keeps at most `pages` pages. hidden_size: of the states kept at the ends of pages, for drafts; 0: none. clock: the model's. */
fm_status fm_prefix_new (fm_prefix **out, fm_kv *kv, int64_t pages, int64_t hidden_size, uint64_t *clock, fm_error *err);
void      fm_prefix_free(fm_prefix *p);
int64_t   fm_prefix_pages(const fm_prefix *p);

/* How many of the leading ids that both have agree in page `page` of two texts whose earlier pages agree; at most FM_PAGE. */
int64_t   fm_text_common(fm_text a, int64_t n_a, fm_text b, int64_t n_b, int64_t page);
/* Index behind the node's last row; 0 for none. */
int64_t   fm_node_end(const fm_node *n);
/* Moves *slot, which a sequence holds, to another node or to none (NULL). */
void      fm_node_hold(fm_node **slot, fm_node *to);
/* Moves *slot up until it ends at len or before. */
void      fm_node_cut(fm_node **slot, int64_t len);

/* Gives seq, which runs through *at, the pages behind it that agree with t below index `most`, when they reach further than seq does;
   *at follows. h (hidden_size): the state of the last index, where it is known. Returns whether it is; seq->len tells the rest.
   Running out of memory ends the walk: what is not taken is computed. */
bool      fm_prefix_take(fm_prefix *p, fm_kv_seq *seq, fm_node **at, fm_text t, int64_t most, float *h);
/* Puts the next page of seq behind *at, rows [fm_node_end(*at), end) of it; *at follows when it is whole. h: the state of index
   end - 1, or NULL. Notes its MTP rows too. False when it was not taken: no memory, or the budget is spent on pages in use. */
bool      fm_prefix_put(fm_prefix *p, const fm_kv_seq *seq, fm_node **at, fm_text t, int64_t end, const float *h);
/* Notes which MTP rows of the nodes from `at` up are there: those of seq, where the page is its own. */
void      fm_prefix_mark_mtp(fm_node *at, const fm_kv_seq *seq);

/* When the group's page was last used that would be given up next; UINT64_MAX: there is none that nobody else holds. */
uint64_t  fm_prefix_oldest(const fm_prefix *p, int group);
void      fm_prefix_evict(fm_prefix *p, int group); /* gives that page up */
/* Gives up all that no sequence holds. */
void      fm_prefix_clear(fm_prefix *p);

#endif
