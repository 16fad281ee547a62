# Everything that a person or a machine runs here. `make` alone explains itself.
#   PYTHON=python3.12   the interpreter to build the environment with      VENV=DIR   where (default .venv)
#   ARGS='...'          passed on to the command: make up ARGS='--port 4001', make test ARGS='-k knn -x'
#   PROCESSES=2         how many processes share the tests of `make test`; 0: this one runs them all (for ARGS=--pdb)
.SUFFIXES:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV = .venv
ARGS =
PROCESSES = 2
BIN = $(VENV)/bin
STAMPS = $(VENV)/.stamps
# `uv` must not answer a missing interpreter with a download that nobody asked for.
SETUP = UV_PYTHON_DOWNLOADS=never PYTHON='$(PYTHON)' sh requirements/setup.sh $(VENV)
OTHER_PYTHONS = 3.12 3.13

.PHONY: help
help: ## this list
	@printf 'Pointsman. Targets:\n\n'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do printf '  %-18s %s\n' "$$name" "$$what"; done
	@printf '\nVariables: PYTHON=interpreter, VENV=directory, ARGS=arguments for the command, SHARD=slow shard, PROCESSES=for the tests.\n'

# ---- set-up: a stamp for each step, so that a second run does nothing ----

$(STAMPS)/python: requirements/bootstrap.txt
	@$(SETUP) python
	@touch $@

$(STAMPS)/gateway: requirements/gateway.txt $(STAMPS)/python
	@$(SETUP) lock gateway
	@touch $@

# The developers' lock repeats every pin of the gateway's, so it brings both; after a gateway set-up it only adds.
$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/python
	@$(SETUP) lock dev
	@touch $@ $(STAMPS)/gateway

$(STAMPS)/lint: requirements/lint.txt $(STAMPS)/python
	@$(SETUP) lint
	@touch $@

$(STAMPS)/package: pyproject.toml $(STAMPS)/python
	@$(SETUP) package
	@touch $@

# The step looks for itself whether there is work; these are the files whose change makes it look.
ENGINE = migrations/pointsman/migrations
$(STAMPS)/database: $(STAMPS)/gateway $(STAMPS)/package $(wildcard $(ENGINE)/install/*.py $(ENGINE)/engine/*/package-lock.json)
	@$(SETUP) database
	@touch $@

.PHONY: setup setup-gateway
setup: $(STAMPS)/dev $(STAMPS)/lint setup-gateway ## make .venv with everything for working on Pointsman

setup-gateway: $(STAMPS)/gateway $(STAMPS)/package $(STAMPS)/database ## make .venv with what the gateway needs, no more

# ---- run ----

.PHONY: up
up: setup-gateway ## set up what is missing and run a gateway on 127.0.0.1:4000, with its own Postgres; Ctrl-C stops it
	@exec $(BIN)/pointsman up $(ARGS)

# ---- test ----

.PHONY: test test-slow test-all-pythons
test: setup ## set up what is missing and run the tests, all but the slow shards
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist=loadfile --no-loadscope-reorder --max-worker-restart=2 $(ARGS)

test-slow: setup ## run one slow shard: make test-slow SHARD=name; without SHARD, list them
	@if [ -z '$(SHARD)' ]; then \
	  printf 'Which shard? make test-slow SHARD=name, one of:\n' >&2; PYTHONPATH=tests $(BIN)/python -m support.shards >&2; exit 2; fi
	@$(BIN)/python -m pytest --shard='$(SHARD)' $(ARGS)

# pyenv's shims answer only for the versions that PYENV_VERSION names.
test-all-pythons: setup ## run the tests on the other Pythons that are installed, each in an environment of its own
	@$(MAKE) test
	@versions=$$(ls "$${PYENV_ROOT:-$$HOME/.pyenv}/versions" 2>/dev/null | paste -sd: -); \
	for version in $(OTHER_PYTHONS); do \
	  if found=$$(PYENV_VERSION=$$versions UV_PYTHON_DOWNLOADS=never $(BIN)/uv python find --no-project --system $$version 2>/dev/null); then \
	    printf '\n== Python %s: %s ==\n' "$$version" "$$found"; \
	    $(MAKE) test VENV=build/python-$$version PYTHON="$$found" || exit 1; \
	  else printf '\n== Python %s: NOT RUN, no such interpreter on this machine ==\n' "$$version"; fi; \
	done

# ---- check ----

CHECKS = check-lint check-format check-types check-imports check-node check-docs check-yaml check-shell check-workflows check-locks
.PHONY: check $(CHECKS)
check: setup ## every linter, all of them even when one fails; each also runs alone
	@$(MAKE) -k $(CHECKS) || { printf '\nmake check: see the targets named above.\n' >&2; exit 1; }

check-lint: setup
	@echo '== ruff check'; $(BIN)/ruff check

check-format: setup
	@echo '== ruff format'; $(BIN)/ruff format --check

check-types: setup
	@echo '== mypy'; $(BIN)/mypy

check-imports: setup
	@echo '== import-linter'; $(BIN)/python -m pytest -q tests/project/test_imports.py

# Node's own --check takes one file at a time; the linter of the engine's JavaScript knows more, but only its own folders.
check-node: setup
	@echo '== node: syntax, lint'; \
	node=$$($(BIN)/python -c 'from pointsman.migrations.install.layout import node_binary; print(node_binary())') || exit 1; \
	for file in $$(git ls-files '*.js' '*.cjs' '*.mjs'); do "$$node" --check "$$file" || exit 1; done; \
	"$$node" migrations/lint.mjs

check-docs: setup
	@echo '== pymarkdown'; $(BIN)/pymarkdown scan $$(git ls-files '*.md')
	@echo '== links, commands and generated pages'; $(BIN)/python -m pytest -q tests/project/test_docs.py

check-yaml: setup
	@echo '== yamllint'; $(BIN)/yamllint --strict $$(git ls-files '*.yaml' '*.yml')

check-shell: setup
	@echo '== shellcheck'; $(BIN)/shellcheck .ci/run requirements/setup.sh

check-workflows: setup
	@echo '== zizmor'; $(BIN)/zizmor --offline --quiet .github/workflows

check-locks: setup
	@echo '== locks'; $(BIN)/python -m requirements.locks check

# ---- write ----

.PHONY: lock bump-litellm docs coverage bench-startup bench-database bench-strategies bench-telemetry bench-faults clean
lock: $(STAMPS)/python ## resolve requirements/*.txt anew, keeping what fits; UPGRADE=1 takes the newest
	@$(BIN)/python -m requirements.locks compile $(if $(UPGRADE),--upgrade)

bump-litellm: setup ## move LiteLLM's pin: make bump-litellm VERSION=1.106.2; undone when anything fails; ARGS=--dry-run, --keep
	@if [ -z '$(VERSION)' ]; then printf 'Which release? make bump-litellm VERSION=1.106.2\n' >&2; exit 2; fi
	@$(BIN)/python -m requirements.bump '$(VERSION)' $(ARGS)

docs: setup ## write the generated pages: docs/configuration.md, docs/coverage.md, docs/errors.md
	@PYTHONPATH=tests $(BIN)/python -m support.pages

coverage: docs ## the same

bench-startup: setup ## seconds to ready, beside stock LiteLLM's, in one run
	@$(BIN)/python -m bench.startup $(ARGS)

bench-database: setup ## the query engine beside plain psycopg: latency and throughput, in one run
	@$(BIN)/python -m bench.database $(ARGS)

bench-strategies: setup ## quality, cost and decision time of every strategy; beside LLMRouter's with ARGS='--llmrouter PYTHON'
	@$(BIN)/python -m bench.strategies $(ARGS)

bench-telemetry: setup ## CPU of a request with telemetry, beside one without: ours and LiteLLM's, in one run
	@$(BIN)/python -m bench.telemetry $(ARGS)

bench-faults: setup ## upstreams, Redis, Postgres, instances fail: beside stock LiteLLM; ARGS=--write puts it into docs/reliability.md
	@PYTHONPATH=tests $(BIN)/python -m bench.faults $(ARGS)

clean: ## remove the environment, caches and build output; the data directory stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
