# make run: a filesystem at /kos. make test: everything that must hold. make stop: unmount and stop.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One target directory, one profile and no RUSTFLAGS for build, test, clippy and CI: RocksDB is compiled once.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/kosfs/target
export PATH := $(HOME)/.cargo/bin:$(PATH)
PREFIX ?= /usr/local
# mount(8) looks for helpers nowhere else.
SBIN ?= /sbin

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := $(CARGO_TARGET_DIR)/release
# sudo drops the environment, and kos reads its defaults from it.
AS_ROOT := $(SUDO) env $(if $(KOS_MOUNT),KOS_MOUNT="$(KOS_MOUNT)") $(if $(KOS_STATE),KOS_STATE="$(KOS_STATE)")
KOS := $(AS_ROOT) "$(BIN)/kos"

# To build
DEPS += build-essential# the linker, and the C++ compiler for RocksDB
DEPS += clang# bindgen reads RocksDB's headers with it
DEPS += libclang-dev# the library through which bindgen does
DEPS += protobuf-compiler# protoc, for the control protocol
DEPS += pkg-config# finds system libraries for build scripts
# To run
DEPS += fuse3# fusermount3, for mounts and unmounts by users
DEPS += attr# setfattr and getfattr: policies are extended attributes
DEPS += acl# setfacl and getfacl
# To test: programs that use the mount as their users would
TEST_DEPS += sqlite3# databases in both journal modes
TEST_DEPS += rsync# round trips with links, ACLs and xattrs
TEST_DEPS += fio# verified random overwrites
TEST_DEPS += stress-ng# filesystem stressors
TEST_DEPS += vim-tiny# an editor that drops jobs as editors do
TEST_DEPS += git# clone, gc, fsck
# For the long suites only: it is large, and brings a server of its own
SOAK_DEPS += postgresql# initdb, pgbench, recovery and checksums
# For the benchmark only
BENCH_DEPS += bindfs# a filesystem behind FUSE that stores nothing: what is slow for it, too, is the kernel's way to it

STEP := tools/step.sh

.PHONY: help deps test-deps toolchain build install run stop test soak bench clean

help:
	@echo "make run     build, start a node here, mount it at /kos and show what it does"
	@echo "make stop    unmount and stop; the data stays"
	@echo "make test    everything: format, lints, licences, unit and integration tests, suites"
	@echo "make build | install | soak | bench | clean"

deps:
	@tools/deps.sh $(DEPS)

test-deps:
	@tools/deps.sh $(DEPS) $(TEST_DEPS)

toolchain:
	@command -v cargo >/dev/null || { echo "make: cargo is missing: install Rust 1.95 (rustup toolchain install 1.95)" >&2; exit 1; }

build: deps toolchain
	cargo build --release --locked --workspace

install: build
	$(SUDO) install -D -m 0755 -t "$(PREFIX)/bin" "$(BIN)/kos" "$(BIN)/fabricd"
	$(SUDO) install -D -m 0755 "$(BIN)/mount-kosfs" "$(SBIN)/mount.kosfs"

# Installed as well, so that the commands it ends with are on the PATH.
run: install
	@$(KOS) up
	@$(AS_ROOT) KOS="$(BIN)/kos" tools/demo.sh

# Exit 3 says that nothing was running: what stop is for.
stop: toolchain
	@[ -x "$(BIN)/kos" ] || { echo "make: nothing is built, so nothing of it runs"; exit 0; }; \
	$(KOS) down || { code=$$?; [ "$$code" = 3 ] || exit "$$code"; }

test: test-deps toolchain
	@$(STEP) begin
	@$(STEP) format cargo fmt --all --check
	@$(STEP) format-fuzz cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
	@$(STEP) build cargo build --release --locked --workspace
	@$(STEP) faults cargo build --release --locked --workspace --features fabricd/faults --bin fabricd-faults
	@$(STEP) clippy cargo clippy --release --locked --workspace --all-targets -- -D warnings
	@$(STEP) deny tools/deny.sh
	@$(STEP) tests cargo test --release --locked --workspace
	@$(STEP) fuser env KOS_SESSION=fuser cargo test --release --locked --workspace --lib tests::
	@$(STEP) uring env KOS_SESSION=uring cargo test --release --locked --workspace --lib tests::
	@$(STEP) uring-socket env KOS_SESSION=uring cargo test --release --locked --workspace --test socket
	@$(STEP) fuzz tests/fuzz/run.sh 3
	@$(STEP) suites tests/suites/run.sh
	@$(STEP) suites-fuser env KOS_SESSION=fuser tests/suites/run.sh pjdfstest fsx
	@$(STEP) suites-uring env KOS_SESSION=uring tests/suites/run.sh pjdfstest fsx
	@$(STEP) end

# About two hours on four cores (docs/PERFORMANCE.md).
soak: build
	@tools/deps.sh $(TEST_DEPS) $(SOAK_DEPS)
	@$(STEP) begin
	@$(STEP) faults cargo build --release --locked --workspace --features fabricd/faults --bin fabricd-faults
	@$(STEP) fuzz tests/fuzz/run.sh 300
	@$(STEP) cuts env KOS_CUTS=50 cargo test --release --locked --workspace --test power
	@$(STEP) kills env KOS_KILLS=50 cargo test --release --locked --workspace --test crash --test power kills
	@$(STEP) memory env KOS_SCALE=5 cargo test --release --locked --workspace --test footprint
	@$(STEP) changes env KOS_STEPS=20000 cargo test --release --locked --workspace --test socket random
	@$(STEP) million env KOS_ENTRIES=1000000 cargo test --release --locked --workspace --test limits
	@$(STEP) one-mount tests/suites/run.sh --long one-mount & one=$$!; two=0; \
	$(STEP) two-mounts tests/suites/run.sh --long two-mounts || two=$$?; \
	wait $$one && exit $$two
	@$(STEP) end

bench: test-deps build
	@tools/deps.sh $(BENCH_DEPS) || echo "make: the benchmark goes on without"
	@$(STEP) bench $(AS_ROOT) $(foreach name,KOS_BENCH_ONLY KOS_BENCH_SCALE,$(if $($(name)),$(name)="$($(name))")) "$(BIN)/kos-bench"

clean: toolchain
	cargo clean
