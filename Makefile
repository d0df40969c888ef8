# The commands of this repository. `make demo` and `make test` are the whole set-up.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-codex test-sdk test-busy mutants lint format-check clippy format audit ci

# Debian keeps the servers that the tests start where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO_TARGET_DIR ?= target
WARMKEY := $(CARGO_TARGET_DIR)/debug/warmkey

# The clients that the client tests drive: one version of each, so that a red test means a change of ours. That of the npm
# package openai is the last one for the node of Debian 12: what follows asks for 22.
CODEX_VERSION := 0.169
CODEX := target/codex-$(CODEX_VERSION)
OPENAI_PYTHON_VERSION := 3.57.0
OPENAI_PYTHON := target/openai-python-$(OPENAI_PYTHON_VERSION)
WEBSOCKETS_VERSION := 15.0.1
OPENAI_NODE_VERSION := 6.49.0
OPENAI_NODE := target/openai-node-$(OPENAI_NODE_VERSION)
WS_VERSION := 8.23.0

CARGO_MUTANTS_VERSION := 27.1.0
CARGO_MUTANTS := target/tools/bin/cargo-mutants
# What `make mutants` compares with, and what it passes on: MUTANTS_BASE=HEAD~3, MUTANTS="--file 'src/binding/**' --shard 0/16".
MUTANTS_BASE ?= HEAD
MUTANTS ?= --in-diff target/mutants.diff

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: ## build, then show the promise: sessions through several ways of routing, and what each got from the cache
	cargo run --locked -- demo

test: ## everything but the real clients; installs redis-server, haproxy, postgresql and openssl where they are missing (Debian, as root)
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl
	cargo test --locked --no-fail-fast

# The binary is the one that `cargo test` builds: with `cargo build` half of the tree would be compiled again.
test-long: ## what `make test` plays of ailing keys, with ten times as many sessions, and a million rows of the ledger; minutes
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl
	WARMKEY_LONG=1 cargo test --locked --test it -- --nocapture marathon usage_of_many_rows

test-busy: ## `make test` three times beside an endless loop on each core and 50,000 connections in TIME-WAIT; as root
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl python3:python3
	cargo test --locked --no-run
	for run in 1 2 3; do python3 -B tests/busy.py $(MAKE) test || exit; done

test-codex: $(CODEX)/package-lock.json ## the real Codex CLI through two replicas; installs nodejs and npm like `make test`
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy python3:python3
	cargo test --locked --no-run
	python3 -B tests/clients/codex.py --codex $(CODEX) --warmkey $(WARMKEY)

$(CODEX)/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(CODEX) --no-fund --no-audit --loglevel=error @openai/codex@$(CODEX_VERSION)

test-sdk: $(OPENAI_PYTHON)/complete $(OPENAI_NODE)/package-lock.json ## OpenAI's own SDKs, for Python and for node, through two replicas; installs what they need like `make test`
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy
	cargo test --locked --no-run
	python3 -B tests/clients/sdk.py --python $(OPENAI_PYTHON) --node $(OPENAI_NODE) --warmkey $(WARMKEY)

$(OPENAI_PYTHON)/complete:
	@sh tests/need.sh python3:python3 pip3:python3-pip
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-warn-conflicts \
		--target $(OPENAI_PYTHON) openai==$(OPENAI_PYTHON_VERSION) websockets==$(WEBSOCKETS_VERSION)
	touch $@

$(OPENAI_NODE)/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(OPENAI_NODE) --no-fund --no-audit --loglevel=error openai@$(OPENAI_NODE_VERSION) ws@$(WS_VERSION)

mutants: $(CARGO_MUTANTS) ## plant faults in what differs from MUTANTS_BASE (HEAD), and name those that no unit test notices
	git diff $(MUTANTS_BASE) -- src > target/mutants.diff
	cargo test --locked --lib --no-run
	$(CARGO_MUTANTS) mutants --output target $(MUTANTS)

$(CARGO_MUTANTS):
	cargo install cargo-mutants --locked --version $(CARGO_MUTANTS_VERSION) --root target/tools

lint: format-check clippy ## formatting and clippy, warnings denied

format-check:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets -- -D warnings

format: ## rewrite the sources as `make lint` wants them
	cargo fmt

audit: ## licences, bans and sources of the dependencies; needs `cargo install cargo-deny --locked`
	cargo fetch --locked
	cargo deny --offline --locked check bans licenses sources

ci: ## what continuous integration runs
	bash .ci/run
