# make fit        train a fuser on the built-in pair
# make evaluate   say what the newest fuser's cache communication gave
# make test       run the quick tests
# make test-all   run all tests: also kills, clusters, whole sweeps and many processes
# make ui         look at the runs in MLflow
# make lint       check style and format
# Each sets up .venv first, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: fit evaluate test test-all ui lint

fit: .venv/ready
	@echo "== training a fuser on the built-in pair (about a minute on 2 cores)"
	$(BIN)/python -m c2c_lightning fit --config conf/base.yaml

evaluate: .venv/ready
	@echo "== evaluating the newest fuser on the built-in pair (about a minute on 2 cores)"
	$(BIN)/python -m c2c_lightning test --config conf/eval/nano.yaml

# By file, so that what the tests of a file share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: .venv/ready
	@echo "== running the quick tests (about 10 minutes on 2 idle cores)"
	$(PYTEST) -m "not slow"

test-all: .venv/ready
	@echo "== running all tests (about 20 minutes on 2 idle cores)"
	$(PYTEST)

ui: .venv/ready
	@echo "== MLflow on mlflow.db; stop it with Ctrl-C"
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/ready: pyproject.toml constraints.txt
	@echo "== setting up .venv (some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
