# make quickstart   train on the shipped emoji; MINUTES=2 for a short run
# make quality      evaluate the quickstart, a plain loop and gigagan-pytorch after equally long training, and the
#                   shipped model, with the same protocol and on captions: benchmarks/RESULTS.md
# make test         style, types and the whole test suite
# make web          build the web page of `imagen-pl export --to web` from imagen_pl/web/source (needs node and npm)
# All except web create .venv first, and can be repeated. PYTHON=python3.12 selects another interpreter.

MINUTES ?= 8
# What `make test` hands to pytest: a file, or -k with a name; by default everything.
TESTS ?=
CONFIG := configs/experiment/quickstart.yaml

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed
GIGAGAN := .venv/gigagan/installed

.PHONY: quickstart quality test web clean

quickstart: $(INSTALLED)
	$(BIN)/imagen-pl fit --config $(CONFIG) --existing move \
		--trainer.max_time "$$($(BIN)/python -c 'm = round(60 * $(MINUTES)); print(f"00:{m // 3600:02}:{m // 60 % 60:02}:{m % 60:02}")')"

quality: quickstart $(GIGAGAN)
	$(BIN)/python -m benchmarks.baselines.plain_loop --minutes $(MINUTES) --out runs/plain_loop
	PYTHONPATH=.venv/gigagan $(BIN)/python -m benchmarks.baselines.gigagan --minutes $(MINUTES) --out runs/gigagan
	$(BIN)/python -m benchmarks.quality runs/quickstart runs/plain_loop runs/gigagan \
		--extractor efficientnet_lite1 --out runs/quality/32px.json
	$(BIN)/python -m benchmarks.quality emoji --extractor efficientnet_lite1 --out runs/quality/64px.json
	$(BIN)/python -m benchmarks.words runs/quickstart emoji --extractor efficientnet_lite1 --out runs/quality/words

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

web:
	cd imagen_pl/web/source && npm ci --ignore-scripts --no-audit --no-fund && npm run build

$(INSTALLED): requirements.txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or later is needed; name it with PYTHON=..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

# Without what imagen_pl has already, and where only benchmarks/baselines/gigagan.py looks, which asks OpenCLIP nothing.
$(GIGAGAN): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/gigagan gigagan-pytorch==0.3.0 \
		accelerate==1.15.0 beartype==0.23.1 einops==0.8.2 ema-pytorch==0.8.3 ftfy==6.3.1 kornia==0.9.0 \
		kornia-rs==0.2.0 numerize==0.12 open-clip-torch==2.32.0 wcwidth==0.9.4
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
