#!/usr/bin/env bash
# Everything that must hold before a change lands: style, the import contract, types, tests, slow tests.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
lint-imports
mypy
python -m pytest -n 2 --dist worksteal -m "not slow" --cov=clipsweep.projection --cov=clipsweep.distill --cov-report=term:skip-covered --cov-fail-under=90
python -m pytest -m slow
