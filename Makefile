# Two commands matter: `make demo` builds and verifies the sample, `make test` runs the tests.
# Each makes its own virtual environment on the first run; pip's own configuration decides where
# packages come from. `make PYTHON=python3.12 test` chooses another interpreter.

PYTHON ?= python3
WORKERS ?= auto
PYTEST_ARGS ?=
FUZZ_ARGS ?= --seconds 60

# Paths are relative, so that a folder with spaces in its name works.
DEMO := .venv
TEST := .venv-test
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-slow fuzz lint format schemas clean
.DELETE_ON_ERROR:

help:
	@echo "make demo      set up $(DEMO), build samples/tiny_llama and verify the pack"
	@echo "make test      set up $(TEST) and run the tests (PYTEST_ARGS=... for more options)"
	@echo "make test-slow run the tests that take minutes or install packages"
	@echo "make fuzz      give every reader damaged files for a minute (FUZZ_ARGS=... for more options)"
	@echo "make lint      ruff, mypy and import-linter"
	@echo "make format    let ruff rewrite the code"
	@echo "make schemas   write schemas/*.schema.json from the models"
	@echo "make clean     remove environments, caches and demo-output"

demo: $(DEMO)/.ready
	$(DEMO)/bin/lora-quant build samples/tiny_llama/lora_config.yaml -o demo-output --force
	$(DEMO)/bin/lora-quant verify demo-output

test: $(TEST)/.ready
	$(TEST)/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

# Two at a time: some of these tests use all cores or a lot of disk themselves.
test-slow: $(TEST)/.ready
	$(TEST)/bin/python -m pytest -m slow -n 2 --dist worksteal $(PYTEST_ARGS)

fuzz: $(TEST)/.ready
	$(TEST)/bin/python -m tests.fuzz $(FUZZ_ARGS)

lint: $(TEST)/.ready
	$(TEST)/bin/python -m ruff check .
	$(TEST)/bin/python -m ruff format --check .
	$(TEST)/bin/python -m mypy
	$(TEST)/bin/lint-imports

format: $(TEST)/.ready
	$(TEST)/bin/python -m ruff check --fix .
	$(TEST)/bin/python -m ruff format .

schemas: $(TEST)/.ready
	$(TEST)/bin/python -m lora_quant.config.schemas

clean:
	rm -rf $(DEMO) $(TEST) demo-output build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(DEMO)/.ready: EXTRA := runtime
$(TEST)/.ready: EXTRA := test
$(DEMO)/.ready $(TEST)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed, $(PYTHON) is not: try make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments." >&2; \
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "setting up $(@D); the first time takes a minute"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(PIP_INSTALL) -e '.[$(EXTRA)]'
	@touch $@
