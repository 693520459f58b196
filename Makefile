# make                   build the program, build/release/flotilla
# make up                install what is missing, build, start a cluster, mount it at MNT (./mnt);
#                        PORT=n: another first port (7100 and the eight after it)
# make down              unmount and stop it; the data stays in CLUSTER (./cluster)
# make clean-cluster     forget the data too
# make test              install, lint, unit tests, simulator, sanitizers, end-to-end: RUN=name for one
# make sim SEEDS=1000    the simulator over many seeds; SEED=n replays one
# make labs RUN=2B       the rows of the labs' suite: a part or a name; SEEDS=n, SEED=n
# make test-real RUN=2   the same rows on real processes: 2, 3, 4, a part or a name; SEED=n
# make planted           put known bugs in; the simulator must find each
# make soak              simulator and labs until you stop it; failing seeds are kept (builds for two minutes first)
# make soak-store        the two stores against each other: OPS=5000000 operations, SEED=n
# make bench             the key/value store beside etcd, as a table
# make fuzz              each decoder for FUZZ_SECONDS=600 under libFuzzer; TARGET=name: one
# make test-disk         full and damaged disks under real processes (as root)
# make bench-migrate     the longest wait of a client while its shard of 1 GiB moves
# make bench-catchup   a replica that is SIZE=10GiB behind comes back under load
# make bench-restart     a killed cluster's seconds to its first get, and replicas' memory
# make bench-slow        puts while one follower is halted, or its disk is slow
# make bench-stall       how long checkpoints keep a replica from applying, under full load
# make bench-gap         the longest wait of a client when a leader goes
# make lint              layers, format, warnings
# make deps              only install what is missing from Debian's packages (as root)
# make clean             remove build/
# MODE=release|debug|asan|tsan|soak builds any target in another mode, in build/MODE
.DEFAULT_GOAL := all
SHELL := /bin/bash

CLUSTER ?= cluster
MNT     ?= mnt
PORT    ?= 7100
PROGRAM := build/release/flotilla

MODE ?= release
OUT  := build/$(MODE)

WARN := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes \
        -Wmissing-prototypes -Wformat=2 -Wimplicit-fallthrough -Wvla \
        -Wundef -Wpointer-arith -Wwrite-strings -Wcast-align
WERROR ?= -Werror

MODE_debug   := -O0 -g3
MODE_asan    := -O1 -g3 -fsanitize=address,undefined -fno-sanitize-recover=all
MODE_tsan    := -O1 -g3 -fsanitize=thread
MODE_fuzz    := -O1 -g -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
MODE_release := -O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong
# The soak alone: optimized as a whole, with all checks, for this machine and for
# what a training run of it spends its time on.
MODE_soak    := -O3 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong -flto=2 -fomit-frame-pointer -march=native
MODE_soak    += $(if $(TRAIN),-fprofile-generate -fprofile-update=atomic,-fprofile-use -fprofile-partial-training -Wno-missing-profile -Wno-coverage-mismatch)

CPPFLAGS += -I. -D_GNU_SOURCE -DFUSE_USE_VERSION=314 -MMD -MP
CFLAGS   += -std=c11 -fno-omit-frame-pointer $(WARN) $(WERROR) $(MODE_$(MODE))
LDFLAGS  += $(MODE_$(MODE)) -pthread
LDLIBS   += -luv -lssl -lcrypto -lzstd -llmdb -lfuse3 -ljansson

PACKAGES := gcc make libc6-dev libuv1-dev libssl-dev libzstd-dev liblmdb-dev \
            libfuse3-dev fuse3 libjansson-dev uthash-dev libcmocka-dev
TEST_PACKAGES := clang-format-14 git tar python3 fio attr procps
BENCH_PACKAGES := etcd-server etcd-client golang-go golang-etcd-server-dev \
                  openssl python3 nftables iproute2

FUZZ_PACKAGES := clang libclang-rt-14-dev

ifeq ($(MODE),soak)
AR := gcc-ar # keeps what the linker optimizes with
endif

# clang, whose library libFuzzer is. gcc has warned of all this code already;
# these would only warn of uthash, of CHECK(!"words"), and of offsetof casts.
ifeq ($(MODE),fuzz)
CC := clang
WARN += -Wno-implicit-fallthrough -Wno-string-conversion -Wno-cast-align
endif

FOLDERS := base raft raft/storage transport rsm shardctrler shardkv fs mount
LIB_SRC := $(sort $(wildcard $(addsuffix /*.c,$(FOLDERS))))
LIB     := $(OUT)/libflotilla.a
CMD_OBJ := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard cmd/*.c)))
TESTLIB := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard tests/lib/*.c)))
UNIT    := $(patsubst tests/unit/%.c,$(OUT)/unit/%,$(sort $(wildcard tests/unit/test_*.c)))
LABS_OBJ := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard tests/labs/*.c)) \
            $(addprefix tests/sim/,world.c env.c net.c disk.c node.c verify.c) \
            $(wildcard tests/linear/*.c))
REAL_OBJ := $(patsubst %,$(OUT)/tests/%.o,real/labs_real real/control real/process real/home \
            real/group real/kv real/kv_begin real/user lib/faultnet linear/linear linear/follow labs/rows labs/ask labs/entry \
            labs/raft_2a labs/raft_2b labs/raft_2c labs/raft_2d labs/kv_ask labs/kv_generic \
            labs/kv_3a labs/kv_3b labs/shard_4a labs/shard_4b)
NODE_OBJ := $(patsubst %,$(OUT)/tests/%.o,real/node real/control real/list labs/entry lib/faultnet)
SIM_OBJ := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard tests/sim/*.c tests/linear/*.c)))
FUZZ_OBJ := $(patsubst %.c,$(OUT)/%.o,$(sort $(wildcard tests/fuzz/*.c)) cmd/args.c cmd/cluster.c cmd/process.c)

.PHONY: train all deps test-deps test test-real one unit sim labs soak fuzz planted bench bench-gap bench-log bench-slow bench-catchup bench-migrate bench-stall bench-restart soak-store test-disk lint up down clean-cluster clean help
all: $(OUT)/flotilla

help:
	@sed -n 's/^# //p;/^\.DEFAULT/q' Makefile

$(OUT)/flotilla: $(CMD_OBJ) $(LIB)
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(LIB): $(LIB_SRC:%.c=$(OUT)/%.o)
	@rm -f $@
	@$(AR) rcs $@ $^

$(OUT)/unit/%: $(OUT)/tests/unit/%.o $(TESTLIB) $(LIB)
	@mkdir -p $(@D)
	@$(CC) $(LDFLAGS) $(filter-out $(LIB),$^) $(LIB) -o $@ -lcmocka $(LDLIBS)

$(OUT)/unit/test_store $(OUT)/unit/test_store_twins: $(OUT)/tests/unit/store_ops.o
$(OUT)/unit/test_store_twins: $(OUT)/tests/unit/dying_disk.o
$(patsubst %,$(OUT)/unit/%,test_rsm test_rsm_snap test_rsm_space): $(patsubst %,$(OUT)/tests/unit/%.o,rsm_world rsm_cluster)
$(OUT)/unit/test_member: $(OUT)/cmd/arrival.o
$(OUT)/unit/test_cmd: $(filter-out %/main.o,$(CMD_OBJ))
$(OUT)/unit/test_member_step: $(OUT)/cmd/arrival.o $(OUT)/cmd/progress.o
$(OUT)/unit/test_linear: $(patsubst %,$(OUT)/tests/linear/%.o,linear follow)
$(OUT)/unit/test_sim: $(patsubst %,$(OUT)/tests/sim/%.o,world env net disk)
$(OUT)/unit/test_move_rate: $(filter-out %/labs.o,$(LABS_OBJ))

$(OUT)/simulate: $(SIM_OBJ) $(TESTLIB) $(LIB)
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUT)/fuzz: $(FUZZ_OBJ) $(OUT)/tests/lib/faultdisk.o $(LIB)
	$(CC) $(LDFLAGS) -fsanitize=fuzzer $^ -o $@ $(LDLIBS)

$(OUT)/labs: $(LABS_OBJ) $(LIB)
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUT)/labs_real: $(REAL_OBJ) $(LIB) | $(OUT)/labs_node
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUT)/raft_bench: $(OUT)/tests/bench/raft_bench.o $(LIB)
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUT)/limits: $(OUT)/tests/bench/limits.o
	$(CC) $(LDFLAGS) $^ -o $@ -lssl -lcrypto

$(OUT)/labs_node: $(NODE_OBJ) $(LIB)
	$(CC) $(LDFLAGS) $^ -o $@ $(LDLIBS)

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	@$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

unit: $(UNIT)

# One seed with its trace, or many.
sim: $(OUT)/simulate
	$(OUT)/simulate $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),100)) \
	    $(if $(FIRST),--first $(FIRST)) $(if $(SCENARIO),--scenario $(SCENARIO))

labs: $(OUT)/labs
	$(OUT)/labs $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),100)) \
	    $(if $(FIRST),--first $(FIRST)) $(RUN)

# The same rows on processes, TLS and disks: RUN=2, RUN=2B, RUN=R12.
test-real: $(OUT)/labs_real $(OUT)/labs_node
	@$(OUT)/labs_real $(if $(SEED),--seed $(SEED)) $(RUN)

# Fresh seeds until you stop it. A check that fails ends the program, so it is
# started again after that seed.
soak:
	@test -e build/soak/trained && $(MAKE) -sq MODE=soak build/soak/simulate || $(MAKE) -s train
	@$(MAKE) -s -j2 MODE=soak build/soak/simulate build/soak/labs
	@tests/sim/soak.sh build/soak $(FIRST)

# The counts of what ran stay where the objects were, which are made anew. Until
# `trained` is there, what is in the folder may count, or lack the counts.
train:
	@rm -rf build/soak
	@$(MAKE) -s -j2 MODE=soak TRAIN=yes build/soak/simulate
	@build/soak/simulate --seeds 60 --keep-going >/dev/null 2>&1 || true
	@find build/soak -type f ! -name '*.gcda' -delete
	@touch build/soak/trained

# The store on disk and its twin, with a death every few hundred operations.
soak-store:
	@$(MAKE) -s -j2 build/release/unit/test_store_twins
	@OPS=$(or $(OPS),5000000) $(if $(SEED),SEED=$(SEED)) build/release/unit/test_store_twins

# Hostile bytes: what is found new goes to build/fuzz/corpus, a crash to
# build/fuzz/crashes.
fuzz:
	@tests/lib/install.sh $(PACKAGES) $(FUZZ_PACKAGES)
	@$(MAKE) -s -j2 MODE=fuzz build/fuzz/fuzz
	@tests/fuzz/run.sh $(or $(FUZZ_SECONDS),600) $(TARGET)

# Puts known bugs into copies of the tree, and shows that the simulator finds
# them, and how many seeds that takes; and the tests of the store.
planted:
	tests/sim/planted.sh
	tests/unit/planted.sh

# One unit test: make one T=test_wal MODE=asan
one: $(OUT)/unit/$(T)
	$(OUT)/unit/$(T)

deps:
	@tests/lib/install.sh $(PACKAGES)

test-deps:
	@tests/lib/install.sh $(PACKAGES) $(TEST_PACKAGES) $(FUZZ_PACKAGES)

# The parts are built by a make of their own, after their packages are there.
up: deps
	@$(MAKE) -s -j2 all
	@$(PROGRAM) up --cluster $(CLUSTER) --mount $(MNT) --port $(PORT)

down:
	@if [ -x $(PROGRAM) ]; then $(PROGRAM) down --cluster $(CLUSTER); \
	else echo "nothing was built here, so nothing runs"; fi

clean-cluster: down
	@rm -rf $(CLUSTER)
	@rmdir $(MNT) 2>/dev/null || true

# RUN=name runs what has that in its name: RUN=lint, RUN=test_raft, RUN=sim, RUN=e2e
test: test-deps
	@RUN='$(RUN)' tests/run.sh

# Mounts small disks of its own, so it needs root.
test-disk: deps
	@$(MAKE) -s -j2 all
	@tests/e2e/disk.sh

# ROUNDS, SECONDS_EACH, CLIENTS, SIZES and more: see the script.
bench: deps
	@tests/lib/install.sh $(BENCH_PACKAGES)
	@$(MAKE) -s -j2 all
	@tests/bench/kv.sh

# How long clients wait when their leader is stopped, killed, halted.
bench-gap: deps
	@tests/lib/install.sh $(BENCH_PACKAGES)
	@$(MAKE) -s -j2 all
	@tests/bench/gap.sh

# One replica that is slow must not make its group slow.
bench-slow: deps
	@$(MAKE) -s -j2 all
	@tests/bench/slow.sh

# One replica that is far behind comes back.
bench-catchup: deps
	@$(MAKE) -s -j2 all
	@SIZE=$(or $(SIZE),10GiB) tests/bench/catchup.sh

bench-stall: deps
	@$(MAKE) -s -j2 all
	@tests/bench/stall.sh

# Killed and started again, with little and with much stored.
bench-restart: deps
	@tests/lib/install.sh $(BENCH_PACKAGES)
	@$(MAKE) -s -j2 all
	@tests/bench/restart.sh

# The replicated log alone, beside the limits of disk and net.
bench-log: deps
	@$(MAKE) -s -j2 build/release/raft_bench build/release/limits
	@tests/bench/log.sh

bench-migrate: deps
	@$(MAKE) -s -j2 all
	@tests/bench/migrate.sh

lint:
	tests/lint/layers.sh
	@command -v clang-format-14 >/dev/null || { echo "make lint: no clang-format-14: run make test-deps as root"; exit 1; }
	clang-format-14 --dry-run -Werror $$(git ls-files '*.c' '*.h')
	docs/messages.sh | diff -u docs/messages.md - # else: docs/messages.sh > docs/messages.md

clean:
	rm -rf build

.SECONDARY:
-include $(shell find build -name '*.d' 2>/dev/null)
