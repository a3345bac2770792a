# The two commands of the README are 'make demo' and 'make test'; each installs everything that it needs.
# Environments are made with uv, which is installed into .uv where it is missing.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin
DEMO := local-demo

.PHONY: demo test lab check config clean
.DELETE_ON_ERROR:

demo: .venv/demo.done            ## start a cluster from config/local.yaml, run a Dask job on it, take it down
	trap 'trap - INT TERM HUP; $(BIN)/dask-cloudvm down $(DEMO); exit 130' INT TERM HUP; \
	$(BIN)/dask-cloudvm up config/local.yaml && \
	{ $(BIN)/python benchmarks/timeseries.py $(DEMO); code=$$?; $(BIN)/dask-cloudvm down $(DEMO) && exit $$code; }

test: .venv/test.done            ## run every check and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.lab.root --if-possible
	$(BIN)/pytest

lab: .venv/test.done             ## clusters on machines that boot on this computer; see tests/README.md
	$(BIN)/python -m tests.lab.root
	$(BIN)/pytest tests/lab

check: .venv/test.done           ## the quick part of 'make test', and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

config: .venv/demo.done          ## write what is derived from schemas/: config/cloudprovider.yaml and README's tables
	$(BIN)/python -m tests.derived

clean:
	rm -rf .venv .uv build dist *.egg-info

.venv/%.done: setup.cfg pyproject.toml | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python '>=3.10' .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[$*]'
	touch $@

.uv/bin/uv:
	(python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv) \
	|| (rm -rf .uv && python3 -m pip install --quiet --target .uv uv)
