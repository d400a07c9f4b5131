# Everything happens in $(VENV); the stamp files in it make second runs quick, and a run
# that was interrupted goes on from the last whole step. pip only: it alone knows the
# package index that the user configured.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
SHEET ?= .regioncap/contact-sheet.png
DATASET ?= regioncap-demo

# torch stays as it was installed, whatever the other packages would like.
PINNED := $(VENV)/torch.txt

.PHONY: help demo app doctor test test-all gpu-check docs pictures lint format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo                  install, then mask and describe a demo clip"
	@echo "make demo VIDEO=v.mp4 BOX=x1,y1,x2,y2 [LABEL=dog] [AT=0]"
	@echo "                           the same on a video of yours (box in pixels)"
	@echo "make app [DATASET=name]    open the result in the FiftyOne App"
	@echo "make doctor                what was found on this machine, and what to do"
	@echo "make test                  install the tools too, then run the quick tests"
	@echo "make test-all              the slow tests as well"
	@echo "make gpu-check             speed, memory and parity of all models on this GPU"
	@echo "make docs                  build the documentation as a site, in site/"
	@echo "make pictures              make the documentation's pictures again"
	@echo "make lint | make format    check or mend style and types"
	@echo "make clean                 remove the environment (not weights, nor datasets)"

demo: $(VENV)/.package
ifdef VIDEO
	$(BIN)/regioncap run "$(VIDEO)" $(if $(BOX),--box "$(BOX)") \
	    $(if $(LABEL),--label "$(LABEL)") $(if $(AT),--at "$(AT)") \
	    --sheet "$(SHEET)" $(ARGS)
else
	$(BIN)/regioncap demo $(ARGS)
endif

app: $(VENV)/.package
	FIFTYONE_PLUGINS_DIR="$(CURDIR)" $(BIN)/regioncap app --dataset "$(DATASET)"

doctor: $(VENV)/.package
	$(BIN)/regioncap doctor

# In the order of the files: xdist would start those with the fewest tests last, which
# are the longest, such as the tours through the App.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile \
	    --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

# On a machine with CUDA, torch comes as a CUDA build by itself (scripts/install-torch).
gpu-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.gpu_check --json gpu-check.json $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

pictures: $(VENV)/.dev
	$(BIN)/python scripts/pictures.py

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf "$(VENV)" build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "$(PYTHON) is older than 3.10; use make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	$(PIP) install --upgrade "pip>=25.1"  # the first that knows dependency groups
	touch $@

$(VENV)/.torch: $(VENV)/.pip scripts/install-torch
	scripts/install-torch $(BIN)/python $(PINNED)
	touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	scripts/apt-install libcurl4  # mongod needs it
	$(PIP) install --constraint $(PINNED) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.package
	$(PIP) install --constraint $(PINNED) --group dev
	touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) install --constraint $(PINNED) --group docs
	touch $@
