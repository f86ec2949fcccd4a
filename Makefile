# `make demo` and `make test` need nothing but Python 3.11+: they make .venv and install into it what pyproject.toml names.
PYTHON ?= python3
BIN := .venv/bin
CORES := $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
# A file is one worker's work: its tests share fixtures and compiled programs, and libtpu, which holds a lock, has one user.
# A crashed worker ends the run instead of hanging it. On a GPU: make test JAX_PLATFORMS=cuda
# Bytecode is kept also where an image says not to: without it, every program that a test starts compiles all of paradec.
PYTEST := PYTHONDONTWRITEBYTECODE= JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
UNCHECKED := PARADEC_CHECKS=$${PARADEC_CHECKS:-0}
NEED_NO_EXTRA := not oracle and not tpu
# Where torch is installed, these files import it to be left out.
NO_TORCH := --ignore=tests/oracle

.PHONY: help demo test slow test-all times oracle harness tpu deep lint types check
.SUFFIXES:

help:
	@echo "make demo      decode with a small real model and show what parallel decoding does"
	@echo "make test      the quick tests, on the CPU, a few minutes"
	@echo "make slow      the slow tests: more cases, more processes, more kills"
	@echo "make test-all  both"
	@echo "make times     measure every test (half an hour and more): which tests are slow comes from it"
	@echo "make oracle    compare with torch and transformers (installs both)"
	@echo "make harness   compare with the hf class of lm-evaluation-harness (installs that too)"
	@echo "make tpu       compile for TPU pods with the real compiler (installs libtpu; Linux on x86-64)"
	@echo "make check     lint and test: before every commit"
	@echo "make types     pyright"

demo: .venv/.run
	@echo "Running the demo: paradec demo"
	@$(BIN)/python -m paradec demo

test: .venv/.test
	@echo "Running the quick tests on $(CORES) processes"
	@$(PYTEST) -m "$(NEED_NO_EXTRA) and not slow" $(NO_TORCH) $(ARGS)

# pytest's 5 is "no test was selected". The checks of tests/conftest.py are left out here and below, for their time: most
# of this is more cases of what the quick tests check. PARADEC_CHECKS=1 brings them back.
slow: .venv/.test
	@echo "Running the slow tests on $(CORES) processes"
	@$(UNCHECKED) $(PYTEST) -m "$(NEED_NO_EXTRA) and slow" $(NO_TORCH) $(ARGS) || [ $$? -eq 5 ]

test-all: test slow

# Into tests/times.json, also when tests fail (pytest's 1): one run, with the checks that the quick tests have and, as on a
# CI machine, without a compiled program from before. `make times ARGS=tests/test_new.py` measures one file,
# `make times ARGS=--collect-only` only drops what is there no more. Other runs add to the file PARADEC_TIMES names:
# PARADEC_TIMES=tests/times.json bash .ci/run
times: .venv/.test
	@echo "Measuring the tests on $(CORES) processes"
	@rm -rf .cache/times
	@export PARADEC_TIMES=tests/times.json JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/times; \
	  $(PYTEST) $(ARGS) || [ $$? -eq 1 ] || [ $$? -eq 5 ]

oracle: .venv/.oracle
	@echo "Running the comparisons with torch and transformers"
	@$(UNCHECKED) $(PYTEST) -m oracle $(ARGS) || [ $$? -eq 5 ]

harness: .venv/.harness
	@echo "Running the comparison with lm-evaluation-harness"
	@$(UNCHECKED) $(PYTEST) -m oracle tests/oracle/test_harness.py $(ARGS)

tpu: .venv/.aot
	@echo "Running the TPU compiles"
	@$(UNCHECKED) $(PYTEST) -m tpu $(ARGS) || [ $$? -eq 5 ]

# These three at once, for CI: one run, in which no process waits for the other's last file three times.
deep: .venv/.oracle .venv/.aot
	@echo "Running the slow tests, the comparisons and the TPU compiles on $(CORES) processes"
	@$(UNCHECKED) $(PYTEST) -m "slow or oracle or tpu" $(ARGS)

lint: .venv/.dev
	@echo "Running ruff"
	@$(BIN)/ruff check .

types: .venv/.dev
	@$(BIN)/pyright

check: lint test

# One stamp for each set of extras, renewed when pyproject.toml changes: a second run starts at once.
.venv/.run: pyproject.toml | $(BIN)/python
	@echo "Installing paradec and what it needs into .venv (once, a minute or two)"
	@$(PIP) -e .
	@touch $@

.venv/.test: pyproject.toml | $(BIN)/python
	@echo "Installing paradec and its test tools into .venv (once, a minute or two)"
	@$(PIP) -e '.[test]'
	@touch $@ .venv/.run

.venv/.dev: .venv/.test
	@echo "Installing ruff and pyright into .venv (once)"
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/.aot: .venv/.test
	@echo "Installing the TPU compiler into .venv (once)"
	@$(PIP) -e '.[aot]'
	@touch $@

# The tested torch first, where an index has it; otherwise what transformers takes.
.venv/.oracle: .venv/.test
	@echo "Installing torch and transformers into .venv (once)"
	@$(PIP) torch==2.13.0 || echo "torch 2.13.0 cannot be had here; taking another"
	@$(PIP) -e '.[oracle]'
	@touch $@

# Not part of CI: 45 packages, half a gigabyte, about a minute. `lm_eval[hf]` is what the class compared with needs.
.venv/.harness: .venv/.oracle
	@echo "Installing lm-evaluation-harness into .venv (once, a minute)"
	@$(PIP) -e '.[harness]' 'lm_eval[hf]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "paradec needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv. Then run make again."; exit 1; }
	@echo "Making a virtual environment in .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
