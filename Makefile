# make help says what there is. Everything is made in .venv and build, which can be deleted at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CMake finds Python, and Python finds cmake and ninja, through the environment of this project.
export PATH := $(abspath $(BIN)):$(PATH)

CPP_SOURCES := $(shell find CMakeLists.txt runtime -name '*.cpp' -o -name '*.h' -o -name '*.map' -o -name '*.cmake' -o -name CMakeLists.txt)
CHECK_PYTHON := import sys; \
  sys.version_info >= (3, 11) or sys.exit("mote needs Python 3.11 or newer, and %s is %s: delete $(VENV) if it is there, and run \
  make PYTHON=<a newer one>" % (sys.executable, sys.version.split()[0]))
PRINT_BUILD_REQUIREMENTS := import tomllib; \
  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
SANITIZERS := plain asan tsan
SANITIZE_plain :=
SANITIZE_asan := address,undefined
SANITIZE_tsan := thread
# Sanitizers multiply what an optimizer has to do: at -O2 theirs takes the compiler two minutes for the kernels of one instruction set.
# Line numbers are all that their reports, or a debugger at a failed test, need.
CXX_FLAGS_plain := -O2 -g1 -DNDEBUG
CXX_FLAGS_asan := -O1 -g1 -DNDEBUG
CXX_FLAGS_tsan := -O1 -g1 -DNDEBUG
# Only what starts threads can have races; the other tests take two minutes under this sanitizer and show it nothing.
TESTS_tsan := Threads|Pool|Callers|Trace
# The thread sanitizer would see races in ExecuTorch's thread pool, which it cannot look into.
PLUGINS_plain := ON
PLUGINS_asan := ON
PLUGINS_tsan := OFF
# Sanitizers of older compilers end at once, now and then, where the kernel spreads addresses more widely than they know
# (vm.mmap_rnd_bits=32 in Ubuntu 24.04). Containers may forbid the cure.
NO_ASLR := $(shell setarch -R true 2>/dev/null && echo setarch -R)
RUN_plain :=
RUN_asan := $(NO_ASLR)
RUN_tsan := $(NO_ASLR)
# What QEMU pretends to be: without extensions, with dot products, with everything it knows (matrix products of bytes among it).
# The last has all kernels; the others repeat what is quick and reaches every kernel, to see that none needs more than its CPU has.
ARM_CPUS := cortex-a72 cortex-a76 max
SLOW_UNDER_QEMU := EveryPairOfWidths|RealWidths|ForEveryShape|ThreadsAndOrder|FailureOfThePool|EveryRouting|Chunks|Scratch|Scales|Fuzz|Trace

.DEFAULT_GOAL := help
# Installing, building and testing share the two folders; each step uses all cores by itself.
.NOTPARALLEL:
.PHONY: help venv build test test-native test-cpp test-cpp-arm test-python test-slow test-android android demo demo-model experiment runner-aarch64 bench bench-models docs lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(firstword $(MAKEFILE_LIST)) | awk -F: '{printf "make %-12s%s\n", $$1, $$2}'

venv: $(VENV)/.stamp  ## the private environment, with what the plugins and the C++ tests need

$(VENV)/.stamp: pyproject.toml
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); $$python -c '$(CHECK_PYTHON)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(PRINT_BUILD_REQUIREMENTS)' >$(VENV)/build-requirements.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/build-requirements.txt
	@touch $@

build: build/.stamp  ## the plugins, in an editable install with everything that export, training and tests need (6 GB)

build/.stamp: $(VENV)/.stamp $(CPP_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[tests]'
	@touch $@

test: build test-native test-python  ## C++ tests (also with sanitizers), those of the Android app, then pytest

# The app's tests have phases with less than two cores to do, and so have the compilers and emulators of the C++ tests.
test-native: build
	@$(MAKE) --no-print-directory test-android >build/test-android.log 2>&1 & android=$$!; trap 'kill $$android 2>/dev/null' EXIT; \
	$(MAKE) --no-print-directory test-cpp && wait $$android; code=$$?; cat build/test-android.log; exit $$code

test-cpp: $(SANITIZERS:%=test-cpp-%) test-cpp-arm

test-cpp-%: $(VENV)/.stamp
	cmake -S . -B build/test-$* -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMOTE_BUILD_TESTS=ON -DMOTE_BUILD_PLUGINS=$(PLUGINS_$*) \
	  -DMOTE_SANITIZE=$(SANITIZE_$*) -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="$(CXX_FLAGS_$*)" >build/test-$*.log 2>&1 || { cat build/test-$*.log; exit 1; }
	cmake --build build/test-$* --target mote_tests
	$(RUN_$*) ctest --test-dir build/test-$* --parallel $$(nproc) --tests-regex '$(TESTS_$*)' --output-on-failure

test-cpp-arm: $(VENV)/.stamp  ## the core's tests for 64-bit ARM, under QEMU
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	  { echo "The tests for ARM need the packages g++-aarch64-linux-gnu and qemu-user"; exit 1; }
	@mkdir -p build
	cmake -S runtime/core -B build/test-arm -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="$(CXX_FLAGS_plain)" \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake >build/test-arm.log 2>&1 || { cat build/test-arm.log; exit 1; }
	cmake --build build/test-arm --target mote_tests
	for cpu in $(ARM_CPUS); do \
	  test $$cpu = $(lastword $(ARM_CPUS)) && skip='^$$' || skip='$(SLOW_UNDER_QEMU)'; \
	  QEMU_CPU=$$cpu ctest --test-dir build/test-arm --parallel $$(nproc) --exclude-regex "$$skip" --output-on-failure || exit 1; \
	done

android: build  ## the Android demo app as a signed APK, without SDK, NDK and Gradle
	$(BIN)/python -m android_demo.tools apk

test-android: build  ## the Android app's tests on the JVM; pytest has those of its APK
	$(BIN)/python -m android_demo.tools test

# Two processes, each with a file of tests at a time (exports are shared within a file), the longest first (tests/conftest.py); more
# would want more memory (3 GB each).
test-python: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not versions and not long"

test-slow: build  ## what make test leaves out: all that is marked long or versions, torch's answers to all 2,700 questions
	$(BIN)/python -m pytest -m "versions or long"
	MOTE_TORCH_QUESTIONS=2700 $(BIN)/python -m pytest -s tests/test_demo_model.py

demo: build  ## export the demo checkpoint and ask it questions in both runtimes
	$(BIN)/python examples/digits_vqa/demo.py

demo-model: build  ## train the demo checkpoint anew
	$(BIN)/python examples/digits_vqa/train.py

# Where mote-profile --device looks for it.
RUNNERS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mote/runner
runner-aarch64: build  ## mote-runner for 64-bit ARM Linux, for mote-profile --device
	cd tests && $(abspath $(BIN))/python -c "import pathlib, arm; arm.build_arm_runner(pathlib.Path('$(abspath build)/runner-aarch64-install'))"
	mkdir -p $(RUNNERS) && rm -rf $(RUNNERS)/linux-aarch64 && cp -r build/runner-aarch64-install/runner $(RUNNERS)/linux-aarch64

experiment: build  ## MoTE beside MoE-LLaVA and dense models: trains all of them, goes on where it was cut off (an hour; docs/results.md)
	$(BIN)/python -m benchmarks.method

bench: build  ## the layer beside its peers and the machine's limits (half an hour)
	$(BIN)/python -m benchmarks.layer

bench-models: build  ## whole models of real sizes, from export to answers (hours, 60 GB of disk; goes on where it was cut off)
	$(BIN)/python -m benchmarks.models

docs: build  ## the documentation as a site, with the API's reference: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

lint: build  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## removes what was built, keeps the environment
	rm -rf build
