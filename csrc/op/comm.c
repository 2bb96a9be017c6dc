/*
** comm.c - the front door to collectives. A rank alone is never made to wait.
*/
#include "op/comm.h"

int fm_comm_size(const fm_comm *m) { return m ? m->n : 1; }
int fm_comm_me(const fm_comm *m) { return m ? m->me : 0; }

static fm_status check(fm_ctx *c, const char *op, const void *out, const void *in, int64_t size) {
  if (size >= 0 && (size == 0 || (out && in))) return FM_OK;
  return fm_fail(&c->err, FM_EINVAL, "%s: %lld bytes, or a NULL", op, (long long)size);
}

fm_status fm_op_barrier(fm_ctx *c, fm_comm *m) { return m ? m->ops->barrier(c, m) : FM_OK; }

fm_status fm_op_all_reduce(fm_ctx *c, fm_comm *m, float *x, const float *part, int64_t len) {
  TRY(check(c, "all_reduce", x, part, len));
  if (m) return m->ops->all_reduce(c, m, x, part, len);
  return fm_fail(&c->err, FM_EINVAL, "all_reduce: a rank alone adds its part itself");
}

fm_status fm_op_all_gather(fm_ctx *c, fm_comm *m, void *out, const void *mine, const int64_t *size) {
  int64_t sum = 0;
  for (int r = 0; r < fm_comm_size(m); r++) {
    TRY(check(c, "all_gather", out, mine, size[r]));
    sum += size[r];
  }
  if (m) return sum ? m->ops->all_gather(c, m, out, mine, size) : FM_OK;
  if (out != mine) c->ops->copy(c->dev, out, mine, sum);
  return FM_OK;
}

fm_status fm_op_all_to_all(fm_ctx *c, fm_comm *m, void *out, const int64_t *out_size, const void *in, const int64_t *in_size) {
  for (int r = 0; r < fm_comm_size(m); r++) {
    TRY(check(c, "all_to_all", out, out, out_size[r]));
    TRY(check(c, "all_to_all", in, in, in_size[r]));
  }
  if (m) return m->ops->all_to_all(c, m, out, out_size, in, in_size);
  c->ops->copy(c->dev, out, in, *in_size);
  return FM_OK;
}

fm_status fm_op_broadcast(fm_ctx *c, fm_comm *m, void *data, int64_t size, int root) {
  TRY(check(c, "broadcast", data, data, size));
  return m && size ? m->ops->broadcast(c, m, data, size, root) : FM_OK;
}

fm_status fm_op_all_columns(fm_ctx *c, fm_comm *m, float *out, const float *mine, int64_t n, const int64_t *width) {
  TRY(check(c, "all_columns", mine, mine, n * width[fm_comm_me(m)]));
  if (!m) return fm_fail(&c->err, FM_EINVAL, "all_columns: a rank alone has them all");
  return n ? m->ops->all_columns(c, m, out, mine, n, width) : FM_OK;
}

fm_status fm_op_all_combine(fm_ctx *c, fm_comm *m, float *out, const void *answers, const int32_t *id, const float *weight, const fm_combine *j) {
  TRY(check(c, "all_combine", out, answers, j->all));
  if (m && m->ops->all_combine) return m->ops->all_combine(c, m, out, answers, id, weight, j);
  return fm_fail(&c->err, FM_EUNSUPPORTED, "all_combine: the %s does not offer it between these ranks", c->ops->name);
}
