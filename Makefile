# Every target does its own set-up; nothing but Python 3.11, a C++ compiler and libnuma is expected.
PYTHON ?= python3.11
SEED ?= 1
LOCK := requirements/cpu.lock
BIN := .venv/bin
STAMP := .venv/.locked-$(shell cat $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
DEMO_DATA := data/demo
# Unit tests keep to one thread a process: two cores are shared with Ray in the rest.
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test test-long unit check format bench docs

setup: $(STAMP)

$(STAMP):
	@echo "setting up .venv from $(LOCK) (about 6.5 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $(LOCK)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -f .venv/.locked-* && touch $@

demo: setup
	@$(BIN)/python -m deploy.demo.scenes $(DEMO_DATA)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/rollmatch train --config configs/demo.yaml \
		training.seed=$(SEED) training.run_name=demo-seed$(SEED) $(ARGS)

test: setup unit
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q --durations=15 -m "not long" tests/integration tests/faults

test-long: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q --durations=15 -m long tests/integration tests/faults

unit: setup
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal tests --ignore=tests/integration --ignore=tests/faults

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format --quiet .

bench: setup
	@for name in protocol packing weight_sync learner attention model_sizes preparation rollout_backends scale overlap faults observability; do $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: setup
	@$(BIN)/python -m protocol.config.reference > docs/configuration.md
	@$(BIN)/python -m protocol.metric_table > docs/metrics.md
	@$(BIN)/python -m deploy.grafana
	@$(BIN)/python -m deploy.cli render --config configs/cluster_8gpu.yaml -o deploy/k8s
