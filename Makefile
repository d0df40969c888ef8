# The commands of this repository. `make demo` and `make test` are the whole set-up.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-codex lint format-check clippy format audit ci

# Debian keeps the servers that the tests start where only root looks.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO_TARGET_DIR ?= target
WARMKEY := $(CARGO_TARGET_DIR)/debug/warmkey

# The Codex CLI that the client tests drive: one version, so that a red test means a change of ours.
CODEX_VERSION := 0.169
CODEX := target/codex-$(CODEX_VERSION)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: ## build, then show the promise: sessions through several ways of routing, and what each got from the cache
	cargo run --locked -- demo

test: ## everything but the real clients; installs redis-server, haproxy and openssl where they are missing (Debian, as root)
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy openssl:openssl
	cargo test --locked --no-fail-fast

# The binary is the one that `cargo test` builds: with `cargo build` half of the tree would be compiled again.
test-long: ## what `make test` plays of ailing keys, with ten times as many sessions; minutes
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy openssl:openssl
	WARMKEY_LONG=1 cargo test --locked --test it -- --nocapture marathon

test-codex: $(CODEX)/package-lock.json ## the real Codex CLI through two replicas; installs nodejs and npm like `make test`
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy python3:python3
	cargo test --locked --no-run
	python3 -B tests/clients/codex.py --codex $(CODEX) --warmkey $(WARMKEY)

$(CODEX)/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(CODEX) --no-fund --no-audit --loglevel=error @openai/codex@$(CODEX_VERSION)

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
