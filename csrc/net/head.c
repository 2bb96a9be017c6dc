/*
** head.c - the head of an HTTP request, looked at before anything else reads it.
*/
#include "net/head.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

typedef struct span { const char *p, *end; } span;

static long refuse(fm_refusal *why, int status, const char *code, const char *message) {
  *why = (fm_refusal){ status, code, message };
  return -1;
}

static long malformed(fm_refusal *why, const char *message) { return refuse(why, 400, "malformed_request", message); }

/* Letters of names of methods and fields (RFC 9110, 5.6.2). */
static bool is_token(unsigned char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_space(char c) { return c == ' ' || c == '\t'; }

static bool same(span s, const char *word) {
  return (size_t)(s.end - s.p) == strlen(word) && strncasecmp(s.p, word, strlen(word)) == 0;
}

/* ---- lines ------------------------------------------------------------------------------------------ */

/* The line at *at without its CR LF; 1: there, 0: not complete yet, -1: it ends in something else. */
static int next_line(const char **at, const char *end, span *line) {
  const char *eol = memchr(*at, '\n', (size_t)(end - *at));
  if (!eol) return 0;
  if (eol == *at || eol[-1] != '\r') return -1;
  *line = (span){ *at, eol - 1 };
  *at = eol + 1;
  return 1;
}

static long check_target(span t, fm_refusal *why) {
  if (t.end - t.p > FM_HEAD_TARGET_MAX) return refuse(why, 414, "uri_too_long", "the path of the request is too long");
  if (t.p == t.end || (*t.p != '/' && !same(t, "*"))) return malformed(why, "the path of the request does not begin with /");
  for (const char *p = t.p; p < t.end; p++)
    if ((unsigned char)*p <= 0x20 || *p == 0x7f) return malformed(why, "the path of the request holds a control character");
  return 0;
}

static long check_first(span line, bool *is_11, fm_refusal *why) {
  const char *p = line.p, *target;
  while (p < line.end && is_token((unsigned char)*p)) p++;
  if (p == line.p || p - line.p > 32 || p == line.end || *p != ' ') return malformed(why, "this is no HTTP request");
  target = ++p;
  while (p < line.end && *p != ' ') p++;
  if (check_target((span){ target, p }, why) < 0) return -1;
  if (line.end - p != 9 || strncmp(p, " HTTP/", 6) != 0) return malformed(why, "this is no HTTP request");
  if (strncmp(p + 6, "1.", 2) != 0 || (p[8] != '0' && p[8] != '1'))
    return refuse(why, 505, "http_version", "only HTTP/1.0 and HTTP/1.1 are understood");
  *is_11 = p[8] == '1';
  return 0;
}

/* ---- fields ----------------------------------------------------------------------------------------- */

typedef struct seen { int hosts, lengths, codings; } seen;

static long check_length(span v, fm_refusal *why) {
  for (const char *p = v.p; p < v.end; p++)
    if (*p < '0' || *p > '9') return malformed(why, "Content-Length is no number");
  if (v.p == v.end || v.end - v.p > 15) return malformed(why, "Content-Length is no number");
  return 0;
}

static long check_field(span line, seen *s, fm_refusal *why) {
  const char *p = line.p;
  while (p < line.end && is_token((unsigned char)*p)) p++;
  if (p == line.p || p == line.end || *p != ':') return malformed(why, "a header line has no name");
  span name = { line.p, p }, v = { p + 1, line.end };
  for (p = v.p; p < v.end; p++)
    if (((unsigned char)*p < 0x20 && *p != '\t') || *p == 0x7f) return malformed(why, "a header holds a control character");
  while (v.p < v.end && is_space(*v.p)) v.p++;
  while (v.p < v.end && is_space(v.end[-1])) v.end--;
  if (same(name, "host")) s->hosts++;
  if (same(name, "content-length") && (s->lengths++, check_length(v, why) < 0)) return -1;
  if (same(name, "transfer-encoding")) {
    s->codings++;
    if (!same(v, "chunked")) return refuse(why, 501, "transfer_encoding", "no Transfer-Encoding but chunked is understood");
  }
  return 0;
}

static long check_fields(const seen *s, bool is_11, fm_refusal *why) {
  if (s->hosts > 1 || (is_11 && s->hosts == 0)) return malformed(why, "HTTP/1.1 wants one Host header");
  if (s->lengths + s->codings > 1) return malformed(why, "the length of the body is said twice");
  return 0;
}

long fm_head_check(const char *p, size_t n, fm_refusal *why) {
  const char *at = p, *end = p + (n < FM_HEAD_MAX ? n : FM_HEAD_MAX);
  bool is_11 = false;
  seen s = { 0 };
  span line;
  int there = 0;
  for (int i = 0; (there = next_line(&at, end, &line)) > 0; i++) {
    if (i > 0 && line.p == line.end) return check_fields(&s, is_11, why) < 0 ? -1 : at - p;
    if (i > FM_HEAD_LINES_MAX) return refuse(why, 431, "headers_too_large", "the request has too many headers");
    if ((i ? check_field(line, &s, why) : check_first(line, &is_11, why)) < 0) return -1;
  }
  if (there < 0) return malformed(why, "a line of the request does not end in CR LF");
  if (n >= FM_HEAD_MAX) return refuse(why, 431, "headers_too_large", "the headers of the request are too large");
  // what cannot begin a request is not waited for: another protocol on this port
  for (const char *q = p; at == p && q < end && q - p < 32 && *q != ' '; q++)
    if (!is_token((unsigned char)*q) && *q != '\r') return malformed(why, "this is no HTTP request");
  return 0;
}

/* ---- answers ---------------------------------------------------------------------------------------- */

static const char *reason(int status) {
  switch (status) {
    case 400: return "Bad Request";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 431: return "Request Header Fields Too Large";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
  }
  return "Error";
}

size_t fm_refusal_body(const fm_refusal *why, char *buf, size_t size) {
  int n = snprintf(buf, size, "{\"error\": {\"message\": \"%s\", \"type\": \"%s\", \"param\": null, \"code\": \"%s\"}}", why->message,
                   why->status >= 500 ? "server_error" : "invalid_request_error", why->code);
  return n < (int)size ? (size_t)n : size - 1;
}

void fm_refuse(int fd, const fm_refusal *why) {
  char body[512], text[1024], rest[4096];
  size_t len = fm_refusal_body(why, body, sizeof body);
  int n = snprintf(text, sizeof text, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%sConnection: close\r\n\r\n%s",
                   why->status, reason(why->status), len, why->status == 503 ? "Retry-After: 1\r\n" : "", body);
  if (send(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
  shutdown(fd, SHUT_WR);
  // a socket that is closed with bytes unread resets the connection, and the answer may never be seen
  for (int i = 0; i < 64 && recv(fd, rest, sizeof rest, MSG_DONTWAIT) > 0; i++) { }
}
