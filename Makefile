# make demo    create .venv, install, run the main job
# make test    create .venv, install, run the tests
# make check   create .venv, install, run ruff and the type checker
#
# PYTHON       the interpreter that creates .venv (3.10 or newer)
# DEMO_ARGS    further arguments of the demo: make demo DEMO_ARGS="--dataset Cora --model gat"
# TEST_ARGS    further arguments of pytest:   make test TEST_ARGS="-k smoothness -x"

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=

bin := $(VENV)/bin
stamp := $(VENV)/.installed

# One thread per process: the tests run in one process per core, and the pools of torch, OpenMP and
# TVM would otherwise fight over the same cores.
test_threads := OMP_NUM_THREADS=1 TVM_NUM_THREADS=1

.PHONY: install demo test check format clean
.DEFAULT_GOAL := demo

demo: $(stamp)
	$(bin)/gnnquant demo $(DEMO_ARGS)

test: $(stamp)
	$(test_threads) $(bin)/python -m pytest --numprocesses auto $(TEST_ARGS)

check: $(stamp)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

format: $(stamp)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

install: $(stamp)

# The stamp is written last, so that an interrupted installation is taken up again.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("gnnquant needs Python 3.10 or newer (make PYTHON=...), not " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --disable-pip-version-check --no-input --quiet -c constraints.txt -e ".[all,dev]"
	@touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
