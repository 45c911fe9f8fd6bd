#!/usr/bin/env bash
# Everything that must hold before a change lands: style, import contracts, types, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
lint-imports
mypy
pyright -p .src --pythonpath "$(command -v python)"
python -m pytest -n 2 --dist worksteal -m "not slow" --cov=clipsweep.projection \
    --cov=clipsweep.distill --cov=clipsweep.pipeline --cov=clipsweep.tools \
    --cov-report=
python -m pytest -m slow --cov=clipsweep.projection --cov=clipsweep.distill \
    --cov=clipsweep.pipeline --cov=clipsweep.tools --cov-append \
    --cov-report=term:skip-covered --cov-fail-under=93
