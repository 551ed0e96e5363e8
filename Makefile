# Every target sets up .venv by itself when it is missing or out of date.
#   make demo       trains a network from order labels alone on real images, draws out/rank_digits.png
#   make examples   every example with --quick, their pictures into out/; ARGS= for the full length
#   make interrupt  every example, with Ctrl-C at several moments
#   make test       the whole test-suite; ARGS goes to pytest
#   make lint       ruff and pyright
#   make sanitize   the kernels under AddressSanitizer, UBSan and ThreadSanitizer
#   make fuzz, hypothesis, leaks, processes, dynamic-shapes: see docs/reliability.md
#   make docs       the documentation site, into site/: no warning, no broken link, in Chromium where there is one
#   make pictures   the pictures of the documentation, into docs/images/
#   make bench      speed and memory against the peers, into docs/benchmarks*.md and docs/benchmarks/*.json
#   make bench-pages  those pages and their plots from the JSON, without measuring anything
#   make reproduce  the papers' experiments, into out/reproductions.md: hours; ARGS=--quick for minutes
#   make dist       source archive and wheel into dist/, checked
#   make smoke      both of dist/ in environments of their own; ARGS="--torch 2.12.1" for another torch
#   make sbom       what the wheel of dist/ bundles, into docs/bundled.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

# here a failed compile is an error, not a fallback
export DIFFLAYERS_REQUIRE_KERNELS := 1

.PHONY: demo examples interrupt test lint sanitize docs pictures bench bench-pages reproduce dist smoke sbom clean fuzz hypothesis leaks processes dynamic-shapes

demo: $(VENV)/installed
	$(BIN)/python examples/rank_digits.py $(ARGS)

examples: ARGS ?= --quick
examples: $(VENV)/installed
	$(BIN)/python tests/gallery.py -- $(ARGS)

interrupt: $(VENV)/installed
	$(BIN)/python tests/gallery.py --interrupt -- $(ARGS)

# two processes of one thread: the tests' work is small, and a parallel region on a busy core costs more than it saves
test: $(VENV)/installed
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

bench: $(VENV)/peers
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_sorting.py --out docs/benchmarks.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_choosing.py --out docs/benchmarks-choosing.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_optimising.py --out docs/benchmarks-optimising.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_fitting.py --out docs/benchmarks-fitting.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_gates.py --out docs/benchmarks-gates.md $(ARGS)
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/benchmarks/bench_pruning.py --out docs/benchmarks-gates.md $(if $(findstring --quick,$(ARGS)),--seeds 0 --epochs 1)
	$(BIN)/python tests/benchmarks/pages.py --read docs/benchmarks-gates.md

bench-pages: $(VENV)/installed
	$(BIN)/python tests/benchmarks/pages.py $(ARGS)

reproduce: $(VENV)/peers
	PYTHONPATH=$(VENV)/peers $(BIN)/python tests/reproductions/run_all.py $(ARGS)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/check.py site

pictures: $(VENV)/installed
	$(BIN)/python docs/pictures/draw.py $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

dist: $(VENV)/installed
	$(BIN)/python -m tests.distribution dist $(ARGS)

smoke: $(VENV)/installed
	$(BIN)/python -m tests.distribution smoke $(ARGS)

sbom: $(VENV)/installed
	$(BIN)/python -m tests.distribution sbom $(ARGS)

sanitize: $(VENV)/installed
	sh tests/sanitize.sh address $(BIN)/python
	sh tests/sanitize.sh thread $(BIN)/python

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.reliability.fuzz $(ARGS)

hypothesis: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --hypothesis-profile=thorough $(wildcard tests/*/test_*hypothesis.py) $(ARGS)

leaks: $(VENV)/installed
	$(BIN)/python -m tests.reliability.leaks $(ARGS)

processes: $(VENV)/installed
	$(BIN)/python -m pytest -v tests/test_processes.py $(ARGS)

dynamic-shapes: $(VENV)/installed
	$(BIN)/python -m tests.reliability.dynamic_shapes $(ARGS)

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
