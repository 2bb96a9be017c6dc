/*
** engine.h - what files of run/ share: the loaded model, its sessions and tasks, and the work under way.
** Owner: fm_model owns network, cache, tokenizer and sampler; sessions and tasks hold a count on it. Everything hangs on two
** intrusive lists, so that freeing in any order is safe.
*/
#ifndef FM_RUN_ENGINE_H
#define FM_RUN_ENGINE_H

#include <stdio.h>

#include "io/tokenizer.h"
#include "model/model.h"
#include "run/grammar.h"

enum { FM_MAX_DRAFTS = 7 };              /* with the pending id: 8 rows verified together */

struct fm_session {
  fm_model *m;
  fm_session *next, *prev;               /* m's list */
  fm_task *task;                         /* the running one */
  int32_t *ids; uint8_t *roles;          /* the sequence, (n) */
  int64_t n, cap_ids, cap_roles;
  fm_kv_seq kv;                          /* rows [0, kv.len) of ids are there */
  float *h;                              /* (hidden_size) final-normed state of index kv.len - 1 */
  bool h_valid;
  bool inexact;                          /* rows are not what ids and roles alone give: never to be shared with other sessions */
  int64_t keep, dropped;                 /* ids [keep, keep + dropped) of the history are gone: a shifted window */
  uint64_t dropped_sum;                  /* fm_fnv of the gone ids */
  uint64_t used;                         /* when it ran last: idle ones lose their pages first */
  int refs;                              /* the caller's, and the task's */
};

typedef struct fm_sampled { int32_t id; float logprob, filtered; int64_t text_end, top; bool last; } fm_sampled;

struct fm_task {
  fm_session *s;
  fm_task *next, *prev;                  /* m's list of running tasks */
  fm_generate_options o;                 /* its arrays are owned */
  int64_t n_prompt;                      /* ids in the sequence when it began */
  int32_t draft[FM_MAX_DRAFTS]; int64_t n_draft;
  int64_t max_tokens;
  fm_finish finish;
  fm_error err;
  fm_usage usage;
  fm_sampled *out; int64_t n_out, cap_out, read;    /* tokens for the caller */
  fm_top_logprob *top; int64_t n_top, cap_top;
  char *text; int64_t n_text, cap_text, text_done;  /* decoded; text_done: handed to some token */
  fm_guide *guide;                       /* NULL: anything goes */
  bool cancel;
};

typedef enum fm_work_kind { FM_IDLE, FM_PREFILL, FM_PREFILL_MTP, FM_DECODE, FM_DRAFT } fm_work_kind;

/* The pass under way. `task[i]` owns segment i. */
typedef struct fm_work {
  fm_work_kind kind;
  fm_pass pass;
  fm_task **task; fm_seg *seg; int64_t n, cap_task, cap_seg;
  fm_draw_rule *rule; int32_t *drawn; int64_t cap_rule, cap_drawn;   /* for a device that draws */
  float *h; int64_t n_h, cap_h;          /* states for the MTP pass that follows; rows */
  float *hidden, *logits;                /* the completed pass's, where the host can read them; NULL: not wanted */
  int64_t depth;                         /* FM_DRAFT: drafts made so far in this step */
  bool started;
  double begun;                          /* ms */
} fm_work;

struct fm_model {
  int refs;
  char *dir;
  fm_config cfg;
  fm_weights *w;
  fm_ctx c;
  fm_kv *kv;
  fm_net net;
  fm_tokenizer *tok;                     /* NULL: none */
  fm_sampler *sampler;
  fm_grammars *grammars;                 /* made when first wanted */
  int64_t ctx, seqs;
  int drafts;                            /* 0: no MTP */
  uint64_t digest, clock;
  fm_session *sessions;
  fm_task *tasks, *turn;                 /* turn: last one whose prompt was read */
  bool decoded_last;                     /* prompts and decoding take turns */
  fm_work work;
  fm_stats stats;
};

const fm_config *fm_model_config(const fm_model *m);
fm_tokenizer    *fm_model_tokenizer(const fm_model *m);   /* NULL: none */
int              fm_model_mtp(const fm_model *m);         /* drafts a step as loaded */
const char      *fm_model_dir(const fm_model *m);
void             fm_model_keep(fm_model *m);

double fm_now_ms(void);                                   /* monotonic */

/* ---- session.c ---- */
fm_status fm_session_append(fm_session *s, const int32_t *ids, int64_t n, fm_role role, fm_error *err);
/* Shortens to n ids; cached rows after are forgotten. */
void      fm_session_cut(fm_session *s, int64_t n);
/* Lets cached rows from len on be computed again (they come out the same), MTP rows stay. */
void      fm_session_back(fm_session *s, int64_t len);
/* Pages for [from, to), taken from idle sessions when none is free. */
fm_status fm_session_reserve(fm_session *s, int64_t from, int64_t to, fm_error *err);
void      fm_session_drop_cache(fm_session *s);

/* ---- store.c ---- */
/* fm_session_restore from a file that is open; path is for messages. */
fm_status fm_session_restore_from(fm_session **out, fm_model *m, FILE *f, const char *path, char **note, size_t *n_note,
                                  fm_error *err);

/* ---- task.c ---- */
bool      fm_task_prefilling(const fm_task *t);
/* Takes one sampled id (its logits for the record): appends it, decodes, checks stops. *stopped: the task is over. */
fm_status fm_task_take(fm_task *t, const fm_draw *d, const float *logits, bool *stopped);
void      fm_task_end(fm_task *t, fm_finish f);
void      fm_task_fail(fm_task *t, const fm_error *err);

/* ---- sched.c ---- */
/* Advances by one layer of one pass; *busy: something is left to do, *whole: a pass was completed. */
void      fm_sched_slice(fm_model *m, bool *busy, bool *whole);
/* Abandons the pass under way when it involves the session. */
void      fm_sched_abandon(fm_model *m, const fm_session *s);

#endif
