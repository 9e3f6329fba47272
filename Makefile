# Every target installs its needs into .venv and touches nothing else on the machine.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: setup fmt check docs docs-serve test fast soak tutorials golden mutations demo bench clean

# Compiles on all cores (pip uses one), and here, so that PYTHONDONTWRITEBYTECODE does not make every process compile anew.
setup: .venv/ready
	@echo "Set up. Type: source .venv/bin/activate && raydiology --help    (or, without it: .venv/bin/raydiology --help)"

.venv/ready: pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install it or name another with PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt --no-deps dynamic-network-architectures
	$(BIN)/python -m compileall -q -j 0 -x '/tests/' .venv/lib data methods orchestrator >/dev/null || true
	touch .venv/ready

fmt: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: .venv/ready docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The site, anew and strictly: a warning is an error. It needs no network, neither to be built nor to be read.
docs: .venv/ready
	$(BIN)/sphinx-build -q -E -W --keep-going -j 2 -d build/site-cache docs build/site
	@echo "site: build/site/index.html"

docs-serve: docs
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

# Tests of one file share a process and one local Ray, because most of their time is spent waiting for Ray to start.
# What one process compiles, with the checks of annotations, is kept for the other and for the next time.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: .venv/ready
	$(PYTEST) $(IN_TWO) -m "not tutorial and not soak" --durations 15

# Where arrays have no shapes, the checks of annotations are left to `make test`: they take a tenth of the time.
fast: .venv/ready
	$(PYTEST) $(IN_TWO) -m "not slow" --jaxtyping-packages=data,methods,tests.checked

# What takes a minute or more each: kills in each stage, a full disk, a bucket, whole sweeps. CI has no time for it.
soak: .venv/ready
	$(PYTEST) $(IN_TWO) -m soak --durations 0

# Every tutorial of docs/tutorials, typed word by word in a copy of the project.
tutorials: .venv/ready
	$(PYTEST) --numprocesses 2 --dist loadgroup tests/test_tutorials.py -m tutorial --durations 0

# The golden curves of METHODS="NAME ...", or all anew; the latter only where CHANGELOG says that numbers change.
golden: .venv/ready
	$(BIN)/python -m tests.golden $(METHODS)

# 20,000 mutated files of every format and layout, in processes that may die of them (about an hour).
mutations: .venv/ready
	$(BIN)/python -m tests.mutations 20000

# The quickstart, as a person would type it; its last line names the report of its table.
demo: .venv/ready
	$(BIN)/raydiology phantom --out build/demo/scans --labelled 8 --unlabelled 8
	$(BIN)/raydiology ingest --source build/demo/scans --layout nnunet --modality CT --recipe ct_abdomen_slices \
	  --set spacing_mm='[5,3,3]' --set pad_to='[]' --set resize_to='[40,96,120]' --val-fraction 0.5 \
	  --out build/demo/shards
	$(BIN)/raydiology table experiments/quickstart_table.yaml
	$(BIN)/raydiology sweep experiments/quickstart_sweep.yaml
	@echo "Type: source .venv/bin/activate && raydiology ui --home build/demo/runs"
	@echo "report: $$(ls build/demo/runs/*/table-*/report.html)"

bench: .venv/ready
	$(BIN)/python -m orchestrator.bench

clean:
	rm -rf build .pytest_cache .ruff_cache
