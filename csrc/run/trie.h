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
  int32_t child[256];                    /* of the root; 0: none */
  uint64_t *kinds;                       /* (n_nodes) kinds of the characters that begin at a node or under it; odd inside one */
  uint64_t *token_kinds;                 /* (n_tokens) in the order of id: those of the whole token */
  uint8_t *points;                       /* (n_tokens) how many characters it has */
  int32_t *by_points;                    /* (n_tokens) places in id, most characters first */
} fm_trie;

/*
** Kinds of characters, one bit each: letters, digits and control characters stand together, other ASCII characters alone; one bit for
** all beyond ASCII, and one for bytes that are no character. One that the token's end cuts off counts as one.
*/
enum { FM_KIND_BEYOND = 62, FM_KIND_ODD = 63 };
int       fm_trie_kind(uint8_t byte);              /* of an ASCII byte; FM_KIND_ODD for others */

/* Of the ids below `limit`: a model may know fewer than its tokenizer. */
fm_status fm_trie_new (fm_trie **out, const fm_tokenizer *tok, int64_t limit, fm_error *err);
void      fm_trie_free(fm_trie *t);
/* The child of a node by a byte; 0: none. */
int32_t   fm_trie_child(const fm_trie *t, int32_t node, uint8_t byte);

#endif
