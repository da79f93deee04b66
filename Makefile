# Two commands do everything: `make smoke` runs the main job, `make test` the tests. Both make .venv first.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python

.PHONY: env smoke test lint format lock clean

env: $(READY)

# uv installs the pinned set several times faster than pip; it comes from the registry like everything else.
$(READY): requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet uv
	$(VENV)/bin/uv pip install --quiet --python $(RUN) -r requirements-dev.txt
	touch $@

smoke: env
	$(RUN) build_kernel.py smoke

test: env
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: env
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# After changing the dependencies in pyproject.toml.
lock: env
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --quiet pyproject.toml -o requirements.txt
	$(VENV)/bin/uv pip compile --universal --python-version 3.11 --quiet --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt

clean:
	rm -rf $(VENV) dist runs
