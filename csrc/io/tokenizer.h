/*
** tokenizer.h - byte-level BPE from tokenizer.json: encode, decode, decode of a growing stream.
** Pre-tokenizer patterns run in PCRE2 (JIT), NFC in utf8proc. Owner: fm_tokenizer owns its tables and
** is read-only after opening, except for a scratch that makes it single-threaded.
*/
#ifndef FM_IO_TOKENIZER_H
#define FM_IO_TOKENIZER_H

#include "base/json.h"

typedef struct fm_tokenizer fm_tokenizer;

/* path: a tokenizer.json or the folder that holds it. Refuses what it does not do (other model types,
   a byte without a token, merges that name unknown tokens, ids that collide) by name. */
fm_status fm_tokenizer_open(fm_tokenizer **out, const char *path, fm_error *err);
fm_status fm_tokenizer_parse(fm_tokenizer **out, const char *json, size_t len, fm_error *err);
void      fm_tokenizer_free(fm_tokenizer *t);

int64_t   fm_tokenizer_size(const fm_tokenizer *t);        /* largest id + 1 */
/* Id of an added token by its exact text; -1 when there is none. */
int32_t   fm_tokenizer_added(const fm_tokenizer *t, const char *text, size_t len);
bool      fm_tokenizer_is_added(const fm_tokenizer *t, int32_t id);
/* Bytes of one token; *len 0 for an id nobody has. */
const char *fm_tokenizer_bytes(const fm_tokenizer *t, int32_t id, size_t *len);

/* Appends the ids of text (len bytes, any bytes; invalid UTF-8 is encoded byte by byte) to *ids, which
   grows by fm_grow (*n used, *cap). special: words of added tokens become those tokens. */
fm_status fm_tokenizer_encode(fm_tokenizer *t, const char *text, size_t len, bool special,
                              int32_t **ids, int64_t *n, int64_t *cap, fm_error *err);
/* Appends the bytes of ids to *text (grows by fm_grow). FM_EINVAL for an id outside the vocabulary's range [0, limit):
   ids without a token inside it give no bytes. */
fm_status fm_tokenizer_decode(const fm_tokenizer *t, const int32_t *ids, int64_t n, int64_t limit,
                              char **text, int64_t *len, int64_t *cap, fm_error *err);

/* How many bytes at the end of text are a UTF-8 character still open (0..3). */
size_t    fm_utf8_open(const char *text, size_t len);

#endif
