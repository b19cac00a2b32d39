# Every target installs what it needs: on a fresh machine, `make demo` or `make test` can be the first command.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MINUTES ?= 10
# 2.15 and later are untested. The released wheels with CUDA also serve machines without a GPU.
TORCH ?= torch>=2.11,<2.15
CSRC := $(wildcard csrc/* csrc/cuda/*) setup.py
# Tests whose numbers come from PyTorch's vectorised kernels: they run with older processors' kernels too.
NUMERIC := tests/ops tests/proposals/test_proposer.py tests/pretraining/test_prompts.py tests/knet/test_parts.py \
	tests/knet/test_golden.py tests/data/test_evaluation.py tests/studies

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MAX_JOBS := $(JOBS)

.PHONY: help setup demo test cpp-test cpp-test-with-compiler fuzz docs bench bench-pipeline gpu-test gpu-bench gpu-sanitize ptxas lint format clean

help:
	@echo "make demo     pre-train, fine-tune and compare on a synthetic set (8 minutes on 2 cores)"
	@echo "make test     every test, the C++ and CUDA sources compiled first"
	@echo "make fuzz     damaged annotation files and images, for 10 minutes (make fuzz MINUTES=60)"
	@echo "make bench    the ops and a training step against plain PyTorch"
	@echo "make bench-pipeline   what a user waits for, on the CPU -> benchmarks/results/pipeline.md"
	@echo "make gpu-test, gpu-bench, gpu-sanitize   on a machine with a GPU: 9 minutes each, no network, no setup"
	@echo "make ptxas    registers, spills and wide accesses of every kernel -> benchmarks/results/ptxas.md"
	@echo "make docs     the documentation as a site -> build/site"
	@echo "make lint     ruff, mypy and clang-format; make format fixes what can be fixed"
	@echo "make setup    only the virtual environment ($(VENV)), the packages and the extension"

setup: $(VENV)/.installed

$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "sp_fast needs Python 3.10, 3.11 or 3.12: none found. Install one, or: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "==> [1/3] virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python -m venv failed (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@touch $@

$(VENV)/.packages: $(VENV)/.python pyproject.toml
	@echo "==> [2/3] PyTorch and the other packages (2 to 3 GB the first time; a few minutes)"
	@$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel
	@$(BIN)/python -m pip install -q "$(TORCH)" torchvision ninja "pybind11>=2.12"
	@touch $@

$(VENV)/.installed: $(VENV)/.packages $(CSRC)
	@echo "==> [3/3] sp_fast and its C++ extension$$(command -v nvcc >/dev/null && echo ', with the CUDA sources') (1 to 5 minutes)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-build-isolation -e ".[mmdet,test,dev,docs]"
	@SP_FAST_DISABLE_EXTENSION=1 $(BIN)/python -c "import importlib.util as u; print('    without the extension' if u.find_spec('sp_fast._C') is None else '    with the extension')"
	@touch $@

demo: setup
	@$(BIN)/sp-fast demo --out runs/demo

test: setup cpp-test
	@for capability in default avx2; do \
		echo "==> numeric tests, ATEN_CPU_CAPABILITY=$$capability"; \
		ATEN_CPU_CAPABILITY=$$capability OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -r fE $(NUMERIC) || exit 1; \
	done
	@echo "==> tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

cpp-test: setup
	@command -v c++ >/dev/null || { echo "==> C++ tests are skipped: there is no C++ compiler"; exit 0; }; \
		$(MAKE) --no-print-directory cpp-test-with-compiler

cpp-test-with-compiler:
	@echo "==> C++ tests"
	@$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python >build-cpp.log 2>&1 \
		&& $(BIN)/cmake --build build/cpp >>build-cpp.log 2>&1 || { cat build-cpp.log; exit 1; }
	@rm -f build-cpp.log; $(BIN)/ctest --test-dir build/cpp --output-on-failure

fuzz: setup
	@end=$$((SECONDS + 60 * $(MINUTES))); while [ $$SECONDS -lt $$end ]; do \
		FUZZ_EXAMPLES=1000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) tests/fuzz || exit 1; \
	done

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict && echo "==> build/site/index.html"

bench: setup
	@$(BIN)/python -m pytest -q benchmarks --benchmark-only --benchmark-group-by=group --benchmark-columns=median,iqr,rounds

# Options: make bench-pipeline PIPELINE="--only loader losses --image 400 667".
bench-pipeline: setup
	@$(BIN)/python -m benchmarks.pipeline $(PIPELINE)

# No setup: a machine with a GPU may have no network, but has PyTorch. Options: make gpu-test GPU="--minutes 5".
gpu-test gpu-bench gpu-sanitize: gpu-%:
	@$(or $(wildcard $(BIN)/python),python3) -m benchmarks.gpu $* $(GPU)

ptxas: setup
	@$(BIN)/python -m tools.ptxas

lint: setup
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*' 'tests/cpp/*.cpp' 'tests/cuda/*.h')

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix . ; $(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/cpp/*.cpp' 'tests/cuda/*.h')

clean:
	@rm -rf build dist *.egg-info sp_fast/_C*.so .pytest_cache .ruff_cache .mypy_cache $(VENV)/.installed
