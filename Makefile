.DEFAULT_GOAL := help
PYTHON ?= python3.11
PARAMS ?= params/mini.yaml
BIN := .venv/bin
SPEED := OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 \
	MALLOC_TOP_PAD_=67108864

.PHONY: help study test lab report bench lint world lock

help: ## list these targets
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 10

study: .venv/made ## run the notebooks in order on params/mini.yaml (PARAMS=another.yaml for another study)
	@$(BIN)/python -m searle_lib run $(PARAMS)

test: .venv/made ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lab: .venv/made ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

report: .venv/made ## render 07_results again from what the study has left
	@$(BIN)/python -m searle_lib run $(PARAMS) --only 07_results

bench: .venv/made ## measure each piece of work against a plain rendering of it (a quarter of an hour)
	@$(SPEED) $(BIN)/python -W ignore -m benchmarks

lint: .venv/made ## check style and formatting, notebooks included, and that no notebook holds outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

world: .venv/made ## train the miniature world's own CLIP and language model anew (half an hour on two cores)
	$(SPEED) $(BIN)/python -m searle_lib.miniworld.training

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
