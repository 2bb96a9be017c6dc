/*
** generate.c - fathom from C: load a checkpoint, encode a prompt, print the answer as it comes.
** usage: generate [DIR] [PROMPT]     (cc generate.c -Icsrc build/libfathom.a -lcjson -lpcre2-8 -lutf8proc -lm -ldl -pthread)
*/
#include <stdio.h>
#include <string.h>

#include "fathom.h"

static int complain(const fm_error *err) {
  fprintf(stderr, "generate: %s%s%s\n", err->message, err->hint[0] ? "; " : "", err->hint);
  return 1;
}

/* Steps the model and prints what is new until the task is over. */
static int drain(fm_model *m, fm_task *t, fm_error *err) {
  bool busy = true;
  fm_token token;
  while (busy) {
    if (fm_model_step(m, 20, &busy, err) != FM_OK) return complain(err);
    while (fm_task_next(t, &token)) fwrite(token.text, 1, token.len, stdout);
    fflush(stdout);
  }
  printf("\n");
  if (fm_task_finish(t, err) == FM_FAILED) return complain(err);
  fm_usage u = fm_task_usage(t);
  fprintf(stderr, "%lld tokens, %lld of %lld drafts right, %.0f tokens/s\n", (long long)u.completion,
          (long long)u.accepted, (long long)u.drafted, u.decode_ms > 0 ? (double)u.completion * 1e3 / u.decode_ms : 0.0);
  return 0;
}

int main(int argc, char **argv) {
  const char *dir = argc > 1 ? argv[1] : "examples/pocket";
  const char *prompt = argc > 2 ? argv[2] : "<｜begin▁of▁sentence｜><｜User｜>What is 17 + 25?<｜Assistant｜><think>\n";
  fm_error err;
  fm_model *model = NULL;
  fm_session *session = NULL;
  fm_task *task = NULL;
  int32_t *ids = NULL;
  int64_t n;
  fm_generate_options o = fm_generate_options_default();
  o.temperature = 0;
  o.max_tokens = 200;
  int status = 1;
  if (fm_load(&model, dir, NULL, &err) != FM_OK || fm_session_new(&session, model, &err) != FM_OK ||
      fm_model_encode(model, prompt, strlen(prompt), true, &ids, &n, &err) != FM_OK ||
      fm_task_new(&task, session, ids, n, &o, &err) != FM_OK)
    complain(&err);
  else
    status = drain(model, task, &err);
  fm_task_free(task);
  fm_release(ids);
  fm_session_free(session);
  fm_model_close(model);
  return status;
}
