# make run:  install, then search a policy for the embedded default task
# make test: install what tests need, too, then run all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test quick lint types bench setup clean

setup: $(VENV)/.ready

# torch and torchvision must come from one resolution, or they do not fit each other
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

# what tests and checks need besides: a browser's driver, Ray, linters
$(VENV)/.ready: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# the order of AVX2's sums, in which the README's numbers were measured, where there is one
AVX2 := $(if $(shell grep -sm1 -w avx2 /proc/cpuinfo),--arithmetic avx2)

run: $(VENV)/.installed
	$(BIN)/haq-env search --env HAQ-BISMO-Edge-v0 --algo sac --episodes 300 --seed 0 $(AVX2) --out runs/demo --overwrite

test: setup
	$(BIN)/python -m pytest

quick: setup
	$(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/reproduce_hardware.py
	$(BIN)/python benchmarks/default_task.py
	$(BIN)/python benchmarks/environment.py

clean:
	rm -rf $(VENV) build dist *.egg-info
