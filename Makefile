# `make demo` and `make test` are the two commands a newcomer needs; each installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
PRESET ?= cpu
WORKDIR ?= runs/composition-$(PRESET)
# Pinned where the pins apply (Python 3.11); elsewhere the ranges of setup.cfg decide. `CONSTRAINTS=` takes the newest
# versions everywhere, `CONSTRAINTS=constraints-lowest.txt` the lowest.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints.txt" * (sys.version_info[:2] == (3, 11)))')

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m lab reproduce composition --preset=$(PRESET) --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: setup.cfg setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[test]' $(addprefix --constraint=,$(CONSTRAINTS))
	touch $@

clean:
	rm -rf .venv
