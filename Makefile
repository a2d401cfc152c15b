# make demo   creates .venv, installs, builds, runs the main job and leaves report/report.html
# make test   the fast tests; make test-all adds C++ tests, sanitizers and the slow rest
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What pip is told about torch, for example TORCH="torch --index-url https://download.pytorch.org/whl/cpu".
TORCH ?= torch==2.13.0
BUILD := build

.PHONY: demo test test-all test-cpp test-neon test-sanitize test-sanitize-python cuda-check bench bench-cpp lint format build clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "sparsecore: expected Python >= 3.10, got $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "sparsecore: Python has no venv module; install it, e.g. \`apt install python3-venv\`"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the build itself needs, and torch: see the README for other builds of it.
$(VENV)/.tools: $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet numpy safetensors "setuptools>=77" wheel "pybind11>=2.12" "cmake>=3.22" ninja
	@touch $@

$(VENV)/.built: $(VENV)/.tools setup.py pyproject.toml CMakeLists.txt $(shell find csrc cmake -type f)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[all]"
	@touch $@

build: $(VENV)/.built

$(VENV)/.lint: $(VENV)/.built
	$(BIN)/python -m pip install --quiet ruff==0.17.6 mypy==2.4.1 clang-format==23.1.5
	@touch $@

demo: build
	$(BIN)/python -m sparsecore demo --out report

# As many processes as there are cores: half of the time goes into importing torch and capturing models.
PYTEST := $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8

test: build
	$(PYTEST) -m "not slow"

test-all: build lint test-cpp test-neon test-sanitize test-sanitize-python
	$(PYTEST)
	SPARSECORE_ISA=scalar $(PYTEST) -m "not slow" tests/ops tests/nn

# GoogleTest and Google Benchmark: `apt install libgtest-dev libbenchmark-dev`
test-cpp: $(VENV)/.tools
	$(BIN)/cmake -S . -B $(BUILD)/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSPARSECORE_TESTS=ON -DSPARSECORE_BENCHMARKS=ON
	$(BIN)/cmake --build $(BUILD)/cpp
	$(BIN)/ctest --test-dir $(BUILD)/cpp --output-on-failure --parallel $$(nproc)

# The NEON kernels on any machine: cross-compiled, run in qemu. Scalar ones are the same text as in test-cpp.
test-neon: $(VENV)/.tools
	@for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do command -v $$tool >/dev/null \
	  || { echo "sparsecore: test-neon expected $$tool; \`apt install g++-aarch64-linux-gnu qemu-user-static libgtest-dev\`"; exit 1; }; done
	$(BIN)/cmake -S . -B $(BUILD)/neon -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSPARSECORE_TESTS=ON \
	  -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build $(BUILD)/neon
	$(BIN)/ctest --test-dir $(BUILD)/neon --output-on-failure --parallel $$(nproc) --exclude-regex scalar

test-sanitize: $(VENV)/.tools
	$(BIN)/cmake -S . -B $(BUILD)/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSPARSECORE_TESTS=ON -DSPARSECORE_SANITIZE=ON
	$(BIN)/cmake --build $(BUILD)/sanitize
	$(BIN)/ctest --test-dir $(BUILD)/sanitize --output-on-failure --parallel $$(nproc)

# The same for the bindings: bad input from Python, with AddressSanitizer loaded before the interpreter.
test-sanitize-python: build
	SPARSECORE_SANITIZE=1 $(BIN)/python setup.py -q build --build-lib $(abspath $(BUILD)/sanitize-python)
	cd $(BUILD)/sanitize-python && LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider \
	  -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -k "not compile" \
	  $(addprefix $(CURDIR)/tests/,ops formats test_io.py test_bundle.py)

# Every CUDA kernel with nvcc alone: no GPU, no torch with CUDA; installs nvcc's packages where there is no nvcc.
cuda-check: $(VENV)/.tools
	$(BIN)/python cmake/cuda_check.py --install --out $(BUILD)/cuda-check

# Every kernel on single layers against other libraries; BENCH="--shapes all --threads 1 --threads 2" measures more.
BENCH ?= --shapes quick
bench: build
	$(BIN)/python -m pip install --quiet "sparsecore[peers]"  # the checkout that is installed, and what its extra names
	$(BIN)/python -m sparsecore kernels bench --out benchmarks/results $(BENCH)

# The kernels alone, in C++ and without Python.
bench-cpp: test-cpp
	$(BUILD)/cpp/benchmarks/cpp/sparsecore_benchmarks

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/cpp benchmarks/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/cpp benchmarks/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(BUILD) $(VENV) sparsecore/*.so report
