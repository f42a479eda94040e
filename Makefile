# `make` alone lists the targets. Each one first sees to it that .venv holds the project (tools/install.py);
# where it does, nothing is installed.
.DEFAULT_GOAL := help
.PHONY: help install demo test quick lab export clean-notebooks outputs readme docs hooks fast-slic constraints wheel

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info<(3,10))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
NB ?=
FLAGS ?=

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

install: ## Install the project with its own environment in .venv (the others do this by themselves)
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; none was found. Name one with: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" tools/install.py

demo: install ## Train, compare and draw six small networks on synthetic images; ends with report.html
	@$(BIN)/medattn demo

test: install ## Run every test: notebooks in step, their cells, then pytest
	@echo "[1/3] Modules and notebooks are in step, and the notebooks are clean"
	@$(BIN)/python tools/check.py
	@echo "[2/3] The cells of every notebook (a few minutes)"
	@OMP_NUM_THREADS=1 $(BIN)/python tools/cells.py || { echo "To run one alone: $(BIN)/nbdev-test nbs/ROOM/NAME.ipynb"; exit 1; }
	@echo "[3/3] pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile || { echo "A test failed. To run one alone: $(BIN)/python -m pytest tests/FILE.py -k NAME"; exit 1; }

quick: install ## Run the tests that look at files only: notebooks, metadata, site (seconds)
	@$(BIN)/python tools/check.py && $(BIN)/python -m pytest tests/test_hygiene.py tests/test_metadata.py tests/test_site.py

lab: install ## Open JupyterLab on the index
	@$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(FLAGS) nbs/index.ipynb

export: install ## Write the library's modules from the notebooks
	@$(BIN)/nbdev-export

clean-notebooks: install ## Strip what does not belong in a notebook (execution counts, stray metadata)
	@$(BIN)/nbdev-clean

outputs: install ## Execute the notebooks and store their outputs; NB=path for one, FLAGS="slow" for flagged cells
	@OMP_NUM_THREADS=1 $(BIN)/nbdev-test $(if $(NB),"$(NB)") --save --flags "$(FLAGS)"
	@$(BIN)/nbdev-clean $(if $(NB),--fname "$(NB)")

readme: install ## Write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

docs: install ## Build the site in _docs (needs Quarto)
	@command -v quarto >/dev/null || { echo "The site is built by Quarto, which is not on this machine: see https://quarto.org/docs/get-started/"; exit 1; }
	@$(BIN)/nbdev-docs

hooks: install ## Teach git and Jupyter to clean, compare and merge notebooks (once a clone)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev-install-hooks

fast-slic: install ## Try again to build the optional fast-slic (needs a C++ compiler)
	@"$(PYTHON)" tools/install.py fast-slic

wheel: install ## Build the wheel in dist
	@$(BIN)/uv build --wheel --out-dir dist .

constraints: install ## Resolve constraints.txt anew, keeping the versions it has (add FLAGS=--upgrade for the newest)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header $(FLAGS) setup.py -o constraints.txt
