# fedward's verbs. Each makes what it needs; nothing has to be installed by hand but Python 3.11.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
FOLDER ?= .fedward

.PHONY: install dev demo up down test check bench compose-test chart chart-test clean

install: $(VENV)/.installed

dev: $(VENV)/.developed

# torch comes first and alone: its CPU build satisfies everything that asks for torch later, and a
# resolver that sees both would fetch several GB of CUDA libraries on a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $@

demo: install      ## three hospitals on this machine, from nothing to a result
	$(BIN)/fedward demo --folder $(FOLDER)

up: install        ## start the federation again and keep it running
	$(BIN)/fedward up --folder $(FOLDER)

down: install      ## stop it
	$(BIN)/fedward down --folder $(FOLDER)

# Most tests wait for real processes, so two at a time take half as long on two cores. Containers and
# the cluster are one each, so theirs take turns. The folder is short because a Unix socket's path is.
test: dev          ## everything
	folder=$$(mktemp -d /tmp/fw.XXXX) && $(BIN)/python -m pytest -n 2 --dist loadfile \
		--ignore tests/docker --ignore tests/helm/test_live.py --basetemp $$folder/t && rm -rf $$folder
	$(BIN)/python -m pytest tests/docker tests/helm/test_live.py

check: dev         ## style, types, architecture; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

compose-test: dev  ## the containers, for real; needs a Docker engine with compose
	$(BIN)/python -m pytest -v -s tests/docker

chart: install     ## the chart's schema, reference page and copies of boards and rules
	$(BIN)/python helm/tools/generate.py

chart-test: dev    ## the chart; needs helm, and a cluster for the live part
	$(BIN)/python helm/tools/generate.py --check
	$(BIN)/python -m pytest tests/helm

bench: install     ## figures of the README, each with its command
	$(BIN)/python -m bench

clean:             ## remove the environment and every local federation
	rm -rf $(VENV) $(FOLDER)
