# The front door. `make demo` and `make test` work on a fresh clone: they create .venv, install the pinned
# packages, build the kernels and run. Without a C++ compiler everything runs on the reference implementations.
PYTHON ?= python3
PEER ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
COMMAND := $(VENV)/bin/torchrec
BUILD := build/dev
NATIVE := $(BUILD)/.copied
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cmake')
HAVE_CXX := $(shell command -v $(CXX) || command -v c++ || command -v clang++)
# All run side by side, a thread each: suites wait for processes that they start a third of the time.
BESIDE := $(MAKE) --no-print-directory --jobs=5 --output-sync=line
# Tests of the main job, and those that start other processes.
JOB := $(addprefix tests/,bundle datasets experiment inference metrics report runs serve training tuning)
PROCESSES := tests/test_documents.py tests/distributed tests/cli
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest
# The long suites run properties again, on more examples.
LONG := $(PYTEST) -m "slow or hypothesis" --hypothesis-profile=long

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test lint native pytest pytest-reference pytest-job pytest-processes slow slow-recipes slow-ranks slow-inference slow-rest sanitize wheel docs bench interchange clean help

help:
	@echo "make demo      generate a click log, train on it, predict, report: torchrec demo"
	@echo "make test      lint, types, structure, then the tests on the kernels and on the reference"
	@echo "make lint      ruff, mypy, structure"
	@echo "make native    build the kernels in place"
	@echo "make slow      the long suites"
	@echo "make sanitize  kernels and operators under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make wheel     the sources as one file and a wheel, into dist"
	@echo "make docs      the documentation, into build/docs"
	@echo "make bench PEER=/path/to/python         measure against another Python with the same API"
	@echo "make interchange PEER=/path/to/python   exchange states with it, and compare operators"

demo: native
	rm -rf build/demo
	$(COMMAND) demo -o build/demo
	@echo "The command is $(COMMAND). For this shell, make it \`torchrec\`:  . $(VENV)/bin/activate"

test: $(READY)
	$(BESIDE) lint pytest pytest-processes pytest-reference pytest-job

pytest: native
	$(PYTEST) -m "not slow" --doctest-modules torchrec rowwise tests $(addprefix --ignore=,$(JOB) $(PROCESSES))

pytest-reference: $(COMMAND)
	ROWWISE_BACKEND=reference $(PYTEST) -m "not slow and not once" tests

pytest-job: native
	$(PYTEST) -m "not slow" $(JOB)

pytest-processes: native
	$(PYTEST) -m "not slow" $(PROCESSES)

slow: native
	$(BESIDE) slow-recipes slow-ranks slow-inference slow-rest

slow-recipes: native
	$(LONG) tests/test_recipes.py tests/serve

slow-ranks: native
	$(LONG) tests/distributed tests/cli

slow-inference: native
	$(LONG) tests/inference

slow-rest: native
	$(LONG) tests $(addprefix --ignore=tests/,test_recipes.py serve distributed cli inference)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) tools/check_structure.py

# The sources as one file, and from these the wheel; on Linux with a tag that says on which systems it runs.
wheel: $(READY)
	rm -rf build/wheel
	$(PY) -m build --no-isolation --outdir build/wheel
	mkdir -p dist
	cp build/wheel/*.tar.gz dist/
ifeq ($(shell uname -s),Linux)
	$(PY) -m auditwheel repair --wheel-dir dist build/wheel/*.whl
else
	cp build/wheel/*.whl dist/
endif

docs: $(COMMAND)
	$(PY) -m sphinx -b html -W --keep-going -q docs build/docs

bench: native
	$(PY) -m benchmarks $(if $(PEER),--peer $(PEER))

interchange: native
	$(PY) -m tools.compare_operators --peer $(PEER)
	$(PY) -m tools.interchange --peer $(PEER)

# The environment: the pinned packages; then this checkout on its path, and its command.
$(READY): constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV): one to four minutes, most of them for PyTorch."
	$(PY) -m pip install --quiet --requirement constraints.txt
	touch $@

$(COMMAND): tools/install_checkout.py $(READY)
	$(PY) tools/install_checkout.py

native: $(NATIVE) $(COMMAND)

ifneq ($(HAVE_CXX),)
$(NATIVE): CMakeLists.txt $(CPP) | $(READY)
	@echo "Building the kernels: half a minute to two minutes."
	cmake -S . -B $(BUILD) -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) -Wno-dev > /dev/null
	cmake --build $(BUILD)
	install $(BUILD)/_native*.so torchrec/ops/
	touch $@
else
$(NATIVE): $(READY)
	@echo "No C++ compiler found: using the reference implementations."
endif

# The kernels alone; then the operators from Python, on kernels built the same way. ASan has to be there before Python
# is, and the C++ library before ASan, which asks it about exceptions.
SANITIZERS = $(foreach name,libasan libubsan libstdc++,$(shell $(CXX) -print-file-name=$(name).so))
FUZZ_CASES ?= 10000

sanitize: $(COMMAND)
	cmake -S . -B build/sanitize -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) -DROWWISE_SANITIZE=ON -Wno-dev > /dev/null
	cmake --build build/sanitize
	build/sanitize/rowwise_sanitize
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  $(PY) tools/fuzz_operators.py --cases $(FUZZ_CASES) --workers 2 --native build/sanitize

clean:
	rm -rf build torchrec/ops/_native*.so
