# Each target makes .venv by itself. `make demo` and `make test` are all the set-up that a fresh machine needs.
PYTHON ?= python3
STACK_PYTHON ?= python3.12
BIN := .venv/bin
STACK := .venv-stack/bin
STACK_FOUND := $(shell $(STACK_PYTHON) --version 2> /dev/null)
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALL := $(BIN)/python $(PIP)
DIST := dist
TRANSFORMERS4 := transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2 \
	requests==2.34.2 urllib3==2.8.0 charset-normalizer==3.5.3 certifi==2026.7.22 idna==3.20
# Programs that tests and benchmarks compare with, each in an environment of its own: .venv-peers/NAME.
PEERS := mergekit text-dedup datatrove
PEER_mergekit := -c constraints.txt mergekit==0.1.5
PEER_text-dedup := text-dedup==0.4.0
PEER_datatrove := datatrove==0.10.1
PEER_TESTS = $(shell grep -lrE 'MCONV_(MERGEKIT|TEXT_DEDUP|DATATROVE)|import peft|from peft' tests --include='test_*.py')
PACKAGES := shard convert train verify hub cli

.PHONY: demo demo-real test test-slurm test-stack test-peers stack check docs format bench bench-gpu wheel clean

demo: .venv/base  ## the whole path once, offline, on a small model
	$(BIN)/mconv demo --out mconv-demo --overwrite

demo-real: .venv/demo  ## a real model of 135 M parameters from PyPI, there and back, and what it answers before and after
	$(BIN)/python examples/real.py --out mconv-demo-real

test: export PYTHONDONTWRITEBYTECODE :=  # the many interpreters that tests start compile once
test: .venv/test  ## all tests that need no GPU and no big machine
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not big"

test-slurm: .venv/test  ## runs on a real Slurm, started here (apt-get install slurmctld slurmd slurm-client munge), and on two hosts
	$(BIN)/python -m pytest tests/train/test_slurm.py tests/train/test_restarts.py

test-stack: export PYTHONDONTWRITEBYTECODE :=
test-stack: stack  ## the tests that touch megatron, on Python 3.12 with the newest megatron-core
ifdef STACK_FOUND
	$(STACK)/python -m pytest -n 2 --dist loadfile -m "megatron and not once and not gpu and not big" --jaxtyping-packages=
else
	@echo "make test-stack: skipped: no $(STACK_PYTHON)"
endif

test-peers: .venv/test $(PEERS:%=.venv-peers/%/installed)  ## the tests beside other programs: peft, mergekit, text-dedup, datatrove
	MCONV_MERGEKIT=$(CURDIR)/.venv-peers/mergekit/bin/python MCONV_TEXT_DEDUP=$(CURDIR)/.venv-peers/text-dedup/bin/python \
	MCONV_DATATROVE=$(CURDIR)/.venv-peers/datatrove/bin/python $(BIN)/python -m pytest -n 2 --dist loadfile $(PEER_TESTS)

stack: $(if $(STACK_FOUND),.venv-stack/test)  ## what test-stack needs, where there is a Python 3.12

check: .venv/test build/types  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p mconv

docs: .venv/docs  ## the site, from docs/ and mkdocs.yml, into build/site; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: .venv/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/base  ## ratios against what a user would pick instead
	$(BIN)/python benchmarks/convert.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/train.py --layouts

bench-gpu: .venv/base  ## training on one NVIDIA GPU beside transformers: tokens/s, MFU, memory, the costliest kernels
	$(BIN)/python benchmarks/train.py --device cuda --model 1b --dtypes bf16 --steps 10 --profile --json bench-gpu.json

wheel: .venv/test  ## the sdist, and the wheel made from it, into dist/; nothing is downloaded
	rm -rf $(DIST) build/lib build/bdist.* mconv.egg-info
	$(BIN)/python -c 'from setuptools.build_meta import build_sdist; build_sdist("$(DIST)")' > /dev/null
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation \
		--wheel-dir $(DIST) $(DIST)/mconv-*.tar.gz

clean:
	rm -rf .venv .venv-stack .venv-peers build dist mconv-demo mconv-demo-real bench-gpu.json *.egg-info

.venv/base: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(INSTALL) -e '.[train]'
	touch $@

.venv/demo: .venv/base
	$(INSTALL) -e '.[demo]'
	touch $@

.venv/docs: .venv/base
	$(INSTALL) -e '.[docs]'
	touch $@

.venv/test: .venv/base
	$(INSTALL) -e '.[test]'
	touch $@

.venv-stack/test: pyproject.toml constraints.txt
	test -d .venv-stack || $(STACK_PYTHON) -m venv .venv-stack
	$(STACK)/python $(PIP) -e '.[test]'
	rm -rf .venv-stack/transformers4  # apart from the other packages: exports are read by it, nothing else
	$(STACK)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-stack/transformers4 $(TRANSFORMERS4)
	touch $@

.venv-peers/%/installed: Makefile
	test -d $(@D) || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_$*)
	touch $@

# mypy wants a folder named mconv; the repository root is the package, whatever its own name. So: links, in build/.
build/types: Makefile
	rm -rf $@ && mkdir -p $@/mconv
	for part in $(PACKAGES) $(wildcard *.py) py.typed; do ln -s $(CURDIR)/$$part $@/mconv/$$part; done
