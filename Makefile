# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. Everything is installed into .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/stamps
# Where `make demo` writes, and optionally the folder of images it explains.
OUT    ?= demo
DATA   ?=
# Where `make serve` listens.
PORT   ?= 8000
# More arguments for pytest, as in: make test ARGS="-k search"
ARGS   ?=
# Seconds that `make fuzz` gives each target.
FUZZ_SECONDS ?= 60

NATIVE_SOURCES := CMakeLists.txt setup.py $(shell find csrc -type f \( -name '*.h' -o -name '*.cpp' \
    -o -name '*.cu' -o -name '*.cuh' -o -name CMakeLists.txt \) 2>/dev/null)

PUBLIC_MODULES := backends bank classifier data explainer explanation images model ops reference \
    report saliency training

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup dev demo test bench lint sanitize fuzz wheel docs serve clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMPS)/extension  ## .venv with the pinned run-time requirements and the built extension

dev: $(STAMPS)/dev  ## the same plus the pinned development requirements

demo: setup  ## explain the bundled samples into demo/ (DATA=folder: your own images)
	$(BIN)/cae-fast demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: dev  ## the whole test suite
	$(BIN)/python -m pytest $(ARGS)

bench: $(STAMPS)/bench  ## measure this machine beside PyTorch and others; writes bench/RESULTS.md
	$(BIN)/python bench/run.py $(ARGS)

lint: dev  ## formatters, linters, types, stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml cae_fast._C cae_fast._C_emu \
	    --allowlist csrc/bindings/stubtest_allowlist.txt --ignore-unused-allowlist
	PATH="$(CURDIR)/$(BIN):$$PATH" bash csrc/lint.sh

sanitize: dev  ## native tests under the address, undefined-behaviour and thread sanitizers
	PATH="$(CURDIR)/$(BIN):$$PATH" bash csrc/tests/run_sanitize.sh

fuzz: dev  ## libFuzzer on everything that native code is given (needs clang; FUZZ_SECONDS=60 a target)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash csrc/fuzz/run_fuzz.sh "$(FUZZ_SECONDS)"

wheel: setup  ## a wheel in dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

docs: setup  ## the Python reference as HTML in build/docs
	rm -rf build/docs && mkdir -p build/docs
	cd build/docs && "$(CURDIR)/$(BIN)/python" -m pydoc -w cae_fast $(PUBLIC_MODULES:%=cae_fast.%)

serve: dev  ## the bundled models as a service and web page at 127.0.0.1:8000 (PORT=8080: there)
	$(BIN)/cae-fast serve --demo --port "$(PORT)"

clean:  ## remove what the build, the tests and the demo wrote (.venv stays)
	rm -rf build dist demo cae_fast.egg-info cae_fast/_C*.so compile_commands.json
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(STAMPS)/extension $(STAMPS)/emulated

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "cae_fast needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "no virtual environment: on Debian or Ubuntu, apt-get install python3-venv" >&2; exit 1; }

$(STAMPS)/runtime: requirements/runtime.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/runtime.txt
	@mkdir -p $(STAMPS) && touch $@

# editable_mode=compat: by a path, not by a finder, which a clone named cae_fast would shadow for
# scripts that lie beside it.
INSTALL_EDITABLE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet \
    --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings editable_mode=compat --editable .

$(STAMPS)/extension: $(NATIVE_SOURCES) pyproject.toml $(STAMPS)/runtime
	$(INSTALL_EDITABLE)
	@touch $@

# The extension and, for the tests, its CUDA kernels in the emulator.
$(STAMPS)/emulated: $(NATIVE_SOURCES) pyproject.toml $(STAMPS)/runtime
	CAE_CMAKE_ARGS="-DCAE_EMU=ON $$CAE_CMAKE_ARGS" $(INSTALL_EDITABLE)
	@touch $(STAMPS)/extension $@

$(STAMPS)/bench: requirements/bench.txt $(STAMPS)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/bench.txt
	@touch $@

$(STAMPS)/dev: requirements/dev.txt $(STAMPS)/emulated
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@
