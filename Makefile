PYTHON ?= python3
BIN := .venv/bin
# a file's tests stay in one process, and so do those of a strategy: what they share is made once
PARALLEL := -n auto --dist loadgroup

.PHONY: demo test test-fast gpu check format clean

demo: .venv/.installed  ## four methods side by side on digits that come with the package
	$(BIN)/clsim run --scenario split_digits --strategy l2p,er,ncm,finetune --epochs 2
	@echo
	@echo "Curves: $(BIN)/tensorboard --logdir runs"

test: .venv/.installed  ## every test, on all cores; tests/conftest.py gives each process one thread
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: .venv/.installed  ## all but the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

gpu: .venv/.installed  ## on a machine with a GPU: its tests, then images/s beside a plain implementation
	$(BIN)/python -m pytest tests/test_gpu.py
	$(BIN)/python tests/benchmarks/gpu.py

check: .venv/.installed  ## style, format and types; the import direction is a test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("clsim needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
