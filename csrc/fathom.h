/*
** fathom.h - the public C interface of fathom, an embeddable engine for the DeepSeek family.
** Opaque handles, option structs with a _default(), status codes. Nothing here knows Lua.
**
** Ownership: _new/_open/_load pair with _free/_close; NULL is allowed in every _free and _close.
** `out` is set only on success. A model must outlive nothing: sessions and tasks keep it alive.
** Threads: one model and everything that hangs on it belong to one thread at a time.
** Errors: FM_OK is 0; anything else fills *err (err may be NULL).
*/
#ifndef FATHOM_H
#define FATHOM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FM_API __attribute__((visibility("default")))
#else
#define FM_API
#endif

#define FM_VERSION "0.1.0"

/* ---- status ---------------------------------------------------------------------------- */

typedef enum fm_status {
  FM_OK = 0,
  FM_EIO,            /* a file or the system refused */
  FM_EFORMAT,        /* a file says something impossible */
  FM_EUNSUPPORTED,   /* well-formed, but not something fathom does */
  FM_EMEMORY,        /* no memory */
  FM_EDEVICE,        /* a device is missing or failed */
  FM_EOVERFLOW,      /* more tokens than the context holds */
  FM_ECANCELLED,     /* the caller stopped it */
  FM_ENETWORK,
  FM_ELIMIT,         /* a configured limit was reached */
  FM_EINVAL          /* the call itself was wrong */
} fm_status;

typedef struct fm_error {
  fm_status code;
  char message[512];   /* one sentence, no final newline */
  char hint[256];      /* what to try, or "" */
} fm_error;

FM_API const char *fm_version(void);
FM_API const char *fm_status_name(fm_status s);   /* "io", "format", ... "invalid"; "ok" for FM_OK */

/* ---- hooks of the host ------------------------------------------------------------------ */

/* realloc-like: size 0 frees and returns NULL; returns NULL when out of memory. Models on several devices call it from several threads
   at once. */
typedef void *(*fm_alloc_fn)(void *user, void *ptr, size_t size);
/* Sets the allocator of the whole library. Call before anything else; NULL restores the C library's. */
FM_API void fm_set_allocator(fm_alloc_fn fn, void *user);

/* How a checkpoint's files are read (config, tokenizer, tensors), for hosts that keep them in an archive of their own.
   Saved sessions are the system's files all the same. Called from the thread that called fathom. */
typedef struct fm_file_hooks {
  void *user;
  void *(*open)(void *user, const char *path, int64_t *size);   /* NULL: there is no such file; *size: its bytes */
  /* Like pread: how many bytes came, at most size. Fewer are asked on; 0 and less is a failure (FM_EIO). */
  int64_t (*read)(void *user, void *file, int64_t offset, void *dst, int64_t size);
  /* The whole file in memory, 8-byte aligned, until it is closed. May be NULL, or give NULL: tensors are read into memory. */
  const void *(*map)(void *user, void *file);
  void (*close)(void *user, void *file);
} fm_file_hooks;
/* For the whole library; NULL: the system's files again. Files that are open keep the hooks they were opened with. */
FM_API void fm_set_files(const fm_file_hooks *hooks);

enum { FM_LOG_INFO = 1, FM_LOG_WARNING = 2 };
typedef void (*fm_log_fn)(void *user, int level, const char *line);
FM_API void fm_set_log(fm_log_fn fn, void *user);  /* silent by default; the line ends without a newline */

/* ---- model ------------------------------------------------------------------------------ */

typedef struct fm_model fm_model;
typedef struct fm_loader fm_loader;

#define FM_MTP_AUTO (-2)    /* drafts: as many as pay, by what passes cost and how many drafts are right; maybe none */

typedef struct fm_load_options {
  const char *device;       /* "auto", "cpu", "cuda:1" (NULL: auto); several with commas between: one rank each, a name may come again */
  int tp, dp, pp, ep;       /* how several devices share the work, pp * dp * tp of them: attention and MLP by heads and columns, sequences,
                               layers; ep: over how many of a stage's dp * tp ranks the experts are spread. 0: you choose */
  const char *dtype;        /* arithmetic: "auto", "f32" */
  const char *cache_dtype;  /* "auto", "f32", "bf16", "fp8": MLA's latent in tiles of 128 with a scale */
  const char *experts;      /* where routed experts are kept and computed: "auto" (with the rest), "host" (by the CPU, from the mapping) */
  int64_t ctx;              /* tokens per sequence; 0: min(max_position_embeddings, 4096) */
  int64_t seqs;             /* sequences at once, others wait; 0: 4 */
  int threads;              /* 0: one per core, or per CPU of `cpus`; 1: no threads are made */
  const char *cpus;         /* where the threads may run, "0-3,8"; NULL: anywhere. The calling thread is the host's own affair */
  int mtp;                  /* drafts per step; -1: 1 where the checkpoint has the layer, 0: none, or FM_MTP_AUTO */
  int64_t chunk;            /* rows of one prompt in a pass, at most; 0: what suits the device */
  int64_t budget;           /* rows of all prompts in a pass, at most; 0: what suits the device */
  int64_t cache_bytes;      /* of the cache in all; 0: seqs * ctx tokens. With less, sequences may have to wait for each other */
  int64_t prefix_bytes;     /* of the cache, what common prefixes may keep; -1: whatever is free, 0: none are kept */
  bool verify;              /* read every weight once and refuse NaN */
  bool nondeterministic;    /* faster, but ids may hang on what runs beside */
  bool debug;               /* slow: the first operation that makes a NaN or an infinity fails, and says its name; $FATHOM_DEBUG=nan too */
} fm_load_options;

/* What one device is going to hold: bytes. */
typedef struct fm_rank_plan {
  char device[64];
  int64_t weights, cache, scratch, memory, free_memory;
} fm_rank_plan;

/* One way for several devices to share the work, and what it is expected to cost. */
typedef struct fm_form_plan {
  int pp, dp, tp, ep;
  int64_t weights;                   /* bytes of the device that holds most */
  double read_ms, link_ms;           /* of a decoding step of all sequences: reading weights, talking to each other */
  bool fits;
} fm_form_plan;

typedef struct fm_plan {
  int64_t parameters;                /* stored elements, scales not counted */
  int64_t weights, cache, scratch;   /* bytes */
  int64_t ctx, seqs, max_ctx;
  int64_t memory, free_memory;       /* bytes the device has, and has left */
  const char *device;
  int64_t host_weights;              /* of weights: experts that stay in host memory while the rest is on a device of its own */
  int64_t host_memory, host_free;    /* 0 unless there are any */
  fm_rank_plan *ranks; int n_ranks;  /* each device */
  fm_form_plan *forms; int n_forms;  /* several devices: what "you choose" chooses among, the best first */
} fm_plan;

FM_API fm_load_options fm_load_options_default(void);
/* Reads headers only. A device may also be a card that is not here, by name and bytes of memory: "H100=85899345920". */
FM_API fm_status fm_plan_make(fm_plan *out, const char *dir, const fm_load_options *o, fm_error *err);
FM_API void      fm_plan_free(fm_plan *p);

/* Loading in steps: open, step until done == total, finish; or close at any time to cancel.
   Done and total are bytes. */
FM_API fm_status fm_loader_open(fm_loader **out, const char *dir, const fm_load_options *o, fm_error *err);
FM_API fm_status fm_loader_step(fm_loader *l, int64_t *done, int64_t *total, fm_error *err);
FM_API fm_status fm_loader_finish(fm_loader *l, fm_model **out, fm_error *err);  /* l stays to be closed */
FM_API void      fm_loader_close(fm_loader *l);

FM_API fm_status fm_load(fm_model **out, const char *dir, const fm_load_options *o, fm_error *err);
FM_API void      fm_model_keep (fm_model *m);      /* one count more: somebody else may close it too */
FM_API void      fm_model_close(fm_model *m);      /* drops the caller's count */

/* Advances every task of the model for at most `ms` milliseconds (at least one slice of work; ms <= 0: one step, waited
   for). *busy: whether work is left. With ms > 0 passes are cut so that a slice takes about a third of it, and a device that
   works by itself is looked at, never waited for. */
FM_API fm_status fm_model_step(fm_model *m, double ms, bool *busy, fm_error *err);

FM_API int64_t fm_model_vocab_size(const fm_model *m);
FM_API int64_t fm_model_ctx(const fm_model *m);
FM_API bool    fm_model_has_tokenizer(const fm_model *m);

/* Text to ids: *ids is malloc'd by the library, free with fm_release. special: words of control
   tokens in the text become those tokens. No BOS is added. */
FM_API fm_status fm_model_encode(const fm_model *m, const char *text, size_t len, bool special,
                                 int32_t **ids, int64_t *n, fm_error *err);
FM_API fm_status fm_model_decode(const fm_model *m, const int32_t *ids, int64_t n,
                                 char **text, size_t *len, fm_error *err);
FM_API void fm_release(void *p);

/* Straight computation over ids (all in the role of a prompt). *out is freed with fm_release.
   logits: (n, vocab_size), last: (1, vocab_size); mtp: (n - 1, vocab_size), row t predicts token t + 2.
   hidden: (num_hidden_layers + 1, n, hidden_size): embeddings, each layer's output, the last final-normed.
   FM_EOVERFLOW when n > ctx, FM_EINVAL for n = 0 or an id out of range. */
FM_API fm_status fm_model_logits(fm_model *m, const int32_t *ids, int64_t n, bool last, bool mtp,
                                 float **out, int64_t shape[2], fm_error *err);
FM_API fm_status fm_model_hidden(fm_model *m, const int32_t *ids, int64_t n,
                                 float **out, int64_t shape[3], fm_error *err);
/* logprob[i] of ids[from + i] given what stands before it, i < n - from; from >= 1. */
FM_API fm_status fm_model_score(fm_model *m, const int32_t *ids, int64_t n, int64_t from,
                                float *logprob, fm_error *err);

typedef struct fm_stats {
  const char *device, *simd;
  int threads;
  int64_t prompt_tokens, generated_tokens, steps, drafted, accepted;
  int64_t set_back;                        /* tasks that had to wait again because pages ran out */
  int64_t pages, pages_used, page_tokens, prefix_pages;
  int64_t weight_bytes, cache_bytes, scratch_bytes, host_weight_bytes;   /* host: of weight_bytes, experts in host memory */
  int ranks, tp, dp, pp, ep;
  int processes, process;                  /* that the ranks are, and which of them this one is; 1, 0: all are threads of it */
  double overshoot_ms, max_overshoot_ms;   /* of fm_model_step over its ms: last, worst */
} fm_stats;
FM_API fm_stats fm_model_stats(const fm_model *m);
/* How many rows have chosen each expert of a layer (from 0 on, MTP's last) since the model was loaded; count (n_routed_experts). Completes
   the pass under way. FM_EUNSUPPORTED: the layer has no experts, or the ranks are processes; FM_EINVAL: there is no such layer. */
FM_API fm_status fm_model_expert_load(fm_model *m, int64_t layer, int64_t *count, fm_error *err);
/* Forgets all cached prefixes, and the cache of sessions without a task: they are computed again when needed. */
FM_API void     fm_model_drop_prefixes(fm_model *m);

/* ---- session: one growing sequence ------------------------------------------------------- */

typedef struct fm_session fm_session;

FM_API fm_status fm_session_new (fm_session **out, fm_model *m, fm_error *err);
FM_API fm_status fm_session_fork(fm_session **out, fm_session *s, fm_error *err);  /* shares pages */
FM_API void      fm_session_free(fm_session *s);
FM_API int64_t   fm_session_len (const fm_session *s);                  /* ids held */
FM_API const int32_t *fm_session_ids(const fm_session *s);
/* Whether the sequence still gives the same ids as its roles and ids computed afresh: false after an 8-bit restore, a restore
   from another device or build, and a shifted window (fm_generate_options). Forks inherit it. */
FM_API bool      fm_session_exact(const fm_session *s);

/* What a saved session keeps of its cache. */
typedef enum fm_pages {
  FM_PAGES_NONE,             /* nothing: rows are computed again by role, with the same result */
  FM_PAGES_STORED,           /* rows as they are: goes on at once, with the same result */
  FM_PAGES_8BIT              /* a byte an element: goes on at once, and leaves the promise. What follows is, in f32 arithmetic, less than
                                0.0001 nats a token away in the mean, one token in a thousand further than 0.01 and then up to some tenths:
                                where a router's choice hangs on less than 8 bits tell, another expert is taken. In bf16 arithmetic it is
                                0.0005, and one token in a hundred (spec/store_spec.lua measures both) */
} fm_pages;
/* Roles, ids, pages and `note` (any bytes, e.g. a transcript) with the model's digest and a checksum; the file appears whole
   or not at all (FM_EIO: the old one stays). A running task may go on afterwards. */
FM_API fm_status fm_session_save   (const fm_session *s, const char *path, const void *note, size_t n_note, fm_pages pages,
                                    fm_error *err);
/* FM_EFORMAT: no session, changed bytes, another model. FM_EUNSUPPORTED: another version. FM_EOVERFLOW: longer than ctx.
   Pages of another cache (dtype, MTP), or that find no room, are computed again. *note is freed with fm_release. */
FM_API fm_status fm_session_restore(fm_session **out, fm_model *m, const char *path,
                                    char **note, size_t *n_note, fm_error *err);
/* The note alone, without a model, from files of any version and damaged ones too. *sound: it is what was saved. */
FM_API fm_status fm_session_history(const char *path, char **note, size_t *n_note, bool *sound, fm_error *err);

/* ---- task: one generation ---------------------------------------------------------------- */

typedef struct fm_task fm_task;

typedef struct fm_logit_bias { int32_t id; float bias; } fm_logit_bias;

typedef struct fm_generate_options {
  int64_t max_tokens;        /* -1: until the context is full */
  float temperature;         /* 0: greedy */
  int32_t top_k;             /* 0: off */
  float top_p;               /* 1: off */
  float min_p;               /* 0: off */
  float repeat_penalty;      /* 1: off */
  float presence_penalty, frequency_penalty;
  const fm_logit_bias *logit_bias; int32_t n_logit_bias;
  uint64_t seed;
  uint32_t sample;           /* which of n samples: part of the noise's key */
  const char *const *stop; int32_t n_stop;       /* strings, not part of the text */
  const int32_t *stop_ids; int32_t n_stop_ids;   /* beside the model's own */
  int32_t logprobs;          /* -1: none; k: the chosen one's and the k best */
  int mtp;                   /* -1: as loaded; 0: no drafts; k: drafts a step; FM_MTP_AUTO */
  int priority;              /* -8 to 8: who waits least; each level doubles the share of rows when they are scarce */
  bool ignore_eos;
  /* The reply follows a grammar (GBNF, rule `root`) or a JSON Schema, as texts; at most one of the two, and no stop or
     stop_ids beside it. Nothing else is ever sampled, and a reply ends where its document is complete: FM_STOP. One that
     max_tokens would cut is steered to its shortest close; where not even that fits it is cut, FM_LENGTH.
     fm_task_new: FM_EFORMAT for a malformed text or one that matches nothing, FM_EUNSUPPORTED naming what is not done. */
  const char *grammar, *schema;
  int32_t grammar_after;     /* -1: from the first id; else behind this one, which ends a model's thoughts */
  bool shift;                /* past the context go on: the oldest ids behind the first `keep` are dropped, 64 at a time or more.
                                The sequence leaves the promise of equal ids (fm_session_exact). false: FM_EOVERFLOW, FM_LENGTH */
  int64_t keep;              /* ids that stay, at most a quarter of the context; -1: 4. Asked for when the first are dropped */
  /* These ids are taken in place of drawn ones, and the reply is over behind the last (FM_LENGTH): their log-probabilities, as they would
     be had they been sampled, are what such a task is for. max_tokens, stops and filters do not apply; no grammar, schema or shift
     beside it. FM_EOVERFLOW when they do not fit. */
  const int32_t *forced; int32_t n_forced;
} fm_generate_options;

typedef enum fm_finish { FM_RUNNING = 0, FM_STOP, FM_LENGTH, FM_CANCELLED, FM_FAILED } fm_finish;

typedef struct fm_top_logprob { int32_t id; float logprob; } fm_top_logprob;

typedef struct fm_token {     /* one sampled token; pointers live until the next call on the task */
  int32_t id;
  float logprob;              /* of the raw distribution; NaN unless asked for */
  float logprob_filtered;     /* of the one drawn from, after temperature and filters */
  const fm_top_logprob *top; int32_t n_top;
  const char *text; size_t len;   /* bytes that became final with this token, maybe none */
  bool last;
} fm_token;

typedef struct fm_usage {
  int64_t prompt, cached, completion, drafted, accepted;
  int64_t shifted;            /* ids that this task dropped to go on */
  bool exact;                 /* fm_session_exact */
  double prefill_ms, decode_ms;
} fm_usage;

FM_API fm_generate_options fm_generate_options_default(void);
/* Makes the session's ids equal to ids[0..n), keeping what is common from the start, then generates.
   One running task a session. Strings and arrays of `o` are copied. */
FM_API fm_status fm_task_new(fm_task **out, fm_session *s, const int32_t *ids, int64_t n,
                             const fm_generate_options *o, fm_error *err);
FM_API bool      fm_task_next(fm_task *t, fm_token *out);  /* false: nothing new; step the model */
FM_API fm_finish fm_task_finish(const fm_task *t, fm_error *err); /* FM_FAILED fills err */
FM_API fm_usage  fm_task_usage(const fm_task *t);
FM_API void      fm_task_cancel(fm_task *t);      /* takes effect within one slice */
FM_API void      fm_task_free(fm_task *t);        /* cancels when still running */

#ifdef __cplusplus
}
#endif
#endif
