/*
** safetensors.h - checkpoints: one file, or shards with an index, mapped and read lazily.
** Owner: fm_store owns the mappings; tensors it gives out are views that live as long as it does.
** Opening validates every header in full and reads nothing else. After opening, the files must stay
** as they are: one that shrinks later makes the system raise SIGBUS on access (see README, "What is promised").
*/
#ifndef FM_IO_SAFETENSORS_H
#define FM_IO_SAFETENSORS_H

#include "base/tensor.h"

typedef struct fm_store fm_store;

typedef struct fm_entry { const char *name; fm_tensor t; int shard; } fm_entry;

/* dir: the folder of model.safetensors.index.json or model.safetensors. */
fm_status fm_store_open(fm_store **out, const char *dir, fm_error *err);
fm_status fm_store_open_file(fm_store **out, const char *path, fm_error *err);
void      fm_store_close(fm_store *s);
int64_t   fm_store_count(const fm_store *s);
const fm_entry *fm_store_at(const fm_store *s, int64_t i);            /* in order of name */
const fm_entry *fm_store_find(const fm_store *s, const char *name);   /* NULL when absent */
/* Stored elements, weight_scale_inv not counted. */
int64_t   fm_store_parameters(const fm_store *s);
/* Digest of names, shapes, dtypes and a sample of the bytes of every tensor; tells models apart. */
uint64_t  fm_store_digest(const fm_store *s);

/* Parses one header (the JSON alone) against a data part of data_size bytes; calls visit for each
   tensor in order of offset (may be NULL). Exposed for fuzzing. */
fm_status fm_safetensors_header(const char *json, size_t len, int64_t data_size, const char *path,
                                fm_status (*visit)(void *arg, const char *name, fm_dtype t, int ndim,
                                                   const int64_t *shape, int64_t begin, fm_error *err),
                                void *arg, fm_error *err);

/* Writes tensors as one file, atomically. */
fm_status fm_safetensors_write(const char *path, const fm_entry *entries, int64_t n, fm_error *err);

#endif
