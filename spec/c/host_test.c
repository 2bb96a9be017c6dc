/*
** host_test.c - what a host may hook into: files from an archive of its own, good and bad; the log.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fathom.h"

static int failures;

static void check(bool good, const char *sentence) {
  printf("%s - %s\n", good ? "ok" : "not ok", sentence);
  failures += !good;
}

/* ---- an archive: the folder "pak" stands for examples/pocket, read once, served from memory ---- */

typedef struct entry { char name[64]; char *data; int64_t size; } entry;

typedef struct archive {
  entry file[8]; int n;
  int open, opened, reads;               /* files open now, in all; reads */
  int64_t most;                          /* a read gives no more than this at once; 0: all */
  int fail_at;                           /* this read gives -1 */
  int stop_at;                           /* from this read on nothing comes */
  bool may_map;
} archive;

static void *archive_open(void *user, const char *path, int64_t *size) {
  archive *a = user;
  char from[256];
  if (strncmp(path, "pak/", 4) != 0) return NULL;
  entry *e = a->file;
  while (e < a->file + a->n && strcmp(e->name, path) != 0) e++;
  if (e == a->file + a->n) {
    snprintf(from, sizeof from, "examples/pocket/%s", path + 4);
    FILE *f = fopen(from, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    snprintf(e->name, sizeof e->name, "%s", path);
    e->size = ftell(f);
    e->data = aligned_alloc(64, (size_t)(e->size + 63) / 64 * 64);
    rewind(f);
    if (!e->data || fread(e->data, 1, (size_t)e->size, f) != (size_t)e->size) exit(2);
    fclose(f);
    a->n++;
  }
  a->open++;
  a->opened++;
  *size = e->size;
  return e;
}

static int64_t archive_read(void *user, void *file, int64_t offset, void *dst, int64_t size) {
  archive *a = user;
  entry *e = file;
  a->reads++;
  if (a->fail_at && a->reads == a->fail_at) return -1;
  if (a->stop_at && a->reads >= a->stop_at) return 0;
  if (offset < 0 || offset + size > e->size) return -1;
  if (a->most && size > a->most) size = a->most;
  memcpy(dst, e->data + offset, (size_t)size);
  return size;
}

static const void *archive_map(void *user, void *file) {
  return ((archive *)user)->may_map ? ((entry *)file)->data : NULL;
}

static void archive_close(void *user, void *file) {
  (void)file;
  ((archive *)user)->open--;
}

static archive pak;
static fm_file_hooks hooks = { &pak, archive_open, archive_read, archive_map, archive_close };

/* Loads from dir and says a few greedy ids; n ids in out. */
static fm_status say(const char *dir, int32_t out[8], fm_error *err) {
  const char *prompt = "What is 17 + 25?";
  fm_load_options o = fm_load_options_default();
  fm_generate_options g = fm_generate_options_default();
  fm_model *m = NULL;
  fm_session *s = NULL;
  fm_task *t = NULL;
  fm_token k;
  int32_t *ids = NULL;
  int64_t n;
  bool busy = true;
  o.device = "cpu", o.threads = 1, o.ctx = 128, o.seqs = 1;
  g.temperature = 0, g.max_tokens = 8, g.ignore_eos = true;
  fm_status status = fm_load(&m, dir, &o, err);
  if (status == FM_OK) status = fm_session_new(&s, m, err);
  if (status == FM_OK) status = fm_model_encode(m, prompt, strlen(prompt), false, &ids, &n, err);
  if (status == FM_OK) status = fm_task_new(&t, s, ids, n, &g, err);
  while (status == FM_OK && busy) status = fm_model_step(m, 0, &busy, err);
  for (int i = 0; status == FM_OK && i < 8 && fm_task_next(t, &k); i++) out[i] = k.id;
  fm_task_free(t);
  fm_release(ids);
  fm_session_free(s);
  fm_model_close(m);
  return status;
}

static void test_files(void) {
  int32_t want[8] = { 0 }, got[8] = { 0 };
  fm_error err;
  check(say("examples/pocket", want, &err) == FM_OK, "the system's files are read where there are no hooks");
  fm_set_files(&hooks);
  check(say("pak", got, &err) == FM_OK && memcmp(want, got, sizeof got) == 0, "a model is loaded from a host's archive");
  check(pak.opened > 3 && pak.open == 0, "every file of it is closed");
  pak.may_map = true, pak.reads = 0;
  check(say("pak", got, &err) == FM_OK && memcmp(want, got, sizeof got) == 0 && pak.open == 0,
        "a hook may hand out the mapped bytes");
  pak.may_map = false, pak.most = 100000;
  check(say("pak", got, &err) == FM_OK && memcmp(want, got, sizeof got) == 0, "short reads are asked on");
  pak.most = 0;
  check(say("examples/pocket", got, &err) == FM_EIO && strstr(err.message, "no such file"),
        "what the archive does not have is missing, whatever the disk has");
  pak.reads = 0;
  say("pak", got, &err);
  bool refused = true, named = true, closed = true;
  for (int at = 1, all = pak.reads; at <= all; at++) {
    pak.reads = 0, pak.fail_at = at, pak.stop_at = 0;
    refused = refused && say("pak", got, &err) == FM_EIO;
    named = named && strstr(err.message, "cannot read pak/") && strstr(err.message, "the host's hook gave -1");
    pak.reads = 0, pak.fail_at = 0, pak.stop_at = at;
    refused = refused && say("pak", got, &err) == FM_EIO;
    closed = closed && pak.open == 0;
  }
  pak.stop_at = 0;
  check(refused, "a read that fails, or brings nothing, is FM_EIO at every point of loading");
  check(named, "the message names the file and what the hook said");
  check(closed, "failing loads close what they opened");
  fm_set_files(NULL);
  check(say("examples/pocket", got, &err) == FM_OK, "without hooks the system's files are back");
}

/* ---- the log ---- */

static struct { int lines, newlines; bool loaded; } heard;

static void listen(void *user, int level, const char *line) {
  (void)user;
  heard.lines += level == FM_LOG_INFO || level == FM_LOG_WARNING;
  heard.newlines += strchr(line, '\n') != NULL;
  if (strstr(line, "layers") && strstr(line, "cpu")) heard.loaded = true;
}

static void test_log(void) {
  int32_t got[8];
  fm_error err;
  fm_set_log(listen, NULL);
  say("examples/pocket", got, &err);
  check(heard.loaded && heard.lines > 0 && heard.newlines == 0, "the log says in one line what was loaded and where it runs");
  fm_set_log(NULL, NULL);
  int before = heard.lines;
  say("examples/pocket", got, &err);
  check(heard.lines == before, "and is silent without a callback");
}

int main(void) {
  test_files();
  test_log();
  for (int i = 0; i < pak.n; i++) free(pak.file[i].data);
  return failures != 0;
}
