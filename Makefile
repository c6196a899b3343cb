# make demo   set up, then train a small real model with and without a fault and analyse both
# make test   set up, then the fast tests (under 10 minutes on two cores)
# make test-slow   what takes minutes, with Transformers, Lightning and Accelerate, which it installs first
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

demo: $(VENV)/installed
	$(BIN)/stabkit demo

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/installed $(VENV)/frameworks
	$(BIN)/python -m pytest -m slow

# mypy reads the built wheel: there the packages lie where they are imported from. An old build/ would add modules long gone.
lint: $(VENV)/installed
	$(BIN)/ruff check .
	rm -rf build && mkdir -p build/types
	$(BIN)/python -m pip wheel -q --no-deps -w build/types .
	cd build/types && ../../$(BIN)/python -m zipfile -e *.whl . && cd ../.. && MYPYPATH=build/types $(BIN)/mypy -p stabkit

$(VENV)/installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard hooks/statistics/_*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# Kept apart: nothing but the slow tests needs them. The constraints keep torch as it is.
$(VENV)/frameworks: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[frameworks]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info hooks/statistics/*.so
