# `make demo` and `make test` are the two commands a newcomer needs; each installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/composition-cpu

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m lab reproduce composition --preset=cpu --workdir=$(WORKDIR)

test: lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Pinned where the pins apply (Python 3.11); elsewhere the ranges of setup.cfg decide.
.venv/installed: setup.cfg setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[test]' \
	  $$($(BIN)/python -c 'import sys; print("--constraint=constraints.txt" * (sys.version_info[:2] == (3, 11)))')
	touch $@

clean:
	rm -rf .venv
