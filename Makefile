# `make demo` and `make test` do all of the set-up themselves; they need python3 (3.11 or newer) and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: install demo test fuzz torture lint format clean evidence gpu

# Not compiled: of twenty thousand files a run imports few, and Python compiles those itself, once, if it may keep them:
# else every process of the tests would compile torch anew.
export PYTHONDONTWRITEBYTECODE :=

install: $(VENV)/.tested

# What the product needs: enough for the demo, the page and exports.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Sensorium needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[export,play,serve]"
	@touch $@

# And what the tests hold it against.
$(VENV)/.tested: $(VENV)/.ready
	$(PIP) --editable ".[test]"
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/sensorium demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Damage valid files at random, 100,000 times over all readers: each must be read, or refused in one line. FUZZ="--count 1000 --seed 7".
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/fuzz.py $(FUZZ)

# Kill runs of every family at random moments, fill the disk at every write: in hours (make torture TORTURE="--kills 10").
torture: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture --kills 100 $(TORTURE)

# Measure what the docs claim, in hours: all of it, or one family (make evidence-detection). SENSORIUM_DATA names the folder of data sets.
evidence: install
	$(BIN)/python -m benchmarks.evidence $(EVIDENCE)

evidence-%: install
	$(BIN)/python -m benchmarks.evidence --only $* $(EVIDENCE)

# What only a GPU can tell, in eight minutes: its tests, kernels, rates, a training. GPU=--dry tries all of it, tiny, without one.
gpu: install
	$(BIN)/python -m benchmarks.gpu $(GPU)

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
