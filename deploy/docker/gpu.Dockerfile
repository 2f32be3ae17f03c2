# GPU image, from the lock. Not built here: no container engine was at hand. A test checks what can be read.
# The CUDA libraries are wheels of the lock; the host brings the driver (NVIDIA container toolkit). Not verified on a GPU.
#   docker build -f deploy/docker/gpu.Dockerfile -t rollmatch:0.1.0-gpu .
FROM python:3.11-slim-bookworm AS build
# Versions of Debian packages are not pinned: a release keeps no old ones.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir uv==0.13.9
WORKDIR /app
COPY requirements/gpu.lock requirements/gpu.lock
# Compiled now: user 1000 cannot write beside the packages, and would compile them again in every process.
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
# --no-deps: the lock is the whole truth, and torch===2.13.0 must be PyPI's build (ARCHITECTURE.md, "The stack").
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/venv/bin/uv pip install --python /opt/venv/bin/python --no-deps -r requirements/gpu.lock
COPY pyproject.toml README.md ./
COPY protocol protocol
COPY actors actors
COPY learner learner
COPY deploy deploy
RUN /opt/venv/bin/uv pip install --no-cache --python /opt/venv/bin/python --no-deps --no-build-isolation --editable .

FROM python:3.11-slim-bookworm
# A compiler stays: DeepSpeed and Triton build at their first start. KubeRay's own probes, where a
# manifest has none, want wget.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 rollmatch
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=1000:1000 /app /app
COPY --chown=1000:1000 configs /app/configs
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PATH=/opt/venv/bin:$PATH HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 1000:1000
# 503 when the run has made no progress for metrics.healthy_within_s. Meaningful where the container is a run.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9095/healthz', timeout=4)"]
# tini passes SIGTERM on: `docker stop --time 900` leaves a checkpoint.
ENTRYPOINT ["tini", "--"]
CMD ["rollmatch", "--help"]
