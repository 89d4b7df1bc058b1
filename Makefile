# make demo    create .venv, install, run the main job
# make test    create .venv, install, run the tests
# make check   create .venv, install, run ruff and the type checker
#
# make test-lowest    create .venv-lowest with the lowest versions that pyproject.toml allows, run the
#                     tests that need neither data sets nor much time. PYTHON: 3.10 to 3.12. Where pip
#                     finds no other build of torch 2.4.1, it downloads the CUDA build (with its
#                     libraries, 2.5 GB).
#
# PYTHON       the interpreter that creates .venv (3.10 or newer)
# DEMO_ARGS    further arguments of the demo: make demo DEMO_ARGS="--dataset Cora --model gat"
# TEST_ARGS    further arguments of pytest:   make test TEST_ARGS="-k smoothness -x"

PYTHON ?= python3
VENV ?= .venv
LOWEST_VENV ?= .venv-lowest
DEMO_ARGS ?=
TEST_ARGS ?=

bin := $(VENV)/bin
stamp := $(VENV)/.installed

# One thread per process: the tests run in one process per core, and the pools of torch, OpenMP and
# TVM would otherwise fight over the same cores.
test_threads := OMP_NUM_THREADS=1 TVM_NUM_THREADS=1

# What depends on the version of torch and PyG.
version_tests := $(addprefix tests/,tracing passes quantizers smoothness backends/test_parity.py \
	test_converter.py test_coverage.py test_finetuning.py test_public_api.py)

.PHONY: install demo test test-lowest check format clean
.DEFAULT_GOAL := demo

demo: $(stamp)
	$(bin)/gnnquant demo $(DEMO_ARGS)

test: $(stamp)
	$(test_threads) $(bin)/python -m pytest --numprocesses auto $(TEST_ARGS)

test-lowest: $(LOWEST_VENV)/.installed
	$(test_threads) $(LOWEST_VENV)/bin/python -m pytest --numprocesses auto $(version_tests) $(TEST_ARGS)

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
	$(call install_into,$(VENV),constraints.txt)

$(LOWEST_VENV)/.installed: pyproject.toml constraints-lowest.txt
	$(call install_into,$(LOWEST_VENV),constraints-lowest.txt)

define install_into
@$(PYTHON) -c 'import sys; sys.exit("gnnquant needs Python 3.10 or newer (make PYTHON=...), not " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --disable-pip-version-check --no-input --quiet -c $(2) -e ".[all,dev]"
@touch $(1)/.installed
endef

clean:
	rm -rf $(VENV) $(LOWEST_VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
