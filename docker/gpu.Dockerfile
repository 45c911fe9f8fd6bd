# Workers with GPUs: the default wheels of torch bring CUDA; the machine brings the driver and NVIDIA's container runtime.
# docker build -f docker/gpu.Dockerfile -t clipsweep-gpu:0.1.0 .
FROM python:3.11.7-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /opt/clipsweep
COPY --chown=ray . .
RUN pip install -c docker/constraints.txt -e ".[ray]"
USER ray
