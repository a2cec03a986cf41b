# Every target sets up .venv first. Python 3.11 or 3.12, make and git are all that has to be there.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,$(shell $(p) -c 'import sys; (3,11) <= sys.version_info < (3,13) and print("$(p)")' 2>/dev/null)))
UV := uv==0.13.9
BIN := .venv/bin
READY := .venv/.ready

# `python` in the commands of dvc.yaml is the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Telemetry of every tool off; tasks/environment.py sets the same for whoever starts a stage without make.
export DO_NOT_TRACK ?= 1
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY ?= false
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export GX_ANALYTICS_ENABLED ?= false
export VLLM_NO_USAGE_STATS ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export HF_HUB_OFFLINE ?= 1
export MLFLOW_TRACKING_URI ?= sqlite:///.mlflow/mlflow.db
# Some images forbid bytecode; without it each of the dozen processes of a run compiles torch and pandas again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run repro ablations test lint pretrain seeds mlflow lock clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

setup: $(READY) ## Create .venv and install what pyproject.toml asks for, under requirements.lock

# pip installs torch, because pip's own settings decide which build (CPU wheel folder, company index); uv then installs
# the other 230 packages in seconds, and where it cannot reach an index pip does that as well.
$(READY): pyproject.toml requirements.lock
	@test -n '$(PYTHON)' || { echo 'error: Python 3.11 or 3.12 is needed and none was found; install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'Setting up .venv with $(PYTHON) (about a minute) ...'
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], sep="\n")' > .venv/requirements.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c requirements.lock torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(UV) || echo 'uv is not to be had; pip installs instead (slower)' >&2
	@index=$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}; \
	  $${index:+env UV_DEFAULT_INDEX="$$index"} $(BIN)/uv pip install -q --python $(BIN)/python -r .venv/requirements.txt -c requirements.lock \
	  || $(BIN)/python -m pip install -q --disable-pip-version-check -r .venv/requirements.txt -c requirements.lock
	@touch $@

run: $(READY) ## Run the whole pipeline through Prefect; ends with the report's path
	$(BIN)/python -m flows.pipeline

repro: $(READY) ## Run the same stages with DVC alone
	$(BIN)/dvc repro

ablations: $(READY) ## Run the ablations, after `make run`: PPO, sequence level, clip value, language reward
	$(BIN)/dvc repro ablations/dvc.yaml

test: lint ## Lint, check types and run every test
	$(BIN)/python -m pytest -q

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pretrain: $(READY) ## Build the tokenizer and pretrain the base again (the result is in git)
	$(BIN)/python -m tasks.pretrain base

seeds: $(READY) ## Repeat the recipe over three seeds: the README's figures
	$(BIN)/python -m benchmarks.seeds

mlflow: $(READY) ## Serve the embedded tracking store's UI on 127.0.0.1:5000
	@mkdir -p .mlflow
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --backend-store-uri sqlite:///.mlflow/mlflow.db --host 127.0.0.1 --port 5000 --workers 1

lock: $(READY) ## Resolve requirements.lock again (one resolution for all extras, Linux and macOS)
	cp requirements.lock .venv/lock.txt
	$(BIN)/uv pip compile -q --universal --all-extras --python-version 3.11 --no-annotate --no-header pyproject.toml -o .venv/lock.txt
	sed 's/ ;.*//' .venv/lock.txt | sort -u > requirements.lock

clean: ## Remove caches; keeps .venv, data, models, reports, unfinished runs (.runs) and the tracking store (.mlflow)
	rm -rf .prefect .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
