# make demo: set up, run the main job, show the result.   make test: set up, all tests.   make check: what CI adds.
# make validate: all measured runs again, with ../shared/data, into docs/validation.md.
PYTHON ?= python3
BIN := .venv/bin
TRACE ?=

.PHONY: demo test check validate fit-kernels fit-kernels-check format lock clean
demo: .venv/ready
	$(BIN)/kavier run examples/azure-conversation-hour.yaml --out runs/demo

test: .venv/ready
	$(BIN)/pytest -n 2

validate: .venv/ready
	$(BIN)/python docs/validate.py

# The shipped numbers of kernels, fitted anew with ../shared/data; fit-kernels-check says whether any moved.
MEASURED := ../shared/data
KERNELS := $(MEASURED)/aiconfigurator/gemm_perf.parquet $(MEASURED)/aiconfigurator/moe_perf.parquet \
	$(MEASURED)/aiconfigurator/context_attention_perf.parquet \
	$(MEASURED)/aiconfigurator/generation_attention_perf.parquet \
	$(MEASURED)/aiconfigurator/custom_allreduce_perf.parquet \
	$(MEASURED)/llmservingsim/profile_attention.parquet $(MEASURED)/llmservingsim/profile_dense.parquet \
	$(MEASURED)/llmservingsim/profile_per_sequence.parquet

fit-kernels: .venv/ready
	$(BIN)/kavier fit-kernels $(KERNELS) --out src/kavier/timing/kernels --shared src/kavier/timing/datasheet.toml

fit-kernels-check: .venv/ready
	$(BIN)/pytest -n 0 tests/test_fit_kernels.py -k shipped

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
