# make demo      the main job, on the world that ships with the package
# make test      style, types and tests
# make recipes   the paper's recipes on made-up data sets and random weights: ten to twenty minutes
# make stress    kills, full disks and mutated media, as many as are wanted; actors killed on Ray
#
# All make their own environment in .venv first. It takes Python 3.11 or 3.12; where `python3`
# is another: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test recipes stress style types tests

demo: $(READY)
	$(BIN)/cmcr run

test: style types tests

recipes: $(READY)
	$(BIN)/python tests/recipes.py

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not see through the mapping of folders to packages, so an installed copy is
# checked.
types: $(READY)
	rm -rf build
	$(BIN)/uv pip install --quiet --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p cmcr

# Tests that measure time have the machine to themselves; the others take the demo's store from
# them. What was skipped, and what would make it run, stands in the last lines.
tests: $(READY)
	rm -rf build/demo
	$(BIN)/python -m pytest -m timed --demo=build/demo $$(grep -rl --include='test_*.py' mark.timed tests)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not timed' -n 2 --dist loadfile --no-loadscope-reorder \
		--demo=build/demo

# Kills, full disks and mutated media: make stress STRESS='--kills 1000 --full 200 --media 10000'
stress: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/stress.py $(STRESS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/on_ray.py --kills 2

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[dev]'
	touch $@
