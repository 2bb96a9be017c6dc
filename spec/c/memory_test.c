/*
** memory_test.c - a failing allocation at every point of load, generate and structured output: an error each time, nothing lost, nothing broken.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run/grammar.h"

static struct { long count, fail_at, live; } mem;

/* Counts what is taken; refuses the fail_at-th request and, from then on, every one (as real machines do) or just that one. */
static void *counting(void *user, void *p, size_t size) {
  (void)user;
  if (size == 0) {
    mem.live -= p != NULL;
    free(p);
    return NULL;
  }
  if (++mem.count == mem.fail_at) return NULL;
  void *q = realloc(p, size);
  if (q && !p) mem.live++;
  return q;
}

static int failed;

static void check(int fine, const char *what) {
  printf("%s - %s\n", fine ? "ok" : "not ok", what);
  failed += !fine;
}

/* Loads, generates a few tokens with drafts, forks, saves; any failure is returned. */
static fm_status whole(fm_error *err) {
  const char *prompt = "<｜begin▁of▁sentence｜><｜User｜>What is 17 + 25?<｜Assistant｜><think>\n", *stop = "zzz";
  const char *path = "build/memory_test.session";
  fm_load_options o = fm_load_options_default();
  fm_generate_options g = fm_generate_options_default();
  fm_model *m = NULL;
  fm_session *s = NULL, *f = NULL, *r = NULL;
  fm_task *t = NULL;
  int32_t *ids = NULL;
  char *note = NULL;
  size_t n_note;
  int64_t n;
  bool busy = true;
  fm_token k;
  o.threads = 1;
  o.ctx = 256;
  o.seqs = 2;
  g.max_tokens = 12;
  g.logprobs = 2;
  g.stop = &stop;
  g.n_stop = 1;
  fm_status status = fm_load(&m, "examples/pocket", &o, err);
  if (status == FM_OK) status = fm_session_new(&s, m, err);
  if (status == FM_OK) status = fm_model_encode(m, prompt, strlen(prompt), true, &ids, &n, err);
  if (status == FM_OK) status = fm_task_new(&t, s, ids, n, &g, err);
  while (status == FM_OK && busy) status = fm_model_step(m, 0, &busy, err);
  while (t && fm_task_next(t, &k)) {}
  if (status == FM_OK && fm_task_finish(t, err) == FM_FAILED) status = err->code;
  if (status == FM_OK) status = fm_session_fork(&f, s, err);
  if (status == FM_OK) status = fm_session_save(s, path, "note", 4, FM_PAGES_8BIT, err);
  if (status == FM_OK) status = fm_session_restore(&r, m, path, &note, &n_note, err);
  fm_release(note);
  fm_session_free(r);
  fm_session_free(f);
  fm_task_free(t);
  fm_session_free(s);
  fm_release(ids);
  fm_model_close(m);
  remove(path);
  return status;
}

/* Draws a document from equal logits, one step ahead of itself as with drafts. */
static fm_status draw_document(fm_grammars *gs, fm_sampler *s, const float *logits, const fm_guide_options *o, fm_error *err) {
  fm_generate_options g = fm_generate_options_default();
  fm_guide *u;
  fm_draw d;
  fm_status status = fm_guide_new(&u, gs, o, err);
  if (status != FM_OK) return status;
  for (int64_t i = 0; i < 60 && status == FM_OK && !fm_guide_over(u, FM_REAL); i++) {
    fm_history h = { .n = i, .n_prompt = i };
    status = fm_guide_ahead(u, err);
    if (status == FM_OK) status = fm_guide_draw(u, FM_AHEAD, s, &g, logits, -1, h, 60 - i, false, &d, err);
    if (status == FM_OK) status = fm_guide_take(u, FM_AHEAD, d.id, err);
    if (status == FM_OK) status = fm_guide_draw(u, FM_REAL, s, &g, logits, -1, h, 60 - i, false, &d, err);
    if (status == FM_OK) status = fm_guide_take(u, FM_REAL, d.id, err);
  }
  if (status == FM_OK && !fm_guide_complete(u, FM_REAL)) status = fm_fail(err, FM_EINVAL, "the document is not complete");
  fm_guide_free(u);
  return status;
}

/* A schema and a grammar that use most of what there is. */
static fm_status structured(const fm_tokenizer *tok, fm_error *err) {
  const char *schema = "{\"allOf\":[{\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":9}},\"required\":[\"a\"]},"
                       "{\"properties\":{\"b\":{\"enum\":[1,\"x\",\"xy\"]},\"c\":{\"items\":{\"$ref\":\"#/$defs/n\"},\"maxItems\":2}}}],"
                       "\"type\":\"object\",\"$defs\":{\"n\":{\"oneOf\":[{\"type\":\"number\",\"minimum\":0.5},{\"type\":\"object\","
                       "\"properties\":{\"p\":{}},\"additionalProperties\":{\"type\":\"boolean\"}}]}}}";
  const char *grammar = "root ::= (\"one\" | \"only\" | other{2,5}) [a-z]{1,8} \".\"\nother ::= \"(\" root \")\" | [^()]\n";
  fm_guide_options o = { .schema = schema, .after = -1 };
  fm_grammars *gs = NULL;
  fm_sampler *s = NULL;
  int64_t v = fm_tokenizer_size(tok);
  float *logits = fm_array(v, sizeof *logits);
  fm_status status = logits ? fm_grammars_new(&gs, tok, v, err) : fm_no_memory(err, v * 4);
  if (status == FM_OK) status = fm_sampler_new(&s, v, v, err);
  if (status == FM_OK) status = draw_document(gs, s, logits, &o, err);
  if (status == FM_OK) status = draw_document(gs, s, logits, &(fm_guide_options){ .grammar = grammar, .after = -1 }, err);
  fm_sampler_free(s);
  fm_grammars_free(gs);
  fm_free(logits);
  return status;
}

static void test_structured(void) {
  fm_tokenizer *tok;
  fm_error err;
  long wrong = 0, leaks = 0, went_on = 0, all;
  mem = (typeof(mem)){ .count = 0 };
  if (fm_tokenizer_open(&tok, "examples/pocket", &err) != FM_OK) return check(0, "the tokenizer opens");
  long before = mem.live, opened = mem.count;
  check(structured(tok, &err) == FM_OK, "documents are drawn with a counting allocator");
  all = mem.count - opened;
  for (long at = 1; at <= all; at++) {
    mem.count = 0;
    mem.fail_at = at;
    fm_status status = structured(tok, &err);
    // an arena asks again for less
    wrong += status != FM_EMEMORY && status != FM_OK;
    went_on += status == FM_OK;
    if (status != FM_EMEMORY && status != FM_OK) printf("  allocation %ld of %ld: %s: %s\n", at, all, fm_status_name(status), err.message);
    leaks += mem.live != before;
  }
  printf("  %ld points tried\n", all);
  check(went_on * 20 < all, "hardly any refusal of a grammar's memory goes unnoticed");
  check(wrong == 0, "a refused allocation of a grammar is FM_EMEMORY wherever it happens");
  check(leaks == 0, "a refused allocation of a grammar loses nothing");
  mem.fail_at = 0;
  fm_tokenizer_free(tok);
}

int main(void) {
  fm_error err;
  fm_set_allocator(counting, NULL);
  check(whole(&err) == FM_OK, "loading and generating works with a counting allocator");
  check(mem.live == 0, "everything is given back");
  long all = mem.count, wrong = 0, leaks = 0, tried = 0, unharmed = 0;
  // the vocabulary alone is thousands of equal requests: every point of the rest, a sample of those
  for (long at = 1; at <= all; at += at > 400 && at < all - 1500 ? 97 : 1) {
    mem = (typeof(mem)){ .fail_at = at };
    fm_status status = whole(&err);
    // PCRE2's JIT compiler may do without memory: the pattern is interpreted then
    if (status != FM_EMEMORY && status != FM_OK) {
      printf("  allocation %ld of %ld: %s: %s\n", at, all, fm_status_name(status), err.message);
      wrong++;
    }
    unharmed += status == FM_OK;
    leaks += mem.live != 0;
    tried++;
  }
  printf("  %ld of %ld points tried, %ld went on without\n", tried, all, unharmed);
  check(unharmed * 20 < tried, "hardly any refusal goes unnoticed");
  check(wrong == 0, "a refused allocation is FM_EMEMORY wherever it happens");
  check(leaks == 0, "a refused allocation loses nothing");
  test_structured();
  fm_set_allocator(NULL, NULL);
  return failed != 0;
}
