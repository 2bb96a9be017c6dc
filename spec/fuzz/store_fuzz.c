/* store_fuzz.c - any bytes as a saved session, with the right checksum and model so that they are read to the end: refused
   or restored, never a crash; what is restored generates. Runs where spec/golden is. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "run/engine.h"
#include "run/saved.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static fm_model *model(void) {
  static fm_model *m;
  fm_load_options o = fm_load_options_default();
  fm_error err;
  o.device = "cpu", o.ctx = 192, o.seqs = 2, o.threads = 1;
  if (!m && fm_load(&m, "spec/golden/v3-tiny", &o, &err) != FM_OK) abort();
  return m;
}

/* Makes the digest the model's and the checksum right. */
static void forge(char *p, size_t size, const fm_model *m) {
  if (size < 48) return;
  fm_put_int(p + 16, m->digest, 8);
  uint64_t sum = p[8] == 1 ? fm_fnv(FM_HASH_START, p, (int64_t)size - 8)
                           : fm_sum(FM_HASH_START, p, (int64_t)(size - 8) / 8 * 8);
  fm_put_int(p + size - 8, sum, 8);
}

static void go_on(fm_session *s) {
  fm_generate_options o = fm_generate_options_default();
  fm_task *t;
  bool busy = true;
  int64_t n = fm_session_len(s);
  o.shift = s->kv.kept_len > 0;                    // a window that moved moves once more
  o.max_tokens = o.shift ? s->m->ctx - n + 2 : 2;
  if (n && fm_task_new(&t, s, fm_session_ids(s), n, &o, NULL) == FM_OK) {
    while (busy) fm_model_step(s->m, 0, &busy, NULL);
    fm_task_free(t);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  fm_session *s;
  char *note = NULL;
  size_t n_note;
  char *copy = malloc(size + 1);
  if (!copy) return 0;
  memcpy(copy, data, size);
  forge(copy, size, model());
  FILE *f = size ? fmemopen(copy, size, "rb") : NULL;
  if (f && fm_session_restore_from(&s, model(), f, "fuzz", &note, &n_note, NULL) == FM_OK) {
    if (strlen(note) > n_note) abort();
    go_on(s);
    fm_session_free(s);
    fm_release(note);
  }
  if (f) fclose(f);
  free(copy);
  return 0;
}
