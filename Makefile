# Two commands do all: `make demo` (the main job) and `make test`. Both create the virtual environment if it is missing.
#   VENV=dir    use another environment    PYTHON=python3.12    create it with another interpreter
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
OUT    ?= demo_out
READY  := $(VENV)/.r2genkg-ready
CODE   := r2genkg tests benchmarks scripts

.PHONY: demo test setup lint format export notebooks browser badges map readme docs lock clean help

demo: $(READY)  ## the whole pipeline on embedded data, into $(OUT)
	$(BIN)/r2genkg demo --out $(OUT)

setup: $(READY)  ## the virtual environment with everything that the demo and the tests need

test: lint  ## lint, types, notebooks in step with the modules, every notebook, tests/
	$(BIN)/python scripts/check_sync.py
	$(BIN)/python scripts/badges.py --check
	$(BIN)/python scripts/house_map.py --check
	$(BIN)/python scripts/draw_architecture.py --check
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

lint: $(READY)  ## linter, formatter and type checker
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff check --select E501 nbs
	$(BIN)/ruff format --check --quiet nbs tests benchmarks scripts
	$(BIN)/mypy

format: $(READY)  ## notebooks, tests, benchmarks and scripts in the house format
	$(BIN)/ruff format nbs tests benchmarks scripts

export: $(READY)  ## notebooks -> modules, outputs cleaned
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean

notebooks: export  ## execute every notebook and store its outputs
	$(BIN)/python scripts/run_notebooks.py && $(BIN)/nbdev_clean

browser: $(READY)  ## three notebooks in JupyterLab in headless Chromium (apt-get install chromium)
	R2GENKG_NOTEBOOKS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/use/test_browser.py

badges: $(READY)  ## Open-in-Colab badge and install cell of every notebook, from settings.ini
	$(BIN)/python scripts/badges.py

map: export  ## the map of chapters, the links between notebooks, the drawing of the architecture
	$(BIN)/python scripts/house_map.py
	$(BIN)/python scripts/draw_architecture.py

readme:  ## nbs/index.ipynb -> README.md
	$(BIN)/jupyter nbconvert --to markdown --no-input --stdout nbs/index.ipynb | sed "s|](\.\./|](|g" > README.md   # links from the root, not from nbs/

docs: $(VENV)/.r2genkg-docs  ## the documentation site, into _docs/site
	PYTHONPATH=. $(BIN)/python scripts/make_docs.py
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/python scripts/make_docs.py --check-links

lock:  ## write the tested versions
	$(BIN)/pip freeze --exclude-editable | grep -vE '@|^(nvidia|cuda|triton|llm|llama)' | sed 's/$$/ ; python_version >= "3.11"/' > requirements.lock

$(READY): settings.ini setup.py requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[train,app,llm,smollm2,dev]'
	touch $@

$(VENV)/.r2genkg-docs: settings.ini setup.py requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[docs]'
	touch $@

clean:  ## remove build products, not the environment
	rm -rf build dist *.egg-info demo_out _docs .pytest_cache .ruff_cache .mypy_cache

help:
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*##/  /'
