/*
** head.h - the head of an HTTP request, looked at before anything else reads it, and the answers to those that are wrong.
*/
#ifndef FM_NET_HEAD_H
#define FM_NET_HEAD_H

#include <stdbool.h>
#include <stddef.h>

enum { FM_HEAD_MAX = 16 << 10, FM_HEAD_TARGET_MAX = 4 << 10, FM_HEAD_LINES_MAX = 100 };

typedef struct fm_refusal {
  int status;                       /* 400, 408, 413, 414, 431, 501, 503, 505 */
  const char *code;                 /* a word for programs */
  const char *message;              /* a sentence; no quotes, no backslashes */
} fm_refusal;

/*
** Looks at the n bytes that have come. Returns the length of the head (with its empty line) once it is complete, 0 while
** more must come, -1 when it can never become a request: *why says the reason then.
** Stricter than most servers, so that no two readers of one request differ: lines end in CR LF, no folded lines,
** one Content-Length or one Transfer-Encoding (chunked), HTTP/1.0 or 1.1, and a Host in 1.1. Source: RFC 9112.
*/
long fm_head_check(const char *p, size_t n, fm_refusal *why);

/* The body of an answer, shaped like OpenAI's; returns its length (less than size). */
size_t fm_refusal_body(const fm_refusal *why, char *buf, size_t size);

/* Writes a whole answer to a socket that does not block, and shuts it for writing. What does not fit is lost. */
void fm_refuse(int fd, const fm_refusal *why);

#endif
