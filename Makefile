# make quickstart   train on the shipped emoji; MINUTES=2 for a look
# make quality      the quickstart and a plain loop, equally long, scored by one ruler: benchmarks/RESULTS.md
# make test         style, types and the whole test suite
# All make .venv first, and can be run twice. PYTHON=python3.12 picks another interpreter.

MINUTES ?= 8
# What `make test` hands to pytest: a file, or -k with a name; by default everything.
TESTS ?=
CONFIG := configs/quickstart.yaml

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: quickstart quality test clean

quickstart: $(INSTALLED)
	$(BIN)/imagen-pl fit --config $(CONFIG) --existing move \
		--trainer.max_time "$$($(BIN)/python -c 'm = round(60 * $(MINUTES)); print(f"00:{m // 3600:02}:{m // 60 % 60:02}:{m % 60:02}")')"

# What benchmarks/baselines/gigagan.py has left in runs/gigagan is scored too.
quality: quickstart
	$(BIN)/python benchmarks/baselines/plain_loop.py --minutes $(MINUTES) --out runs/plain_loop
	$(BIN)/python benchmarks/quality.py runs/quickstart runs/plain_loop $(wildcard runs/gigagan) \
		--extractor efficientnet_lite1 --out benchmarks/results/quality.json

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TESTS)

$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or later is needed; name it with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
