# Assumes GNU make and one Python of 3.11 to 3.14 with venv and pip; everything else goes into .venv.
#   make train ARGS="--help"        flags for the command behind a target
#   make test PYTHON=python3.12     a Python of your choice (rebuilds .venv)

.DEFAULT_GOAL := help
.PHONY: help train test test-slow parity lint format bench notebooks clean FORCE
SHELL := /bin/sh

ARGS ?=
PYTHON ?=
# Newest first. Every one is run before it is believed: a name on PATH may be a shim that fails, or lack venv.
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3 python
PROBE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))

VENV := .venv
PY := $(VENV)/bin/python
# -qq hides the chatter of package indexes, not errors.
pip = $(1)/bin/python -m pip install -qq --no-input --disable-pip-version-check --prefer-binary
PIP_INSTALL := $(call pip,$(VENV))
READY := $(VENV)/ready
READY_LINT := $(VENV)/ready-lint

# The default build of torch on Linux brings several GB of GPU libraries. A "+cpu" version exists only in CPU indexes, so
# this never fetches them: pip finds it in an index you name (PIP_EXTRA_INDEX_URL), or make bench goes without torch.
ifeq ($(shell uname -s),Linux)
TORCH ?= torch==2.13.0+cpu
else
TORCH ?= torch
endif

# Much of a test is tracing and compiling on one core. Each process has four virtual devices, so more need more memory.
WORKERS ?= 2
PARALLEL := --numprocesses $(WORKERS) --dist worksteal

# `transformers` and torch are for `make parity` alone, and have an environment of their own.
PARITY := .venv-parity
PIP_PARITY := $(call pip,$(PARITY))
READY_PARITY := $(PARITY)/ready
TORCH_PARITY := $(if $(filter torch,$(TORCH)),torch==2.13.0,$(TORCH))

# $(call stale,folder) says something if that environment must be made again from nothing. The first line of its file `ready` is the
# folder it was made in (an environment does not survive a move), the second the PYTHON that was asked for. No `ready`: the set-up was
# interrupted.
stale = $(shell { [ "$$(sed -n 1p $(1)/ready 2>/dev/null)" = '$(CURDIR)' ] \
	&& { [ -z '$(PYTHON)' ] || [ "$$(sed -n 2p $(1)/ready)" = '$(PYTHON)' ]; } \
	&& $(1)/bin/python -c '' 2>/dev/null; } || echo stale)
STALE := $(call stale,$(VENV))
STALE_PARITY := $(call stale,$(PARITY))

# $(call environment,folder,stale or nothing,Pythons to try): an empty environment, or the one that is there
define environment
	@found=; if [ -n '$(2)' ]; then \
		for candidate in $(if $(PYTHON),'$(PYTHON)',$(3)); do \
			if "$$candidate" -c '$(PROBE)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo 'make: no usable Python: tried $(or $(PYTHON),$(3)); need 3.11 to 3.14 with venv and pip (Debian' \
			'and Ubuntu: the package python3-venv). Install one, or name one that runs: PYTHON=<command>' >&2; \
			exit 1; \
		fi; \
		echo "make: setting up $(1) with $$("$$found" --version), a minute or two (about 1 GB)" && \
		"$$found" -m venv --clear $(1); \
	else \
		echo 'make: bringing $(1) up to date with pyproject.toml'; \
	fi
endef

help: ## this list
	@echo 'make <target> [ARGS="flags for the command"] [PYTHON=python3.x]'
	@sed -n 's/^\([a-z-]*\):.*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

train: $(READY) ## train a small GPT on an emulated wafer with defects (ARGS="--help" for its flags)
	$(PY) -m experiments.train $(ARGS)

test: $(READY) ## tests, without the slow ones (WORKERS=1: one after the other)
	$(PY) -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-slow: $(READY) ## the slow tests
	$(PY) -m pytest $(PARALLEL) -m slow $(ARGS)

parity: $(READY_PARITY) ## golden models made anew with torch and transformers, and ours held against them
	HF_HUB_OFFLINE=1 $(PARITY)/bin/python -m pytest $(PARALLEL) tests/parity/against_transformers.py $(ARGS)

lint: $(READY_LINT) ## ruff (rules and format) and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(READY_LINT) ## let ruff rewrite imports and layout
	$(PY) -m ruff check --select I --fix .
	$(PY) -m ruff format .

bench: $(READY) ## host time per training step: wafer, plain JAX, and torch where it can be had
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP_INSTALL) '$(TORCH)' || \
	echo 'make bench: no torch ($(TORCH) cannot be installed for this Python), so no comparison with it. For one, put' \
	'an index of CPU builds in PIP_EXTRA_INDEX_URL, or TORCH=torch for the default build of your platform.' >&2
	$(PY) -m experiments.bench $(ARGS)

notebooks: $(READY) ## execute the notebooks; with their outputs they go to runs/notebooks
	$(PY) -m experiments.run_notebooks $(ARGS)

clean: ## remove .venv and .venv-parity, builds and caches; what runs wrote stays
	rm -rf $(VENV) $(PARITY) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml hatch_build.py $(if $(STALE),FORCE)
	$(call environment,$(VENV),$(STALE),$(PYTHONS))
	@$(PIP_INSTALL) -e '.[test,published]'
	@printf '%s\n' '$(CURDIR)' '$(PYTHON)' > $@

$(READY_PARITY): pyproject.toml hatch_build.py $(if $(STALE_PARITY),FORCE)
	$(call environment,$(PARITY),$(STALE_PARITY),python3.11 $(PYTHONS))
	@$(PIP_PARITY) '$(TORCH_PARITY)' 2>/dev/null || $(PIP_PARITY) torch==2.13.0
	@$(PIP_PARITY) 'transformers>=5,<6' -e '.[test]'
	@printf '%s\n' '$(CURDIR)' '$(PYTHON)' > $@

$(READY_LINT): $(READY)
	@$(PIP_INSTALL) -e '.[lint]'
	@touch $@

FORCE:
