/*
** json.h - cJSON behind typed getters that name the missing key. Depth and size are bounded.
*/
#ifndef FM_BASE_JSON_H
#define FM_BASE_JSON_H

#include "base/status.h"

typedef struct cJSON fm_json;

/* Makes cJSON allocate through base/mem.h; for those who build JSON with cJSON themselves. */
void      fm_json_init(void);
/* Whole text; trailing garbage, NUL bytes inside, nesting deeper than 64 are FM_EFORMAT. `what` names the text. */
fm_status fm_json_parse(fm_json **out, const char *text, size_t len, const char *what, fm_error *err);
fm_status fm_json_load(fm_json **out, const char *path, int64_t max_size, fm_error *err);
void      fm_json_free(fm_json *j);

/* Optional getters: absent or null leaves *out as it is; a wrong type is FM_EFORMAT naming the key. */
fm_status fm_json_int (const fm_json *obj, const char *key, int64_t *out, fm_error *err);
fm_status fm_json_num (const fm_json *obj, const char *key, double *out, fm_error *err);
fm_status fm_json_bool(const fm_json *obj, const char *key, bool *out, fm_error *err);
fm_status fm_json_str (const fm_json *obj, const char *key, const char **out, fm_error *err);
const fm_json *fm_json_get(const fm_json *obj, const char *key);   /* NULL when absent or null */

#endif
