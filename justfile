# Shortcuts for contributors; .ci/run is the truth. `just` lists them.

python := ".venv/bin/python"

# List the shortcuts.
default:
    @just --list

# Make the virtual environment and install what tests, linters and docs need.
install:
    python3 -m venv .venv
    .venv/bin/pip install -c constraints.txt -e ".[dev,docs]"

# Run the tests, or those named: just test tests/methods/test_config.py -k preset
test *arguments:
    HF_HUB_OFFLINE=1 {{python}} -m pytest {{arguments}}

# Check style and types.
lint:
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy

# Put imports and layout in order.
format:
    .venv/bin/ruff check --fix .
    .venv/bin/ruff format .

# Build the documentation into site/; a broken link is an error.
docs:
    .venv/bin/mkdocs build --strict

# Everything that must hold before a change lands.
ci:
    bash .ci/run
