# Every check and tool of the project. Needs Linux or macOS, make and Python 3.11 or newer; the rest it installs.
SHELL := /bin/bash

VENV ?= .venv
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)
RUN := $(VENV)/bin/python -m

# The tests start many interpreters, which would all compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help test test-stress test-gpu test-servers lint types demo bench servers render pictures clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

test: $(VENV)/.with-test ## the unit tests, without servers (about a minute)
	$(RUN) pytest --ignore=tests/servers -m "not stress" --numprocesses auto

test-stress: $(VENV)/.with-test ## threads, signals and long random calls against one another
	$(RUN) pytest --ignore=tests/servers -m stress

test-gpu: $(VENV)/.with-test ## the sources against a real NVIDIA GPU and its driver
	$(RUN) pytest tests/gpu

test-servers: $(VENV)/.with-test ## the tests with the real servers; run `make servers` once before
	$(RUN) pytest tests/servers

lint: $(VENV)/.with-dev ## style and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.with-dev ## mypy, strict
	$(RUN) mypy

# Where no Prometheus is installed, the one that `make servers` has built: it has no pages of its own.
demo: export PATH := $(PATH):$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/otel-mlops/servers/bin
demo: $(VENV)/.with-demo ## a small service with traffic and its page; DEMO_SECONDS=30 ends it after that time
	$(VENV)/bin/otel-mlops demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS))

bench: $(VENV)/.with-bench ## our cost against the peers', as ratios; BENCH="--quick --json FILE" passes through
	$(RUN) benchmarks $(BENCH)

servers: ## gets the real servers for the tests: Debian's packages, and with Go the rest, or says what is missing
	@tests/servers/install.sh

render: $(VENV)/.with-dev ## writes what is derived from the metrics: docs, rules, dashboards, pipelines
	$(VENV)/bin/otel-mlops render

# No check: the pictures are drawn again when the dashboards have changed. Needs the servers, a C compiler and Node.js.
pictures: $(VENV)/.with-test ## draws the dashboards for the docs (12 minutes); PICTURES=--again keeps the last recording
	$(VENV)/bin/python docs/pictures/source/take.py $(PICTURES)

clean: ## removes what was installed and built
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment is made once; an extra is installed again when pyproject.toml has changed.
$(VENV)/.with-%: pyproject.toml
	@if ! $(RUN) pip --version >/dev/null 2>&1; then \
		if [ -z "$(PYTHON)" ]; then \
			echo "No Python 3.11 or newer was found as python3.13, python3.12, python3.11 or python3." >&2; \
			echo "Install one, or name it: make PYTHON=/path/to/python3 ..." >&2; \
			exit 1; \
		fi; \
		if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "$(PYTHON) cannot make virtual environments: its modules venv and ensurepip are missing." >&2; \
			echo "Debian, Ubuntu: apt-get install python3-venv. Or name another: make PYTHON=/path/to/python3 ..." >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV) || exit 1; \
	fi
	@echo "Installing otel-mlops[$*] into $(VENV)"
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
