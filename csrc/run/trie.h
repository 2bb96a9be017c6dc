/*
** trie.h - the tokens of a vocabulary as a tree of their bytes, laid out so that one pass from left to right visits it depth first.
** Control tokens, ids without bytes and tokens of more than FM_TRIE_DEPTH bytes are not in it.
** Owner: fm_trie owns its arrays and copies nothing it could point to: the tokenizer must outlive it.
*/
#ifndef FM_RUN_TRIE_H
#define FM_RUN_TRIE_H

#include "base/mem.h"
#include "io/tokenizer.h"

enum { FM_TRIE_DEPTH = 255 };

typedef struct fm_trie {
  const fm_tokenizer *tok;
  int64_t n_nodes, n_tokens, n_ids;      /* n_ids: the largest id + 1 */
  uint8_t *byte, *depth;                 /* (n_nodes) node 0 is the root, of depth 0 */
  int32_t *skip;                         /* (n_nodes) the first node that is not under this one */
  int32_t *first;                        /* (n_nodes + 1) tokens that end at node i: id[first[i]] .. id[first[i + 1] - 1] */
  int32_t *id;                           /* (n_tokens) sorted by their bytes */
  int32_t *by_length;                    /* (n_tokens) ids again, longest first */
  int32_t child[256];                    /* of the root; 0: none */
} fm_trie;

/* Of the ids below `limit`: a model may know fewer than its tokenizer. */
fm_status fm_trie_new (fm_trie **out, const fm_tokenizer *tok, int64_t limit, fm_error *err);
void      fm_trie_free(fm_trie *t);
/* The child of a node by a byte; 0: none. */
int32_t   fm_trie_child(const fm_trie *t, int32_t node, uint8_t byte);

#endif
