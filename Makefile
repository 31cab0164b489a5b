# make demo    serve the bundled checkpoint and talk to it
# make test    everything CI runs: lint, types, unit tests, tests against a running server
#
# Both set up .venv first; nothing but python3 and pip needs to be there. A set-up is redone only
# when pyproject.toml has changed. It compiles all modules, which takes half a minute and halves the
# start of every process of a server, also where Python may not write bytecode.

VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .tools/bin/uv)
# Two workers, a thread each: most of the time is processes of the host importing their modules.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
STAMP  := $(VENV)/.setup-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: setup demo lint types unit engine test format clean distclean

setup: $(STAMP)

$(STAMP): | $(UV)
	test -x $(BIN)/python || $(UV) venv --python '>=3.11,<3.14' $(VENV)
	$(UV) pip install --python $(BIN)/python --compile-bytecode --editable '.[dev]'
	rm -f $(VENV)/.setup-*
	touch $@

# Into a directory of its own, as a system Python may refuse to be installed into.
.tools/bin/uv:
	python3 -m pip install --quiet --target .tools uv

demo: setup
	$(BIN)/llada-sglang demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	$(PYTEST) tests/unit

engine: setup
	$(PYTEST) tests/engine

test: lint types unit engine

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .tools
