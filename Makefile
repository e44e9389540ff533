.DEFAULT_GOAL := help
PYTHON ?= python3.11
PARAMS ?= params/mini.yaml
BIN := .venv/bin
SPEED := OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 \
	MALLOC_TOP_PAD_=67108864

SAME := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal  # more threads would wait for each other
LAB ?=

.PHONY: help study test test-cuda check same lab report bench lint world lock

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

study: .venv/made ## run the notebooks in order on params/mini.yaml (PARAMS=another.yaml for another study)
	@$(BIN)/python -m searle_lib run $(PARAMS)

test: .venv/made ## run the whole test suite, with studies, kills and browsers
	$(TEST)

test-cuda: .venv/made ## compare every path that depends on the device with the CPU, and measure it; needs a GPU
	$(BIN)/python -m pytest -m cuda
	@$(SPEED) $(BIN)/python -W ignore -m bench cuda

check: lint ## check style and run the fast tests, in under two minutes
	$(TEST) -m "not slow"

same: .venv/made ## run the mini study as another processor would round it, and compare every number
	@$(BIN)/python -m searle_lib run params/mini.yaml
	@$(SAME) $(BIN)/python -m searle_lib run params/mini.yaml -p study=mini-same -p artefact_root=data/artefacts-same
	@$(BIN)/python -m searle_lib compare reports/mini/results.csv reports/mini-same/results.csv

lab: .venv/made ## open JupyterLab at the project's root (options: LAB="--port 8890")
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. $(LAB) notebooks/01_phrases.ipynb

report: .venv/made ## render every page of the study again, without running anything
	@$(BIN)/python -m searle_lib render $(PARAMS)

bench: .venv/made ## measure each piece of work against a plain rendering of it (a quarter of an hour)
	@$(SPEED) $(BIN)/python -W ignore -m bench

lint: .venv/made ## check style, notebooks included, that no notebook holds outputs, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	$(BIN)/lint-imports --no-logo --no-cache

world: .venv/made ## train the miniature world's own CLIP, language model and φ anew (40 minutes on two cores)
	$(SPEED) $(BIN)/python -m searle_lib.miniworld.training
	$(MAKE) study
	$(BIN)/searle export params/mini.yaml --to data/export
	$(BIN)/python -m searle_lib.miniworld.training data/export/phi_models/mini/checkpoints/phi_60.pt

lock: ## resolve the exact versions anew (needs uv), for requirements.lock and environment.yml
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header --upgrade \
		--extra lab --extra test pyproject.toml -o requirements.lock
	$(PYTHON) tests/pins.py > environment.yml

.venv/made: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here; install Python 3.11, or set PYTHON=its path" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
