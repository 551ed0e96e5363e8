# Every target sets up .venv by itself when it is missing or out of date.
#   make demo    trains a network from order labels alone on real images, draws out/rank_digits.png
#   make test    the whole test-suite
#   make bench   speed and memory against the peers, into docs/benchmarks*.md
#   make docs    the documentation site, into site/
#   make lint    ruff and pyright
#   make sanitize  the kernels' tests under AddressSanitizer and UBSan

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

# here a failed compile is an error, not a fallback
export DIFFLAYERS_REQUIRE_KERNELS := 1

.PHONY: demo test bench docs lint sanitize wheel clean

demo: $(VENV)/installed
	$(BIN)/python examples/rank_digits.py $(ARGS)

# two processes of one thread: the tests' work is small, and a parallel region on a busy core costs more than it saves
test: $(VENV)/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

bench: $(VENV)/peers
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_sorting.py --out docs/benchmarks.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_choosing.py --out docs/benchmarks-choosing.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_optimising.py --out docs/benchmarks-optimising.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_fitting.py --out docs/benchmarks-fitting.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_gates.py --out docs/benchmarks-gates.md $(ARGS)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

wheel: $(VENV)/installed
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

sanitize: $(VENV)/installed
	CXX=g++ sh tests/sanitize.sh $(BIN)/python

$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy scikit-build-core cmake ninja
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable ".[test,examples]"
	touch $@

# torchsort compiles against the installed torch; nvcc is hidden from it, which it would misuse. PyEPO needs pathos with
# its four parts besides what is installed already; without it the benchmarks show our figures alone and say so
$(VENV)/peers: $(VENV)/installed
	$(PIP) setuptools wheel
	PATH="$(CURDIR)/$(BIN):/usr/bin:/bin" $(PIP) --no-build-isolation --no-deps --target $(VENV)/peers diffsort difftopk torchsort reinmax
	$(PIP) --no-deps --target $(VENV)/peers pyepo pathos dill multiprocess pox ppft || echo "peers: PyEPO is left out"
	$(PIP) --no-deps --target $(VENV)/peers kornia kornia_rs poselib opencv-python-headless || echo "peers: those of fitting are left out"
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(PIP) --no-build-isolation --editable ".[docs]"
	touch $@

$(VENV)/lint: $(VENV)/installed
	$(PIP) ruff pyright[nodejs]
	touch $@

clean:
	rm -rf $(VENV) build dist site out
