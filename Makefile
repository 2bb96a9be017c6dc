# fathom: an embeddable engine for the DeepSeek family, used from Lua 5.4.

CC      ?= gcc
CLANG   ?= clang
LUA     ?= lua5.4
PREFIX  ?= /usr/local
BUILD   ?= build
OPT     ?= -O2 -g
SAN     ?=
NVCC    ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA    ?= $(if $(NVCC),1,0)
CUDA_ARCH ?= 80 90a
# each half of the network library where its own library is; NET=0 leaves it out, NET=1 wants both
NET     ?= auto
NET_FOUND = $(shell for p in libcurl libmicrohttpd; do pkg-config --exists $$p 2>/dev/null && echo $$p; done)
NET_LIBS := $(if $(filter 0,$(NET)),,$(if $(filter 1,$(NET)),libcurl libmicrohttpd,$(NET_FOUND)))
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600

WARN    = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
# no contraction by the compiler: every fused multiply-add is written where it is meant
CFLAGS  = -std=gnu11 $(OPT) $(SAN) -fPIC -fvisibility=hidden -ffp-contract=off -pthread $(WARN) -Icsrc $(LUA_INC)
LUA_INC ?= $(shell pkg-config --cflags lua5.4 2>/dev/null || echo -I/usr/include/lua5.4)
LUA_LIB ?= $(shell pkg-config --libs lua5.4 2>/dev/null || echo -llua5.4)
LIBS    = -lcjson -lpcre2-8 -lutf8proc -lm -ldl -pthread

CORE    = $(patsubst csrc/%.c,$(BUILD)/obj/%.o,$(wildcard csrc/base/*.c csrc/op/*.c csrc/cpu/*.c csrc/io/*.c csrc/model/*.c csrc/run/*.c))
BIND    = $(patsubst csrc/%.c,$(BUILD)/obj/%.o,$(wildcard csrc/bind/*.c))
NET_CLIENT = csrc/net/client.c csrc/net/address.c csrc/net/lua_client.c
NET_SOURCES = csrc/net/net.c $(if $(filter libcurl,$(NET_LIBS)),$(NET_CLIENT)) \
          $(if $(filter libmicrohttpd,$(NET_LIBS)),$(filter-out csrc/net/net.c $(NET_CLIENT),$(wildcard csrc/net/*.c)))
NETOBJ  = $(patsubst csrc/%.c,$(BUILD)/obj/%.o,$(NET_SOURCES))
NETLIB  = $(if $(NET_LIBS),$(BUILD)/fathom/net.so)
CTESTS  = $(filter-out $(if $(filter libcurl,$(NET_LIBS)),,%/client_test),$(patsubst spec/c/%.c,$(BUILD)/test/%,$(wildcard spec/c/*_test.c)))
FUZZERS = $(patsubst spec/fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard spec/fuzz/*_fuzz.c))
TOKENIZERS = $(patsubst spec/data/tokenizers/%/tokenizer.json.xz,$(BUILD)/data/tokenizers/%/tokenizer.json,$(wildcard spec/data/tokenizers/*/tokenizer.json.xz))
KERNELS = $(patsubst kernels/%.cu,$(BUILD)/obj/kernels/%.o,$(wildcard kernels/*.cu kernels/sm90/*.cu))
export LUA_PATH  = lua/?.lua;lua/?/init.lua;;
export LUA_CPATH = $(BUILD)/?.so;;
export FATHOM_BUILD = $(BUILD)

.PHONY: all modules net-note demo host test lint asan tsan memcheck fuzz bench bench-gpu soak format install rock clean help deps deps-net
all: modules $(BUILD)/libfathom.a $(BUILD)/libfathom.so $(if $(filter 1,$(CUDA)),$(BUILD)/fathom_cuda.so)   ## build the module and the libraries (default)
modules: $(BUILD)/fathom.so $(NETLIB) net-note
net-note:
	@for p in $(if $(filter auto,$(NET)),$(filter-out $(NET_LIBS),libcurl libmicrohttpd)); do \
	  echo "no headers of $$p here: fathom.$$(test $$p = libcurl && echo remote || echo serve) is left out (make deps-net installs them)"; done

$(BUILD)/obj/%.o: csrc/%.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<
-include $(CORE:.o=.d) $(BIND:.o=.d) $(NETOBJ:.o=.d)
ifneq ($(findstring fuzzer,$(SAN)),)
# clang's sanitizers take minutes over these
$(BUILD)/obj/cpu/simd_avx%.o: override SAN :=
endif

$(BUILD)/fathom.so: $(CORE) $(BIND)
	$(CC) $(SAN) -shared -Wl,--exclude-libs,ALL -Wl,--version-script=csrc/bind/fathom.map -o $@ $^ $(LIBS)
# opened on first use, with a copy of base of its own; it stays when a Lua state goes: a thread of libcurl's may still look up a name
$(BUILD)/fathom/net.so: $(NETOBJ) $(BUILD)/obj/base/status.o $(BUILD)/obj/base/mem.o
	@mkdir -p $(@D)
	$(CC) $(SAN) -shared -Wl,-z,nodelete -Wl,--version-script=csrc/net/net.map -o $@ $^ $$(pkg-config --libs $(NET_LIBS)) -pthread
$(BUILD)/obj/kernels/%.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) -std=c++20 -O3 -lineinfo $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) -Icsrc -Ikernels \
	  -Xcompiler -fPIC,-fvisibility=hidden -MMD -MP -c -o $@ $<
-include $(KERNELS:.o=.d)
# no JIT and no CUDA library to find: the runtime is linked in, cuBLASLt is opened when wanted
CUDA_BASE = $(addprefix $(BUILD)/obj/base/,status.o hub.o mem.o wire.o)
$(BUILD)/fathom_cuda.so: $(KERNELS) $(CUDA_BASE)
	$(NVCC) -shared -cudart static -Xlinker --exclude-libs,ALL -Xlinker --version-script=kernels/cuda.map -o $@ $^ -ldl
$(BUILD)/libfathom.so: $(CORE)
	$(CC) $(SAN) -shared -o $@ $^ $(LIBS)
$(BUILD)/libfathom.a: $(CORE)
	@rm -f $@
	ar rcs $@ $^
$(addprefix $(BUILD)/test/,attention_test row_test experts_test refusal_test): spec/c/op_test.h
$(BUILD)/test/%: spec/c/%.c $(BUILD)/libfathom.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $< $(BUILD)/libfathom.a $(LIBS)
$(BUILD)/test/lua_test: spec/c/lua_test.c $(BUILD)/libfathom.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $< $(LUA_LIB)
$(BUILD)/test/client_test: spec/c/client_test.c $(BUILD)/obj/net/client.o $(BUILD)/obj/net/address.o $(BUILD)/obj/base/status.o $(BUILD)/obj/base/mem.o
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $^ $$(pkg-config --libs libcurl) -pthread
$(BUILD)/test/comm_test: spec/c/world.h
$(BUILD)/test/cuda_test: spec/c/cuda_test.c $(BUILD)/libfathom.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -o $@ $< $(BUILD)/libfathom.a $(LIBS)
	@ln -sf ../fathom_cuda.so $(@D)/fathom_cuda.so
# a device for specs, found beside the module and beside the C tests
$(BUILD)/fathom_apart.so: spec/device/apart.c $(BUILD)/libfathom.a
	$(CC) $(CFLAGS) -shared -Wl,--exclude-libs,ALL -o $@ $< $(BUILD)/libfathom.a $(LIBS)
	@mkdir -p $(BUILD)/test && ln -sf ../fathom_apart.so $(BUILD)/test/fathom_apart.so
$(BUILD)/generate $(BUILD)/frames: $(BUILD)/%: examples/host/%.c $(BUILD)/libfathom.a
	$(CC) $(CFLAGS) -o $@ $< $(BUILD)/libfathom.a $(LIBS)
$(BUILD)/roofline $(BUILD)/gpu: $(BUILD)/%: examples/bench/%.c examples/bench/v2lite.h $(BUILD)/libfathom.a
	$(CC) $(CFLAGS) -o $@ $< $(BUILD)/libfathom.a $(LIBS)
$(BUILD)/comm: examples/bench/comm.c spec/c/world.h $(BUILD)/libfathom.a
	$(CC) $(CFLAGS) -o $@ $< $(BUILD)/libfathom.a $(LIBS)
$(BUILD)/grouped: examples/bench/grouped.cu $(KERNELS) $(CUDA_BASE)
	$(NVCC) -std=c++20 -O2 $(foreach a,$(CUDA_ARCH),-gencode arch=compute_$(a),code=sm_$(a)) -Icsrc -Ikernels -cudart static -o $@ $^ -ldl
$(BUILD)/data/tokenizers/%/tokenizer.json: spec/data/tokenizers/%/tokenizer.json.xz
	@mkdir -p $(@D)
	xz -dc $< > $@.part && mv $@.part $@
	cp spec/data/tokenizers/$*/tokenizer_config.json $(@D)/
# the core once, by the compiler that brings the fuzzer along
$(BUILD)/fuzz/libfathom.a: $(wildcard csrc/*/*.[ch])
	@$(MAKE) --no-print-directory -s BUILD=$(BUILD)/fuzz CC=$(CLANG) CUDA=0 NET=0 OPT="-O1 -g" SAN=-fsanitize=fuzzer-no-link,address,undefined $@
$(BUILD)/fuzz/%_fuzz: spec/fuzz/%_fuzz.c $(wildcard spec/fuzz/*.h) $(BUILD)/fuzz/libfathom.a
	$(CLANG) -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -Icsrc -o $@ $< $(BUILD)/fuzz/libfathom.a $(LIBS)
$(BUILD)/fuzz/head_fuzz: spec/fuzz/head_fuzz.c csrc/net/head.c csrc/net/head.h
	@mkdir -p $(@D)
	$(CLANG) -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -Icsrc -o $@ $< csrc/net/head.c

deps:                      ## install what is missing for building (apt)
	@sh .ci/deps.sh build
deps-net:                  ## install what remote and serve need besides (apt)
	@sh .ci/deps.sh build net
demo: deps                 ## build, then show the main job on the model that comes along
	@$(MAKE) --no-print-directory -s all
	$(LUA) examples/01_generate.lua
test:                      ## build and run every spec and C test
	@sh .ci/deps.sh build net test
	@$(MAKE) --no-print-directory -s run-tests
run-tests: all $(CTESTS) $(TOKENIZERS) $(BUILD)/generate $(BUILD)/frames $(BUILD)/fathom_apart.so
	$(LUA) spec/run.lua $(CTESTS)
lint:                      ## warnings of two compilers as errors, luacheck
	@sh .ci/deps.sh build net lint
	@for c in $(CC) $(CLANG); do command -v $$c >/dev/null || { echo "lint: no $$c, skipped"; continue; }; \
	  for f in csrc/*/*.c spec/c/*.c examples/*/*.c; do $$c $(CFLAGS) -Werror -fsyntax-only $$f || exit 1; done; done
	luacheck -q lua $(wildcard lua/bin/fathom) examples spec
asan:                      ## everything under AddressSanitizer and UBSan
	@$(MAKE) --no-print-directory -s run-tests CUDA=0 BUILD=$(BUILD)/asan OPT="-O1 -g" \
	  SAN="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" FATHOM_ASAN=1
tsan:                      ## the C tests under ThreadSanitizer
	@$(MAKE) --no-print-directory -s CUDA=0 BUILD=$(BUILD)/tsan OPT="-O1 -g" SAN="-fsanitize=thread" run-c-tests
run-c-tests: $(CTESTS) $(TOKENIZERS)
	@for t in $(CTESTS); do echo "== $$t"; $$t || exit 1; done
memcheck: $(CTESTS)        ## the C tests under valgrind
	@for t in $(CTESTS); do valgrind -q --error-exitcode=9 --leak-check=full $$t || exit 1; done
fuzz: $(FUZZERS:$(BUILD)/fuzz/%=run-%)   ## each parser for FUZZ_SECONDS (clang)
.SECONDARY: $(FUZZERS)
run-%_fuzz: $(BUILD)/fuzz/%_fuzz
	@mkdir -p $(BUILD)/fuzz/corpus/$*_fuzz; echo "== $*_fuzz, $(FUZZ_SECONDS) s"; \
	$< -max_total_time=$(FUZZ_SECONDS) -max_len=65536 -verbosity=0 $(BUILD)/fuzz/corpus/$*_fuzz \
	  $$(ls -d spec/fuzz/corpus/$*_fuzz 2>/dev/null) >$(BUILD)/fuzz/$*.log 2>&1 || { tail -40 $(BUILD)/fuzz/$*.log; exit 1; }
host: $(BUILD)/generate $(BUILD)/frames   ## the C hosts; shows a game's frames with three characters speaking
	$(BUILD)/frames
bench: all $(BUILD)/roofline $(TOKENIZERS)   ## speed beside what this machine can do
	@sh .ci/deps.sh build
	$(BUILD)/roofline bf16
	$(BUILD)/roofline f8
	$(LUA) lua/bin/fathom bench
	$(LUA) examples/bench/pocket_tasks.lua
	$(LUA) examples/bench/agent.lua
	$(LUA) examples/bench/grammar.lua
	$(LUA) examples/bench/engine.lua
bench-gpu: all $(BUILD)/gpu $(BUILD)/grouped   ## one GPU: kernels beside its own ceilings, the whole model, transformers
	$(BUILD)/gpu bf16
	$(BUILD)/gpu f8
	$(BUILD)/grouped
	$(LUA) examples/bench/engine.lua --device cuda
	@python3 -c 'import torch, transformers' 2>/dev/null && python3 examples/bench/peer.py || echo "no transformers here: the peer is left out"
soak: all                  ## random sessions for SOAK_SECONDS: every answer again alone, memory flat, no page lost
	@SOAK_SECONDS=$(SOAK_SECONDS) $(LUA) spec/soak.lua
format:                    ## clang-format over the C files
	clang-format -i csrc/*/*.[ch] csrc/*.h spec/c/*.c
install: all               ## to PREFIX: module, Lua files, command, libraries, header, pocket
	install -d $(PREFIX)/lib/lua/5.4/fathom $(PREFIX)/share/lua/5.4/fathom $(PREFIX)/bin $(PREFIX)/include
	install -m 755 $(BUILD)/fathom.so $(wildcard $(BUILD)/fathom_cuda.so) $(PREFIX)/lib/lua/5.4/
	$(if $(NETLIB),install -m 755 $(NETLIB) $(PREFIX)/lib/lua/5.4/fathom/)
	$(if $(wildcard $(BUILD)/fathom_cuda.so),ln -sf lua/5.4/fathom_cuda.so $(PREFIX)/lib/fathom_cuda.so)
	install -m 644 $(BUILD)/libfathom.a $(BUILD)/libfathom.so $(PREFIX)/lib/
	install -m 644 csrc/fathom.h $(PREFIX)/include/
	cp -r lua/fathom/. $(PREFIX)/share/lua/5.4/fathom/
	install -d $(PREFIX)/share/lua/5.4/fathom/pocket
	install -m 644 examples/pocket/*.json examples/pocket/*.safetensors examples/pocket/MODEL.md $(PREFIX)/share/lua/5.4/fathom/pocket/
	install -m 755 lua/bin/fathom $(PREFIX)/bin/
rock:                      # what LuaRocks calls after building
	install -d $(ROCK_LIB)/fathom $(ROCK_LUA)/fathom/pocket $(ROCK_BIN)
	install -m 755 $(BUILD)/fathom.so $(wildcard $(BUILD)/fathom_cuda.so) $(ROCK_LIB)/
	$(if $(NETLIB),install -m 755 $(NETLIB) $(ROCK_LIB)/fathom/)
	cp -r lua/fathom/. $(ROCK_LUA)/fathom/
	install -m 644 examples/pocket/*.json examples/pocket/*.safetensors examples/pocket/MODEL.md $(ROCK_LUA)/fathom/pocket/
	install -m 755 lua/bin/fathom $(ROCK_BIN)/
clean:                     ## remove the build
	rm -rf $(BUILD)
help:                      ## this list
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12
