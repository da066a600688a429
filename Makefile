# make demo: set up, run the main job, show the result.   make test: set up, all tests.   make check: what CI adds.
# make validate: all measured runs again, with ../shared/data, into docs/validation.md.
PYTHON ?= python3
BIN := .venv/bin
TRACE ?=

.PHONY: demo test check validate format lock clean
demo: .venv/ready
	$(BIN)/kavier run examples/azure-conversation-hour.yaml --out runs/demo

test: .venv/ready
	$(BIN)/pytest -n 2

validate: .venv/ready
	$(BIN)/python docs/validate.py

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Everything from the hashed lock, then this package itself with the pinned build backend.
.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q src
	touch $@

# Maintainers: resolve the lock anew (needs uv). No package index address gets in.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --group dev --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.lock

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
