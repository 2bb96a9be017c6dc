/*
** rules.h - a grammar once it has been read: nodes over bytes that say what may follow what.
** Nodes are made from the end to the beginning, each knowing what follows it, and two that would say the same are one. So
** node numbers fall along every path, and each circle leads through the name of a rule.
** Owner: fm_rules owns its nodes and names. Making nodes never fails on the spot: the first error stays in `status` and `err`.
*/
#ifndef FM_RUN_RULES_H
#define FM_RUN_RULES_H

#include "base/mem.h"

enum { FM_MANY = INT32_MAX };            /* a repetition without an upper bound */
#define FM_NEVER (INT64_C(1) << 40)      /* the length of what never ends, or not soon enough ever to be written */

typedef enum fm_node_kind {
  FM_END,                                /* node 0: the rule, or a repetition's body, ends here */
  FM_FAIL,                               /* node 1: nothing goes on from here */
  FM_BYTES,                              /* one byte of min .. max, then next */
  FM_SPLIT,                              /* next or other */
  FM_CALL,                               /* rule `other`, then next */
  FM_LOOP                                /* the nodes from `other` to their end, min to max times, then next */
} fm_node_kind;

typedef struct fm_node { fm_node_kind kind; int32_t next, other, min, max; } fm_node;

typedef struct fm_rule { char *name; int32_t start; } fm_rule;        /* start -1: not defined yet */

typedef struct fm_rules {
  fm_node *node; int64_t n, cap;
  int32_t *slot; int64_t n_slots;        /* nodes by what they say, open addressing; 0: empty */
  fm_rule *rule; int64_t n_rules, cap_rules;
  int64_t *least;                        /* (n) bytes of the shortest way from a node to its end, once checked */
  int32_t root, loose;                   /* where a document starts; the same behind at most two line ends */
  fm_status status;
  fm_error err;
} fm_rules;

typedef struct fm_range { uint32_t lo, hi; } fm_range;                /* code points, both included */

fm_status fm_rules_init(fm_rules *r, fm_error *err);
void      fm_rules_free(fm_rules *r);
/* Notes an error unless one is there; returns FM_FAIL's node. */
int32_t   fm_rules_refuse(fm_rules *r, fm_status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* A rule without a start; its number. */
int32_t fm_rules_add(fm_rules *r, const char *name, size_t len);

/* Nodes: each returns the node to go on from. */
int32_t fm_rules_bytes  (fm_rules *r, uint8_t lo, uint8_t hi, int32_t next);
int32_t fm_rules_split  (fm_rules *r, int32_t a, int32_t b);          /* FM_FAIL's node counts as no way */
int32_t fm_rules_call   (fm_rules *r, int32_t rule, int32_t next);
int32_t fm_rules_loop   (fm_rules *r, int32_t body, int64_t min, int64_t max, int32_t next);
int32_t fm_rules_literal(fm_rules *r, const char *bytes, size_t len, int32_t next);
/* One code point out of n ranges, in UTF-8. The ranges may overlap and are put in order; surrogates never match. */
int32_t fm_rules_class  (fm_rules *r, fm_range *range, int64_t n, int32_t next);
/* The same for every code point outside them. */
int32_t fm_rules_class_not(fm_rules *r, fm_range *range, int64_t n, int32_t next);

typedef struct fm_word { const char *s; size_t len; } fm_word;
/* One of n words, which are sorted by this; their common beginnings are walked once. */
int32_t fm_rules_words(fm_rules *r, fm_word *word, int64_t n, int32_t next);

/*
** Makes `rule` the document and checks the whole. FM_EFORMAT: a rule has no definition, or nothing can match (a rule that
** needs itself for ever is named); FM_EUNSUPPORTED: a rule comes back to itself before its first byte.
*/
fm_status fm_rules_check(fm_rules *r, int32_t rule, fm_error *err);

/* One code point of valid UTF-8 at s (len > 0); returns its length, 0 when the bytes are none. */
size_t fm_utf8_read(const char *s, size_t len, uint32_t *point);

/* Front ends: texts to rules, checked. Each fills a fresh fm_rules. */
fm_status fm_gbnf_read(fm_rules *r, const char *text, size_t len, fm_error *err);
fm_status fm_schema_read(fm_rules *r, const char *text, size_t len, fm_error *err);

#endif
