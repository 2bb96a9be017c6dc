/*
** engine.h - what files of run/ share: the loaded model, its sessions and tasks, and the work under way.
** Owner: fm_model owns network, cache, tokenizer and sampler; sessions and tasks hold a count on it. Everything hangs on two
** intrusive lists, so that freeing in any order is safe.
*/
#ifndef FM_RUN_ENGINE_H
#define FM_RUN_ENGINE_H

#include <stdio.h>

#include "io/tokenizer.h"
#include "model/ranks.h"
#include "run/grammar.h"
#include "run/prefix.h"

enum {
  FM_MAX_DRAFTS = 7,                     /* with the pending id: 8 rows verified together */
  FM_AUTO_DRAFTS = 3,                    /* as deep as mtp = "auto" goes */
  FM_MAX_PRIORITY = 8
};

struct fm_session {
  fm_model *m;
  fm_session *next, *prev;               /* m's list */
  fm_task *task;                         /* the running one */
  int32_t *ids; uint8_t *roles;          /* the sequence, (n) */
  int64_t n, cap_ids, cap_roles;
  fm_kv_seq kv;                          /* rows [0, kv.len) of ids are there */
  fm_node *node;                         /* last whole page of the prefix tree that the sequence runs through; NULL: none */
  float *h;                              /* (hidden_size) final-normed state of index kv.len - 1 */
  bool h_valid;
  float *late; int64_t n_late, late_at;  /* states of indices late_at .., n_late of them, whose MTP rows were not made: see draft.c */
  bool inexact;                          /* rows are not what ids and roles alone give: never to be shared with other sessions */
  int64_t keep, dropped;                 /* ids [keep, keep + dropped) of the history are gone: a shifted window */
  uint64_t dropped_sum;                  /* fm_fnv of the gone ids */
  uint64_t used;                         /* when it ran last: idle ones lose their pages first */
  int refs;                              /* the caller's, and the task's */
};

typedef struct fm_sampled { int32_t id; float logprob, filtered; int64_t text_end, top; bool last; } fm_sampled;

struct fm_task {
  fm_session *s;
  fm_task *next, *prev;                  /* m's list of tasks that are not over, in order of arrival */
  fm_generate_options o;                 /* its arrays are owned */
  bool running;                          /* one of the m->seqs that hold pages; else it waits */
  uint64_t admitted;                     /* when it began to run */
  double served[2];                      /* rows it has had, over its weight: of prompts, of decoding */
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
};

typedef enum fm_work_kind { FM_IDLE, FM_PREFILL, FM_PREFILL_MTP, FM_DECODE, FM_DRAFT } fm_work_kind;
typedef enum fm_work_stage { FM_CHOSEN, FM_UNDER_WAY, FM_ASKED, FM_SETTLING } fm_work_stage;

/* Segments of one pass and whose they are; a task that left is NULL. */
typedef struct fm_batch {
  fm_task **task; fm_seg *seg; int64_t *state; int64_t n, cap_task, cap_seg, cap_state;
  float *h; int64_t n_h, cap_h;          /* states that MTP rows join with; those of segment i begin at row state[i] */
} fm_batch;

/* The pass under way. */
typedef struct fm_work {
  fm_work_kind kind;
  fm_work_stage stage;
  fm_pass pass;
  fm_batch now, then;                    /* then: what the pass that follows is going to be */
  fm_draw_rule *rule; int64_t cap_rule;  /* how the device is to draw */
  float *hidden, *logits;                /* the completed pass's, where the host can read them; NULL: not wanted */
  uint8_t *held;                         /* which rows of logits are here; NULL: all */
  fm_drawn *drawn;                       /* what the device drew from each; NULL: nothing */
  int64_t at;                            /* segments settled */
  int64_t depth;                         /* FM_DRAFT: drafts made so far in this step */
  double begun, spent;                   /* ms: when, and how much of it in slices */
  uint64_t call;                         /* of fm_model_step in which it began */
} fm_work;

enum { FM_PASS_ROWS = 256 };             /* passes of more rows cost by the row */

typedef struct fm_pass_cost { double ms; int n; } fm_pass_cost;   /* n: how many were run, as far as that matters */

/* How many drafts pay: see depth.c. */
typedef struct fm_depth {
  fm_pass_cost cost[2][FM_PASS_ROWS + 1];/* by rows: decoding, drafting */
  double right[FM_AUTO_DRAFTS];          /* share of right ones among the k-th drafts behind right ones; 0: not known */
  int seen[FM_AUTO_DRAFTS];              /* how many of these were made, as far as that matters */
  int now, age, gap;                     /* drafts a step; steps since costs were learnt anew, and between two such times */
} fm_depth;

/* What passes have cost, to say how many rows fit a slice. */
typedef struct fm_pace {
  double slice_ms[FM_DRAFT + 1][FM_SETTLING + 1];   /* a slice, by kind and stage of the work */
  double row_ms[2];                      /* one row in one slice: of prompts, of decoding; 0: not known */
  double key_rows;                       /* what a cached token costs each pass of a prompt behind it, in rows: see fm_sched_keys */
} fm_pace;

struct fm_model {
  int refs;
  char *dir;
  fm_config cfg;
  fm_weights *w;
  fm_ranks *ranks;                       /* NULL: one device */
  fm_wire *wire;                         /* to the other processes, each of which is a rank; NULL: none */
  fm_seat seat;
  int64_t seeds;                         /* wire: what all of them begin their seeds with */
  fm_ctx c, host;                        /* c: the first rank's; host: the CPU for experts that stay there; closed otherwise */
  fm_kv *kv;
  fm_prefix *prefix;                     /* NULL: none is kept */
  fm_net net;
  fm_tokenizer *tok;                     /* NULL: none */
  fm_sampler *sampler;
  fm_grammars *grammars;                 /* made when first wanted */
  int64_t ctx, seqs;
  int64_t chunk, budget;                 /* rows of a pass of prompts: of one sequence, in all */
  int drafts;                            /* 0: no MTP */
  bool mtp_auto;                         /* what "as loaded" means */
  uint64_t digest, clock, calls;
  fm_session *sessions;
  fm_task *tasks;
  fm_task **order; int64_t cap_order;    /* running ones, while a pass is put together */
  bool decoded_last;                     /* prompts and decoding take turns */
  double slice_ms;                       /* how long a slice may be; 0: as long as it likes */
  fm_work work;
  fm_pace pace;
  fm_depth depth;
  fm_stats stats;
};

const fm_config *fm_model_config(const fm_model *m);
fm_tokenizer    *fm_model_tokenizer(const fm_model *m);   /* NULL: none */
int              fm_model_mtp(const fm_model *m);         /* drafts a step as loaded */
const char      *fm_model_dir(const fm_model *m);
int64_t          fm_model_seqs(const fm_model *m);

/* ---- parallel.c ---- */
/* Names of devices, "cpu,cpu": how many, and the i-th. *described: bytes of a card that is not here, -1: none said. */
int       fm_device_count(const char *devices);
void      fm_device_name(char name[64], const char *devices, int i, int64_t *described);
/* How the devices share the work: as the options say; what they leave open is the cheapest of fm_forms_weigh. seqs: rows of a
   step. FM_EUNSUPPORTED: the model cannot be split like this. */
fm_status fm_forms_choose(fm_forms *out, const fm_load_options *o, const fm_config *cfg, double weight_bytes, int64_t seqs,
                          fm_error *err);
/* All ways that are possible, by what they cost; *out is the caller's. weight_bytes: of one stored weight. */
fm_status fm_forms_weigh(fm_form_plan **out, int *n_out, const fm_load_options *o, const fm_config *cfg, double weight_bytes,
                         int64_t seqs, fm_error *err);

/* ---- far.c ---- */
/* Meets the other processes, where there are some and the options do not name several devices of this one's own. *devices: one name
   for each process, for the caller to free; NULL: this one works alone. */
fm_status fm_far_join (fm_model *m, const fm_load_options *o, char **devices, fm_error *err);
/* Whether all load the same, on devices of one kind, in the same form. */
fm_status fm_far_agree(fm_model *m, const fm_forms *forms, uint64_t digest, fm_error *err);

/* ---- warm.c ---- */
/* Runs a new model through once, where the device is slow at first; nothing of it stays. */
fm_status fm_model_warm(fm_model *m, fm_error *err);

/* ---- share.c ---- */
/* Offers the model to whoever adopts it by this number, once; the offer holds a count. FM_ELIMIT: no such offer. */
fm_status fm_model_share(fm_model *m, uint64_t *key, fm_error *err);
fm_status fm_model_adopt(fm_model **out, uint64_t key, fm_error *err);

/* ---- session.c ---- */
fm_status fm_session_append(fm_session *s, const int32_t *ids, int64_t n, fm_role role, fm_error *err);
/* Shortens to n ids; cached rows after are forgotten. */
void      fm_session_cut(fm_session *s, int64_t n);
/* Lets cached rows from len on be computed again (they come out the same), MTP rows stay. */
void      fm_session_back(fm_session *s, int64_t len);
/* Pages for [from, to), taken from the prefix tree and from sessions that do not run when none is free. */
fm_status fm_session_reserve(fm_session *s, int64_t from, int64_t to, fm_error *err);
void      fm_session_drop_cache(fm_session *s);
/* Takes cached rows below `most` from the prefix tree; how many more than before are there now. */
int64_t   fm_session_adopt(fm_session *s, int64_t most);
/* Gives whole pages below kv.len to the prefix tree. h: states of the indices from `first` on, NULL: not known. */
void      fm_session_publish(fm_session *s, const float *h, int64_t first);
/* Gives the last, begun page too, and says of all of them which MTP rows are there. */
void      fm_session_publish_tail(fm_session *s);

/* ---- store.c ---- */
/* fm_session_restore from a file that is open; path is for messages. */
fm_status fm_session_restore_from(fm_session **out, fm_model *m, FILE *f, const char *path, char **note, size_t *n_note,
                                  fm_error *err);

/* ---- window.c ---- */
/* FM_EOVERFLOW when n ids of a prompt and the answer may outgrow the context, and the window could not be moved then. */
fm_status fm_window_check(const fm_task *t, int64_t n, fm_error *err);
/* Makes room for rows [0, want), taking old ids out where the task may (o.shift); kv, ids and n_prompt move down with them. */
void      fm_window_room(fm_task *t, int64_t want);
/* How many ids of the prompt, from s->keep on, are those that the session has dropped: 0 when there are none, or when the prompt
   is another text, which empties the session. */
int64_t   fm_window_gap(fm_session *s, const int32_t *ids, int64_t n);

/* ---- task.c ---- */
/* FM_EINVAL for an id outside the vocabulary. */
fm_status fm_ids_check(const fm_model *m, const int32_t *ids, int64_t n, fm_error *err);
bool      fm_task_prefilling(const fm_task *t);
/* Its share among others: doubles with each level of priority. */
double    fm_task_weight(const fm_task *t);
/* Up to which index prompts' passes go: to the end of a prompt, or to the pending id of what was set back. */
int64_t   fm_task_goal(const fm_task *t);
/* How many ids are still to be taken in place of drawn ones. */
int64_t   fm_task_forced(const fm_task *t);
/* Takes one sampled id (its logits for the record): appends it, decodes, checks stops. *stopped: the task is over. */
fm_status fm_task_take(fm_task *t, const fm_draw *d, const float *logits, bool *stopped);
void      fm_task_end(fm_task *t, fm_finish f);
void      fm_task_fail(fm_task *t, const fm_error *err);
/* Fails with what t->err says. */
void      fm_task_fail_own(fm_task *t);

/* ---- sched.c ---- */
double    fm_now_ms(void);               /* monotonic */
/* Moves a running mean towards `now`; 0: it has none yet. What is out of all proportion (somebody else had the machine) counts as
   twice the mean. */
void      fm_mean_add(double *mean, double now, double share);
/* One slice: a layer of a pass, or the draws of one task. *busy: something is left to do, *whole: a pass was completed.
   wait: for what the device was asked to do; else it is looked at. */
void      fm_sched_slice(fm_model *m, bool wait, bool *busy, bool *whole);
/* Completes the pass under way. */
void      fm_sched_settle(fm_model *m);
/* And those lined up behind it: then any task may be set back for its pages. */
void      fm_sched_finish(fm_model *m);
/* The session's part of the pass under way is of no interest any more. */
void      fm_sched_leave(fm_model *m, const fm_session *s);
/* Running tasks that read prompts, or that decode, into m->order, who has had least first. Returns how many. */
int64_t   fm_sched_order(fm_model *m, bool prefilling);
/* Pages for a session of the pass that is put together, if need be from younger tasks, which are set back to waiting, or for one
   without a task. FM_ELIMIT: it has to do without in this pass. */
fm_status fm_sched_reserve(fm_session *s, int64_t from, int64_t to, fm_error *err);
/* Rows that a pass may have so that a slice of it stays short. */
int64_t   fm_sched_rows(const fm_model *m, bool prompt);
/* What n cached tokens cost a slice of a prompt's pass, in rows: keys and values are expanded from the latent again, each time. */
double    fm_sched_keys(fm_model *m, int64_t n);

/* ---- batch.c ---- */
void      fm_batch_clear(fm_batch *b);
void      fm_batch_free(fm_batch *b);
bool      fm_batch_holds(const fm_batch *b, const fm_task *t);
fm_status fm_batch_add(fm_batch *b, fm_task *t, fm_seg seg);
/* The same with n states of hidden_size d for its first n rows. */
fm_status fm_batch_add_mtp(fm_batch *b, fm_task *t, fm_seg seg, const float *h, int64_t n, int64_t d);
fm_status fm_batch_begin(fm_model *m);              /* begins the pass of work.now */
fm_status fm_batch_fetch(fm_model *m);              /* what of it the host is going to read */
/* A row of the completed pass's logits, NULL: its draw did not need them. */
const float *fm_batch_logits(const fm_model *m, int64_t row);
/* The draw for one row of the completed pass's logits, n_ahead drafts behind the real end of the task's ids. */
fm_status fm_batch_draw(fm_model *m, fm_task *t, int64_t row, int64_t n_ahead, fm_head head, fm_draw *out);

/* ---- prefill.c, decode.c, draft.c: each puts together a pass, and settles segment i of a completed one ---- */
bool      fm_prefill_choose(fm_model *m);
void      fm_prefill_settle(fm_model *m, int64_t i);
void      fm_prefill_mtp_settle(fm_model *m, int64_t i);
bool      fm_decode_choose(fm_model *m);
void      fm_decode_settle(fm_model *m, int64_t i);
void      fm_draft_settle(fm_model *m, int64_t i);
/* Draws along the rows of a task until a draft was wrong or it stops. Returns how many ids were taken; -1: the task failed. */
int64_t   fm_decode_draw(fm_model *m, fm_task *t, int64_t first_row);
/* Lines up MTP rows for ids up to the pending one; the states of the n indices before it are h. */
fm_status fm_draft_begin(fm_model *m, fm_task *t, const float *h, int64_t n);
/* Makes ids[s->n ..] hold the task's drafts, so that histories are one array. */
fm_status fm_draft_lay_out(fm_task *t);
/* Chooses how many drafts "auto" makes for the step that is put together. */
void      fm_draft_pace(fm_model *m);
/* Notes how many drafts of a task were right. */
void      fm_draft_accepted(fm_model *m, const fm_task *t, int64_t drafted, int64_t accepted);

/* ---- depth.c ---- */
void      fm_depth_begin(fm_depth *d);
/* Notes what a completed pass of decoding (its rows) or drafting (its tasks) cost. */
void      fm_depth_cost(fm_depth *d, bool draft, int64_t rows, double ms);
/* Notes that the first `accepted` of a task's drafts were right. */
void      fm_depth_right(fm_depth *d, int64_t drafted, int64_t accepted);
/* Drafts for a step of n tasks, of which `able` can make some. */
int       fm_depth_choose(fm_depth *d, int64_t n, int64_t able);

#endif
