# The head, and workers without GPUs. TORCH_INDEX may name an index with torch's smaller wheels for CPUs.
# docker build -f docker/cpu.Dockerfile -t clipsweep-cpu:0.1.0 .
FROM python:3.11.7-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

ARG TORCH_INDEX=""
WORKDIR /opt/clipsweep
COPY --chown=ray . .
RUN pip install -c docker/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
    && pip install -c docker/constraints.txt -e ".[ray]"
USER ray
