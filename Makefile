# `make help` lists the targets.

VENV ?= .venv
PYTHON ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
# There in an environment that this file created: only such a one gets exactly the pinned versions.
OURS := $(VENV)/.fsaf_d2-created
# Without pyvenv.cfg, bin/python is the interpreter behind the environment, which is not ours.
HAS_PIP := [ -e $(VENV)/pyvenv.cfg ] && $(PY) -m pip --version >/dev/null 2>&1
CONSTRAINTS := $(VENV)/.fsaf_d2-constraints.txt
KEPT := $(VENV)/.fsaf_d2-kept.txt
# Set-up is complete for this checkout; the number tells checkouts that share an environment apart.
READY := $(VENV)/.fsaf_d2-ready-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)

SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
CANDIDATES := $(if $(PYTHON),'$(PYTHON)',python3.13 python3.12 python3.11 python3.10 python3 python)
PIP_INSTALL := $(PY) -m pip install --no-build-isolation
# Tests are small: a second thread makes them slower, many times slower on a busy machine. So two
# processes share them instead; a debugger needs PYTEST_ARGS='-n 0 --pdb'.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n 2 --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND ?= Agg

.PHONY: help setup test test-fast demo bench soak lint clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F '|' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "  PYTHON=python3.12    the interpreter for a new environment (3.10 to 3.13)"
	@echo "  VENV=path            an existing environment: what it has stays, the rest is added"
	@echo "  DEMO_ARGS=... BENCH_ARGS=... SOAK_ARGS=... PYTEST_ARGS=...    further arguments"

setup: $(READY)  ## create the environment and install everything into it

test: test-fast  ## set up if needed, run the fast tests, then the slow ones
	@echo "The slow part:"
	@status=0; $(PYTEST) -m slow $(PYTEST_ARGS) || status=$$?; \
	if [ $$status -eq 5 ]; then status=0; fi; exit $$status  # 5: no test is marked slow

test-fast: $(READY)  ## set up if needed, run the fast tests
	@echo "The fast part:"
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

demo: $(READY)  ## set up if needed, then train, evaluate and draw on handwritten digits
	@$(PY) tools/demo.py $(DEMO_ARGS)

bench: $(READY)  ## set up if needed, then compare speed and memory with detectron2's RetinaNet
	@$(PY) benchmarks/speed.py --plot output/benchmark.png --json output/benchmark.json $(BENCH_ARGS)

soak: $(READY)  ## set up if needed, then kill a training 100 times and compare it with one left alone
	@OMP_NUM_THREADS=1 $(PY) tools/soak.py $(SOAK_ARGS)

lint: $(READY)  ## check the code with ruff
	@$(PY) -m ruff check .

clean:  ## remove caches and build products; environment, data sets and output stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# An interrupted run leaves no $(READY), and every step below can be repeated.
$(READY): constraints.txt setup.py tools/install_detectron2.py
	@rm -f $(VENV)/.fsaf_d2-ready-*
	@$(create_environment)
	@$(choose_versions)
	@echo "Installing what is missing; torch alone is gigabytes and takes minutes the first time."
	@$(install_packages)
	@$(install_detectron2)
	@touch $@
	@echo "Set-up is complete in $(VENV)."

define create_environment
if [ ! -e $(VENV) ] || { [ -e $(OURS) ] && ! { $(HAS_PIP); }; }; then \
  for candidate in $(CANDIDATES); do \
    if "$$candidate" -c '$(SUPPORTED)' 2>/dev/null; then found=$$candidate; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "No Python from 3.10 to 3.13 with the modules venv and ensurepip found (tried:" \
      $(CANDIDATES)")." "Install one, or name it: make PYTHON=/path/to/python ..." >&2; exit 1; \
  fi; \
  echo "Creating $(VENV) with $$("$$found" --version)."; \
  mkdir -p $(VENV) && touch $(OURS) && "$$found" -m venv $(VENV) || exit 1; \
fi; \
if ! $(PY) -m pip --version >/dev/null 2>&1; then \
  echo "$(VENV) is no Python environment with pip. Name another: make VENV=..." >&2; \
  exit 1; \
fi; \
if ! $(PY) -c '$(SUPPORTED)'; then \
  echo "$(VENV) has $$($(PY) --version), but 3.10 to 3.13 is needed. Name" \
    "another: make VENV=..." >&2; exit 1; \
fi
endef

# In an environment of somebody else every installed version is kept, and our pins hold for the rest.
define choose_versions
if [ -e $(OURS) ]; then \
  cp constraints.txt $(CONSTRAINTS) && rm -f $(KEPT); \
else \
  $(PY) -m pip list --format=freeze | grep -iv '^fsaf[-_]d2==' > $(KEPT); \
  awk -F == 'function name(s) { s = tolower(s); gsub(/[-_.]+/, "-", s); return s } \
    FNR == NR { kept[name($$1)]; print; next } !/^#/ && !(name($$1) in kept)' \
    $(KEPT) constraints.txt > $(CONSTRAINTS); \
fi
endef

define install_packages
export PIP_CONSTRAINT=$(CONSTRAINTS); \
if [ -e $(OURS) ] || ! $(PY) -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("cv2"))'; \
then project='.[dev,demo,opencv]'; else project='.[dev,demo]'; fi; \
base='setuptools wheel'; if [ -e $(OURS) ]; then base="pip $$base"; fi; \
if $(PIP_INSTALL) -q $$base && $(PIP_INSTALL) -e "$$project"; then exit 0; fi; \
if [ ! -e $(KEPT) ]; then exit 1; fi; \
echo "Our versions do not fit what is installed in $(VENV); trying the newest that do."; \
cp $(KEPT) $(CONSTRAINTS) && $(PIP_INSTALL) -q $$base && $(PIP_INSTALL) -e "$$project"
endef

define install_detectron2
PIP_CONSTRAINT=$(CONSTRAINTS) $(PY) tools/install_detectron2.py && \
if ! $(PY) -c 'import detectron2, detectron2.model_zoo'; then \
  echo "The detectron2 in $(VENV) cannot be imported. Mend or uninstall it, and run this again." >&2; \
  exit 1; \
fi
endef
