# Two commands do everything: `make smoke` runs the main job, `make test` the tests. Both make .venv first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python

.PHONY: env env-light docs smoke notebook test test-newest mutations lint format lock clean bench bench-gpu

env: $(READY)

# The checkout itself is not installed here: a kernel of a rehearsal must not be able to import it.
# uv installs the pinned set several times faster than pip; it comes from the registry like everything else. What is downloaded
# must hash to what the requirements say.
$(READY): requirements-uv.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@echo "making $(VENV): $$(grep -c == requirements-dev.txt) packages, about 3 GB to download (torch brings its CUDA libraries), 5.4 GB on disk"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(VENV)/bin/uv pip install --python $(RUN) --require-hashes -r requirements-dev.txt
	@echo "$(VENV) is ready: $$(du -sh $(VENV) | cut -f1) on disk. next: make smoke"
	touch $@

# Without torch, for a machine that only builds, pushes and reports: .venv-light/bin/hcd build, check, doctor, run, report.
LIGHT_VENV := .venv-light
LIGHT_READY := $(LIGHT_VENV)/.ready
LIGHT_RUN := $(LIGHT_VENV)/bin/python

env-light: $(LIGHT_READY)

$(LIGHT_READY): requirements-uv.txt requirements-light.txt
	@echo "making $(LIGHT_VENV): $$(grep -c == requirements-light.txt) packages, 489 MB on disk"
	$(PYTHON) -m venv $(LIGHT_VENV)
	echo '*' > $(LIGHT_VENV)/.gitignore
	$(LIGHT_RUN) -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(LIGHT_VENV)/bin/uv pip install --python $(LIGHT_RUN) --require-hashes -r requirements-light.txt
	$(LIGHT_VENV)/bin/uv pip install --quiet --python $(LIGHT_RUN) --no-deps --no-build-isolation -e .
	touch $@

smoke: env
	$(RUN) build_kernel.py smoke

# The report's notebook with its results: of the newest campaign, or NOTEBOOK=FILE. Jupyter is not part of the pinned packages.
NOTEBOOK ?= $(shell ls -t runs/*/report.ipynb runs/*/*/report.ipynb runs/*/*/working/report.ipynb 2>/dev/null | head -n 1)

notebook: env
	@test -n "$(NOTEBOOK)" || { echo "no campaign has a notebook yet: make smoke, or build_kernel.py run, or NOTEBOOK=FILE"; exit 1; }
	@test -f "$(NOTEBOOK)" || { echo "there is no file $(NOTEBOOK)"; exit 1; }
	@$(RUN) -c 'import jupyterlab' 2>/dev/null || { echo "JupyterLab is not in $(VENV). Install it, then repeat make notebook:"; \
		echo "    $(VENV)/bin/uv pip install --python $(RUN) jupyterlab"; \
		echo "It is not needed to read the notebook: VS Code opens $(NOTEBOOK), and report.html is the same report as a page."; exit 1; }
	cd "$(dir $(NOTEBOOK))" && "$(CURDIR)/$(RUN)" -m jupyterlab "$(notdir $(NOTEBOOK))"

# One process more than there are cores: many tests wait, for kernels and for an emulated Kaggle.
test: env
	TMPDIR=$$($(RUN) tests/scratch_folder.py) OMP_NUM_THREADS=1 $(RUN) -m pytest --dist worksteal -n $$($(RUN) -c 'import os; print((os.cpu_count() or 1) + 1)')

# The kernels and the library under the newest release of every package, in an environment of its own: what Kaggle's image will be.
NEWEST_VENV := .venv-newest
NEWEST_RUN := $(NEWEST_VENV)/bin/python
NAMES := import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*(re.split("[=<>]", each)[0] for each in p["dependencies"] + p["optional-dependencies"]["dev"]))

test-newest:
	$(PYTHON) -m venv $(NEWEST_VENV)
	echo '*' > $(NEWEST_VENV)/.gitignore
	$(NEWEST_RUN) -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(NEWEST_VENV)/bin/uv pip install --quiet --python $(NEWEST_RUN) --upgrade $$($(PYTHON) -c '$(NAMES)')
	OMP_NUM_THREADS=1 $(NEWEST_RUN) -m pytest -n auto tests/kernels tests/lib

# Breaks load-bearing lines one after the other and shows which test notices; about 20 s a line.
mutations: env
	OMP_NUM_THREADS=1 $(RUN) tests/mutations.py

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# docs/configuration.md and the module list of docs/architecture.md.
docs: env
	$(RUN) docs/generate.py

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# After changing the dependencies in pyproject.toml. What is pinned stays as it is unless it must change.
LOCK := $(VENV)/bin/uv pip compile --universal --generate-hashes --python-version 3.11 --quiet

lock: env
	$(LOCK) pyproject.toml -o requirements.txt
	$(LOCK) --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	$(LOCK) --extra bench -c requirements-dev.txt pyproject.toml -o benchmarks/requirements.txt
	$(LOCK) --group light -c requirements.txt -o requirements-light.txt
	echo uv | $(LOCK) - -o requirements-uv.txt

# The benchmarks, in an environment of their own that has the peers, too. DATA=DIR takes tiles in competition layout; without
# it 2,000 are drawn.
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready
BENCH_RUN := $(BENCH_VENV)/bin/python
DATA ?= runs/benchmarks/data

$(BENCH_READY): requirements-uv.txt requirements-dev.txt benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	echo '*' > $(BENCH_VENV)/.gitignore
	$(BENCH_RUN) -m pip install --quiet --require-hashes -r requirements-uv.txt
	$(BENCH_VENV)/bin/uv pip install --quiet --python $(BENCH_RUN) --require-hashes -r requirements-dev.txt -r benchmarks/requirements.txt
	touch $@

runs/benchmarks/data: | $(BENCH_READY)
	$(BENCH_RUN) benchmarks/tiles.py $@

bench: $(BENCH_READY) | $(DATA)
	$(BENCH_RUN) benchmarks/prepare.py $(DATA)
	$(BENCH_RUN) benchmarks/batches.py $(DATA)
	$(BENCH_RUN) benchmarks/training.py $(DATA)
	$(BENCH_RUN) benchmarks/tiff_decoding.py $(DATA)

# On a machine with a GPU; tiles are noise, because nothing is learnt.
bench-gpu: $(BENCH_READY)
	$(BENCH_RUN) benchmarks/gpu.py

clean:
	rm -rf $(VENV) dist runs
