/*
** load.c - finds fathom_<name>.so beside the module that this code is in, opens it and checks its ABI number.
** The library stays open: its table is in use as long as any model is.
*/
#define _GNU_SOURCE                      /* dladdr */
#include "op/load.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef const fm_backend *(*open_fn)(void);

/* "cuda:1" -> "cuda", 1. */
static fm_status split(const char *device, char name[32], int *index, fm_error *err) {
  size_t len = strcspn(device, ":");
  char *end = NULL;
  long n = device[len] ? strtol(device + len + 1, &end, 10) : 0;
  bool plain = len > 0 && len < 32 && strspn(device, "abcdefghijklmnopqrstuvwxyz") == len;
  if (!plain || (device[len] && (end == device + len + 1 || *end || n < 0 || n > 1023)))
    return fm_fail(err, FM_EDEVICE, "\"%s\" is no device: \"cpu\", \"cuda\" or \"cuda:0\" are", device);
  memcpy(name, device, len);
  name[len] = 0;
  *index = (int)n;
  return FM_OK;
}

fm_status fm_backend_find(const fm_backend **out, int *index, const char *device, fm_error *err) {
  char name[32], path[4096], symbol[64];
  Dl_info here;
  TRY(split(device, name, index, err));
  if (!dladdr((void *)(uintptr_t)fm_backend_find, &here) || !here.dli_fname)
    return fm_fail(err, FM_EDEVICE, "%s: this module cannot tell where it lies", device);
  const char *slash = strrchr(here.dli_fname, '/');
  int dir = slash ? (int)(slash - here.dli_fname) : 1;
  snprintf(path, sizeof path, "%.*s/fathom_%s.so", dir, slash ? here.dli_fname : ".", name);
  if (access(path, F_OK) != 0) {
    fm_fail(err, FM_EDEVICE, "%s: no fathom_%s.so beside %s", name, name, here.dli_fname);
    if (strcmp(name, "cuda") != 0) return fm_hint(err, FM_EDEVICE, "\"auto\", \"cpu\", \"cuda\" and \"cuda:0\" are devices");
    return fm_hint(err, FM_EDEVICE, "`make` builds it where nvcc is; without it use device = \"cpu\"");
  }
  void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!lib) {
    const char *why = dlerror();
    return fm_fail(err, FM_EDEVICE, "%s: %s", name, why ? why : "its library cannot be opened");
  }
  snprintf(symbol, sizeof symbol, "fm_backend_open_%s", name);
  open_fn open = (open_fn)(uintptr_t)dlsym(lib, symbol);
  const fm_backend *b = open ? open() : NULL;
  if (b && b->abi == FM_BACKEND_ABI) {
    *out = b;
    return FM_OK;
  }
  fm_fail(err, FM_EDEVICE, "%s: %s speaks another version (%u, here %u)", device, path, b ? b->abi : 0,
          (unsigned)FM_BACKEND_ABI);
  dlclose(lib);
  return fm_hint(err, FM_EDEVICE, "build both libraries from the same source");
}

void fm_module_stay(void) {
  Dl_info here;
  if (dladdr((void *)(uintptr_t)fm_module_stay, &here) && here.dli_fname) dlopen(here.dli_fname, RTLD_NOW | RTLD_NODELETE | RTLD_NOLOAD);
}
