# make demo   tokenize and describe the shipped images (or IMAGES=/some/folder)
# make test   run the tests (those that start Ray: make test-ray, an S3 store: make test-s3)
# make check  formatting, lint, types and tests, as CI does
#
# Each target makes .venv when there is none and re-uses it afterwards.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Written last, so a half-made environment is finished on the next call, not taken for done.
STAMP := $(VENV)/.installed

# What the demo tokenizes, and where it writes.
IMAGES ?= docs/demo-images
DEMO_DIR ?= build/demo

# Arguments for pytest: two processes, a file of tests in one of them. For one test in one process:
# make test PYTEST_FLAGS="-k codec".
PYTEST_FLAGS ?= -n 2 --dist loadfile
# What `make check` runs beside lint and types. CI empties it after its own `make test`.
CHECK_TESTS ?= test

.PHONY: help
help:
	@echo "make demo    tokenize and describe $(IMAGES) (IMAGES=/some/folder for yours)"
	@echo "make test    run the tests"
	@echo "make check   formatting, lint, types and tests"
	@echo "make format  let ruff rewrite the files"
	@echo "make clean   remove build/ and the caches"
	@echo "The environment is made in $(VENV) by the first of them; PYTHON=python3.12 chooses another Python."

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
		"im2sp needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] \
		+ "; name another one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12")'
	@$(PY) -m pip --version >/dev/null 2>&1 \
		|| { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing the tested versions into $(VENV) (the first time takes some minutes)"
	@$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

.PHONY: demo
demo: $(STAMP)
	$(VENV)/bin/im2sp-tokenize "$(IMAGES)" --out $(DEMO_DIR)/shards --overwrite
	$(VENV)/bin/im2sp-verify $(DEMO_DIR)/shards
	$(PY) tools/bitcount.py $(DEMO_DIR)/shards
	$(PY) tools/reconstruct.py $(DEMO_DIR)/shards --images "$(IMAGES)" --out $(DEMO_DIR)/reconstructions.png
	$(VENV)/bin/im2sp-speak "$(IMAGES)" --out $(DEMO_DIR)/spoken

.PHONY: test
test: $(STAMP)
	$(PY) -m pytest $(PYTEST_FLAGS)

.PHONY: test-ray
test-ray: $(STAMP)
	$(PY) -m pytest -m ray tests/pipeline

.PHONY: test-s3
test-s3: $(STAMP)
	$(PY) -m pytest -m s3 tests/pipeline tests/shards tests/tools/test_datasets_by_url.py

.PHONY: check
check: lint types $(CHECK_TESTS)

.PHONY: lint
lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

.PHONY: types
types: $(STAMP)
	$(PY) -m basedpyright

.PHONY: format
format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: clean
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
