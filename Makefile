# Needs Python 3.11 or newer, make, and a package index that pip can reach. Nothing is written outside this folder.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/build.lock requirements/runtime.lock requirements/dev.lock
CODE := token_actor workers benchmarks tests tools

# Stamps carry what they stand for in their names, so only a changed content installs anything again: git touches times at
# will. A venv does not survive another Python or another path either; then it is made anew.
sum = $(shell { cat $(1); echo $(2); } 2>/dev/null | cksum | cut -d ' ' -f 1)
PYTHON_VERSION := $(shell $(PYTHON) --version 2>&1)
VENV_KEY := $(call sum,$(LOCKS),"$(PYTHON_VERSION)" "$(CURDIR)")
VENV_STAMP := $(VENV)/.python-$(VENV_KEY)
RUNTIME_STAMP := $(VENV)/.runtime-$(VENV_KEY)
DEV_STAMP := $(VENV)/.dev-$(VENV_KEY)
PROJECT_STAMP := $(VENV)/.project-$(call sum,pyproject.toml,)
BENCH_VENV := build/bench-venv
BENCH_STAMP := $(BENCH_VENV)/.made-$(call sum,benchmarks/requirements-limits.txt,"$(PYTHON_VERSION)" "$(CURDIR)")

PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq
# A lock names everything, so nothing is resolved again: pip before 23.3 takes the newest release of what an extra names.
LOCKED := --require-hashes --no-deps
UV := uv==0.13.9  # writes the locks; the versions it chose are in them, so only `make lock` needs it
UV_VENV := build/lock-venv
COMPILE := $(UV_VENV)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --annotation-style line --no-emit-package token-actor --custom-compile-command 'make lock' $(UPGRADE)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check static faults soak bench bench-limits lock clean lint types imports sizes texts coverage setup setup-dev

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo 'Another Python: make demo PYTHON=python3.13'

demo: setup ## a metered fleet on this machine: server, actor, workers, and a checked summary
	@$(BIN)/token-actor demo

test: setup-dev ## all tests, with branch coverage
	@echo '== tests'
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest --cov --cov-report= || { rm -f .coverage; exit 1; }

faults: setup-dev ## kill, pause, cut off and fill real processes; every number must stay right (6 minutes)
	@echo '== faults'
	@$(BIN)/python -m pytest -m fault --no-cov tests/sim tests/fault

soak: setup-dev ## the same for long, 1,000 kills of the actor; MINUTES=25 says how long; rows in build/soak.jsonl
	@$(BIN)/python -m tests.fault --long --minutes $(or $(MINUTES),25)

check: static coverage ## everything CI checks besides the tests
	@echo '== all checks passed'

static: lint types imports sizes texts ## the part of `make check` that needs no tests to have run

bench: setup-dev ## measure throughput and latency on this machine
	@$(BIN)/python -m benchmarks

bench-limits: $(BENCH_STAMP) ## decisions against other libraries, in a venv of their own (10 minutes)
	@$(BENCH_VENV)/bin/python -m benchmarks.limits_bench $(ARGUMENTS)

lock: ## write requirements/*.lock anew; UPGRADE=--upgrade takes newer versions
	@test -x $(UV_VENV)/bin/uv || { $(PYTHON) -m venv $(UV_VENV) && $(UV_VENV)/bin/python -m pip install -qq $(UV); }
	@echo '== requirements/dev.lock'
	@$(COMPILE) --all-extras --group dev -o requirements/dev.lock >/dev/null
	@echo '== requirements/runtime.lock'
	@$(COMPILE) --extra all -c requirements/dev.lock -o requirements/runtime.lock >/dev/null
	@echo '== requirements/build.lock'
	@$(subst pyproject.toml ,,$(COMPILE)) --group build -c requirements/dev.lock -o requirements/build.lock >/dev/null
	@echo '== benchmarks/requirements-limits.txt'
	@$(COMPILE) benchmarks/requirements-limits.in --extra embedded -c requirements/dev.lock -o benchmarks/requirements-limits.txt >/dev/null

clean: ## remove the venv and everything made
	@rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# --- the parts of `make check` ---

lint: setup-dev
	@echo '== ruff'
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo 'mend it with: $(BIN)/ruff format .'; exit 1; }

types: setup-dev
	@echo '== mypy'
	@$(BIN)/mypy

imports: setup-dev
	@echo '== import-linter'
	@$(BIN)/lint-imports --no-logo

sizes: setup-dev
	@echo '== sizes'
	@$(BIN)/python tools/check_sizes.py token_actor workers

texts: setup-dev
	@echo '== texts'
	@$(BIN)/python tools/check_texts.py

# The pure parts have no excuse for an untested branch; elsewhere a kill -9 takes its own coverage with it.
coverage: .coverage
	@echo '== coverage'
	@$(BIN)/coverage report --fail-under=100 --include='token_actor/core/*,token_actor/wire/*'
	@$(BIN)/coverage report --fail-under=95

# Measured again only when the code is newer than the measurement.
.coverage: $(shell find $(CODE) -name '*.py' 2>/dev/null) pyproject.toml
	@$(MAKE) --no-print-directory test

# --- set-up ---

setup: $(RUNTIME_STAMP) $(PROJECT_STAMP)

setup-dev: $(DEV_STAMP) $(PROJECT_STAMP)

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'token-actor needs Python 3.11 or newer, and "$(PYTHON)" is: $(or $(PYTHON_VERSION),not there)'; \
		echo 'Install a newer one and name it, for example: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; } >&2
	@echo '== making $(VENV) with $(PYTHON_VERSION)'
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo 'The venv module is missing; Debian and Ubuntu have it in the package python3-venv.'; exit 1; } >&2
	@touch $@

$(RUNTIME_STAMP): $(VENV_STAMP)
	@echo '== installing what the locks name (the first time takes about a minute)'
	@$(PIP_INSTALL) $(LOCKED) -r requirements/build.lock -r requirements/runtime.lock
	@touch $@

$(DEV_STAMP): $(VENV_STAMP)
	@echo '== installing what the locks name, with the tools (the first time takes about a minute)'
	@$(PIP_INSTALL) $(LOCKED) -r requirements/dev.lock
	@touch $@ $(RUNTIME_STAMP)

# What is compared with is no part of the project: nothing of it is in the venv above.
$(BENCH_STAMP):
	@echo '== making $(BENCH_VENV)'
	@$(PYTHON) -m venv --clear $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install -qq $(LOCKED) -r benchmarks/requirements-limits.txt
	@touch $@

# Order only: the stamp of the project goes with the venv it is in.
$(PROJECT_STAMP): | $(VENV_STAMP)
	@echo '== installing the project'
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
