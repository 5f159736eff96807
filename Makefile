# make help says what there is. Everything is made in .venv and build, which can be deleted at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CMake finds Python, and Python finds cmake and ninja, through the environment of this project.
export PATH := $(abspath $(BIN)):$(PATH)

CPP_SOURCES := $(shell find CMakeLists.txt runtime -name '*.cpp' -o -name '*.h' -o -name '*.map' -o -name '*.cmake' -o -name CMakeLists.txt)
PRINT_BUILD_REQUIREMENTS := import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
SANITIZERS := plain asan tsan
SANITIZE_plain :=
SANITIZE_asan := address,undefined
SANITIZE_tsan := thread
# The thread sanitizer would see races in ExecuTorch's thread pool, which it cannot look into.
PLUGINS_plain := ON
PLUGINS_asan := ON
PLUGINS_tsan := OFF

.DEFAULT_GOAL := help
.PHONY: help venv build test test-cpp test-python demo demo-model bench lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(firstword $(MAKEFILE_LIST)) | awk -F: '{printf "make %-12s%s\n", $$1, $$2}'

venv: $(VENV)/.stamp  ## the private environment, with everything that export, training and tests need (5 GB)

$(VENV)/.stamp: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(PRINT_BUILD_REQUIREMENTS)' | $(BIN)/python -m pip install --quiet -r /dev/stdin
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[tests]'
	@touch $@

build: build/.stamp  ## the plugins, in an editable install

build/.stamp: $(VENV)/.stamp $(CPP_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

test: build test-cpp test-python  ## C++ tests (also with sanitizers), then pytest

test-cpp: $(SANITIZERS:%=test-cpp-%)

test-cpp-%: $(VENV)/.stamp
	cmake -S . -B build/test-$* -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMOTE_BUILD_TESTS=ON -DMOTE_BUILD_PLUGINS=$(PLUGINS_$*) \
	  -DMOTE_SANITIZE=$(SANITIZE_$*) >build/test-$*.log 2>&1 || { cat build/test-$*.log; exit 1; }
	cmake --build build/test-$*
	ctest --test-dir build/test-$* --output-on-failure

test-python: build
	$(BIN)/python -m pytest

demo: build  ## export the demo checkpoint and ask it questions in both runtimes
	$(BIN)/python examples/digits_vqa/demo.py

demo-model: build  ## train the demo checkpoint anew
	$(BIN)/python examples/digits_vqa/train.py

bench: build  ## the operator beside the runtimes' own
	$(BIN)/python benchmarks/moe_node.py

lint: $(VENV)/.stamp  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## removes what was built, keeps the environment
	rm -rf build
