/*
** frames.c - a game's loop: sixty frames a second, three characters speaking at once, two milliseconds of each frame for all
** of them. Prints who said what, and how long the frames' share really was.
** usage: frames [DIR [DEVICE [SECONDS]]]     (cc frames.c -Icsrc build/libfathom.a -lcjson -lpcre2-8 -lutf8proc -lm -ldl -pthread)
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fathom.h"

enum { CHARACTERS = 3, MAX_FRAMES = 60 * 600, TEXT = 2000 };
static const double frame_ms = 1000.0 / 60, share_ms = 2;

typedef struct character {
  const char *name, *line;
  fm_session *session;
  fm_task *task;
  int said;                              /* lines finished */
  char text[TEXT]; size_t len;           /* of the line under way */
} character;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void sleep_until(double ms) {
  struct timespec t = { .tv_sec = (time_t)(ms / 1e3) };
  t.tv_nsec = (long)((ms - (double)t.tv_sec * 1e3) * 1e6);
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Asks the character for its next line: what it has said so far is forgotten, as is right for one-liners. */
static fm_status ask(fm_model *m, character *c, fm_error *err) {
  char prompt[512];
  int32_t *ids;
  int64_t n;
  fm_generate_options o = fm_generate_options_default();
  o.temperature = 0.8f, o.max_tokens = 120, o.seed = (uint64_t)c->said + 1;
  int len = snprintf(prompt, sizeof prompt, "<｜begin▁of▁sentence｜><｜User｜>%s<｜Assistant｜></think>", c->line);
  fm_status status = fm_model_encode(m, prompt, (size_t)len, true, &ids, &n, err);
  if (status != FM_OK) return status;
  status = fm_task_new(&c->task, c->session, ids, n, &o, err);
  fm_release(ids);
  return status;
}

/* Takes what is new of the character's line; asks for another when it is over. */
static fm_status listen(fm_model *m, character *c, fm_error *err) {
  fm_token k;
  while (fm_task_next(c->task, &k)) {
    size_t room = TEXT - 1 - c->len, take = k.len < room ? k.len : room;
    memcpy(c->text + c->len, k.text, take);
    c->len += take;
  }
  fm_finish f = fm_task_finish(c->task, err);
  if (f == FM_RUNNING) return FM_OK;
  fm_task_free(c->task);
  c->task = NULL;
  if (f == FM_FAILED) return err->code;
  c->text[c->len] = 0;
  if (!c->said++) printf("%s: %s\n", c->name, c->text);
  c->len = 0;
  return ask(m, c, err);
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* How many frames spent up to so many milliseconds on the model. */
static void print_histogram(double *ms, int n) {
  static const double edge[] = { 0.5, 1, 1.5, 2, 2.5, 3, 4, 8, frame_ms };
  int i = 0, late = 0;
  qsort(ms, (size_t)n, sizeof *ms, by_size);
  printf("%d frames, share of %.0f ms of %.1f: median %.2f, 99th percentile %.2f, worst %.2f ms\n", n, share_ms, frame_ms,
         ms[n / 2], ms[(n * 99 - 1) / 100], ms[n - 1]);
  for (size_t e = 0; e < sizeof edge / sizeof *edge; e++) {
    int count = 0;
    while (i < n && ms[i] <= edge[e]) i++, count++;
    printf("  up to %5.1f ms %6d  %.*s\n", edge[e], count, (count * 50 + n - 1) / n,
           "##################################################");
  }
  late = n - i;
  printf("  a frame missed %5d\n", late);
}

static fm_status run(fm_model *m, character *cast, int n_frames, double *ms, fm_error *err) {
  double next = now_ms();
  bool busy;
  for (int i = 0; i < CHARACTERS; i++) {
    fm_status status = fm_session_new(&cast[i].session, m, err);
    if (status == FM_OK) status = ask(m, &cast[i], err);
    if (status != FM_OK) return status;
  }
  for (int f = 0; f < n_frames; f++) {
    double begin = now_ms();
    fm_status status = fm_model_step(m, share_ms, &busy, err);
    for (int i = 0; i < CHARACTERS && status == FM_OK; i++) status = listen(m, &cast[i], err);
    if (status != FM_OK) return status;
    ms[f] = now_ms() - begin;
    // here a game would move and draw
    next += frame_ms;
    if (next < now_ms()) next = now_ms();
    sleep_until(next);
  }
  return FM_OK;
}

int main(int argc, char **argv) {
  const char *dir = argc > 1 ? argv[1] : "examples/pocket";
  double seconds = argc > 3 ? atof(argv[3]) : 10;
  int n_frames = seconds > 0 && seconds * 60 < MAX_FRAMES ? (int)(seconds * 60) + 1 : MAX_FRAMES;
  character cast[CHARACTERS] = { { .name = "the fox", .line = "Tell me a story about a fox." },
                                 { .name = "the clerk", .line = "What is 17 + 25?" },
                                 { .name = "the stranger", .line = "Who are you?" } };
  fm_load_options o = fm_load_options_default();
  fm_model *model = NULL;
  fm_error err;
  double *ms = calloc((size_t)n_frames, sizeof *ms);
  o.device = argc > 2 ? argv[2] : NULL;
  o.ctx = 1024, o.seqs = CHARACTERS;
  o.threads = 1;             // a game's own threads want the other cores, and waiting for one that is busy costs frames
  fm_status status = ms ? fm_load(&model, dir, &o, &err) : FM_EMEMORY;
  if (status == FM_OK) status = run(model, cast, n_frames, ms, &err);
  if (status == FM_OK) {
    fm_stats s = fm_model_stats(model);
    printf("%lld tokens in %.1f s on the %s\n", (long long)s.generated_tokens, n_frames / 60.0, s.device);
    print_histogram(ms, n_frames);
  } else {
    fprintf(stderr, "frames: %s\n", ms ? err.message : "no memory");
  }
  for (int i = 0; i < CHARACTERS; i++) {
    fm_task_free(cast[i].task);
    fm_session_free(cast[i].session);
  }
  fm_model_close(model);
  free(ms);
  return status != FM_OK;
}
