/*
** load.h - a device that is not compiled in: fathom_<name>.so beside this module.
*/
#ifndef FM_OP_LOAD_H
#define FM_OP_LOAD_H

#include "op/backend.h"

/* device: "cuda" or "cuda:1". FM_EDEVICE says why there is none. */
fm_status fm_backend_find(const fm_backend **out, int *index, const char *device, fm_error *err);

/* The module that this code is in is never unloaded from now on: a thread that nobody can wait for may come back to it. */
void      fm_module_stay(void);

#endif
