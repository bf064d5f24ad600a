# Everything is built into .venv; a second set-up takes seconds. `make help` lists the targets.
PYTHON ?= python3
# An index or wheel folder of your own, e.g. PIP_ARGS="--index-url https://…"; empty means pip's own settings.
PIP_ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test lint bench forge clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/.ready ## create .venv with the locked versions

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) 'pip>=25' 'setuptools>=77'
	# torch first: where a CPU build is on offer, pip takes it here instead of CUDA's packages later.
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt torch
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch .venv/.ready

run: setup ## run the laboratory's experiment into ./store (about ten minutes on two cores)
	$(BIN)/mot run lab

test: setup lint ## the gate, then every test that this machine can run
	$(BIN)/python -m pytest

lint: setup ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## measure overhead, start-up and a reused run (not a test)
	$(BIN)/python -m tests.bench

forge: setup ## train the laboratory's models again into ./forged
	$(BIN)/mot lab forge --out forged

clean: ## remove the environment (never the store)
	rm -rf .venv
