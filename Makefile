# The usual ways in. `make quickstart` goes from a fresh machine to a command in a VM; `make test` runs everything
# that such a machine can run.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

PREFIX  ?= /usr/local
DESTDIR ?=
CARGO   ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# What 'banger version' names; nothing where this is no repository of the user who builds.
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
ifneq ($(COMMIT),)
export BANGER_COMMIT := $(COMMIT)
endif
PROGRAMS := banger bangerd banger-agent
SCRIPTS := $(wildcard scripts/*.sh) .ci/run

.PHONY: build quickstart host-packages test lint bench install uninstall help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

build: ## Build release binaries into target/release: banger, bangerd, banger-agent (static)
	@scripts/need-cargo.sh
	$(CARGO) build --release --locked -p banger-cli -p banger-daemon
	scripts/build-agent.sh $(TARGET_DIR)/release/banger-agent

quickstart: ## Fresh machine to a command in a VM: packages, build, kernel, image, uname -a
	@scripts/quickstart.sh

host-packages: ## Install what banger needs from the distribution, where it is missing
	@scripts/host-packages.sh run build

test: ## Run every test that this machine can run
	@scripts/host-packages.sh run build test
	@scripts/test.sh

lint: ## Formatting, clippy, shellcheck, licences and sources of dependencies
	@scripts/host-packages.sh build lint
	@scripts/need-cargo.sh
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	shellcheck $(SCRIPTS)
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo "lint: cargo-deny: *not run*, it is not installed (cargo install --locked cargo-deny)"; fi

bench: build ## Measure against bare QEMU on this machine
	@scripts/host-packages.sh run test
	$(CARGO) build --release --locked -p e2e --bin bench
	BANGER_TEST_BIN=$(abspath $(TARGET_DIR)/release) BANGER_AGENT=$(abspath $(TARGET_DIR)/release/banger-agent) \
		$(TARGET_DIR)/release/bench

# With sudo nothing is built: that would leave files of root in the tree of the user who did build it.
install: $(if $(filter-out root,$(SUDO_USER)),,build) ## Install below PREFIX (/usr/local), honours DESTDIR
	@for program in $(PROGRAMS); do [ -x $(TARGET_DIR)/release/$$program ] || \
		{ echo "install: $$program is not built: run 'make' first, without sudo" >&2; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/banger
	install -m 755 $(addprefix $(TARGET_DIR)/release/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/lib/banger/
	ln -sfn ../lib/banger/banger $(DESTDIR)$(PREFIX)/bin/banger

uninstall: ## Stop the daemon, remove what install put there, keep your VMs and say where they are
	@scripts/uninstall.sh "$(DESTDIR)$(PREFIX)"
