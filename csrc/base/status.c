/*
** status.c - filling an fm_error at the spot that knows the facts.
*/
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

static struct { fm_log_fn fn; void *user; } sink;

const char *fm_version(void) { return FM_VERSION; }

const char *fm_status_name(fm_status s) {
  static const char *const name[] = { "ok", "io", "format", "unsupported", "memory", "device", "overflow",
                                      "cancelled", "network", "limit", "invalid" };
  return s >= FM_OK && s <= FM_EINVAL ? name[s] : "unknown";
}

fm_status fm_fail(fm_error *err, fm_status code, const char *fmt, ...) {
  va_list ap;
  if (!err) return code;
  va_start(ap, fmt);
  vsnprintf(err->message, sizeof err->message, fmt, ap);
  va_end(ap);
  err->code = code;
  err->hint[0] = 0;
  return code;
}

fm_status fm_hint(fm_error *err, fm_status code, const char *fmt, ...) {
  va_list ap;
  if (!err) return code;
  va_start(ap, fmt);
  vsnprintf(err->hint, sizeof err->hint, fmt, ap);
  va_end(ap);
  return code;
}

fm_status fm_no_memory(fm_error *err, int64_t size) {
  return fm_fail(err, FM_EMEMORY, "out of memory: %lld bytes were refused", (long long)size);
}

void fm_set_log(fm_log_fn fn, void *user) {
  sink.fn = fn;
  sink.user = user;
}

void fm_log(int level, const char *fmt, ...) {
  char line[512];
  va_list ap;
  if (!sink.fn) return;
  va_start(ap, fmt);
  vsnprintf(line, sizeof line, fmt, ap);
  va_end(ap);
  sink.fn(sink.user, level, line);
}
