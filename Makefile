# make fit        train a fuser on the built-in pair
# make evaluate   say what the newest fuser's cache communication gave
# make real       the same with two real language models: fetch, train, evaluate (less than an hour on 2 cores)
# make told       the same with a text that one of the two alone reads and hands over (less than two hours on 2 cores)
# make test       run the quick tests
# make test-all   run all tests: also kills, clusters, whole sweeps and many processes
# make ui         look at the runs in MLflow
# make lint       check style and format
# Each sets up .venv first, with the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

# The real pair's questions: files of ARC and OpenBookQA in this folder, or the hub's where there is none.
export REAL_DATA ?= $(wildcard ../shared/data/choices)
REAL := conf/real$(if $(REAL_DATA),,/hub)
# The folder of the passages that are handed over.
export REAL_TEXTS ?= $(wildcard ../shared/data/passages)

.PHONY: fit evaluate real told texts test test-all ui lint

fit: .venv/ready
	@echo "== training a fuser on the built-in pair (about a minute on 2 cores)"
	$(BIN)/python -m c2c_lightning fit --config conf/base.yaml

evaluate: .venv/ready
	@echo "== evaluating the newest fuser on the built-in pair (about a minute on 2 cores)"
	$(BIN)/python -m c2c_lightning test --config conf/eval/nano.yaml

# Each step goes on where it was cut off.
real: .venv/ready
	@echo "== fetching SmolLM2-135M-Instruct and Gemma-3-270M (350 MB)"
	$(BIN)/python -m benchmarks.real_pair
	@echo "== training a fuser between them (about 20 minutes on 2 cores)"
	$(BIN)/python -m c2c_lightning fit --config conf/real/smollm2_from_gemma3.yaml --config $(REAL)/questions.yaml \
		$(if $(wildcard runs/real),--ckpt_path runs/real)
	@echo "== evaluating it (about 20 minutes on 2 cores)"
	$(BIN)/python -m c2c_lightning test --config $(REAL)/evaluation.yaml

told: texts .venv/ready
	@echo "== fetching SmolLM2-135M-Instruct and Gemma-3-270M (350 MB)"
	$(BIN)/python -m benchmarks.real_pair
	@echo "== training a mapper of passages that Gemma alone reads (about an hour on 2 cores)"
	$(BIN)/python -m c2c_lightning fit --config conf/real/smollm2_from_gemma3.yaml --config conf/real/told.yaml \
		$(if $(wildcard runs/told),--ckpt_path runs/told)
	@echo "== evaluating it (about 15 minutes on 2 cores)"
	$(BIN)/python -m c2c_lightning test --config conf/real/told_evaluation.yaml

texts:
	@test -f "$(REAL_TEXTS)/nq_oracle.jsonl" || { echo "error: '$(REAL_TEXTS)/nq_oracle.jsonl' is not there:" \
		"make told REAL_TEXTS=FOLDER needs a folder with nq_oracle.jsonl, a line for each question, of which it trains on" \
		"the first 1,800 and asks others: {\"context\": a passage, \"question\": ..., \"reference\": [answers]}" >&2; exit 1; }

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
