# syntax=docker/dockerfile:1
# Targets: the last one serves on a GPU (and falls back to the CPU without one); `--target cpu` is small and CPU only.

ARG CUDA_IMAGE=nvidia/cuda:13.0.2
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${CUDA_IMAGE}-devel-ubuntu24.04 AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/*
# PyCUDA without cuRAND, which the runtime's base image lacks.
RUN python3 -m venv /opt/lacuna \
    && printf 'CUDA_ROOT = "/usr/local/cuda"\nCUDA_ENABLE_CURAND = False\n' > /etc/aksetup-defaults.py
ENV PATH=/opt/lacuna/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# Heavy and seldom changed, and what the kernels need: a layer of its own.
RUN pip install --constraint constraints.txt torch numpy pycuda pydantic safetensors
# The image needs no compiler at run time: it has every kernel for these GPUs. For your own alone it is built much faster.
ARG GPUS="sm_80 sm_86 sm_89 sm_90 sm_100 sm_120 compute_80"
COPY kernels kernels
# hadolint ignore=SC2086
RUN PYTHONPATH=kernels python3 -m lacuna_kernels.cuda.fill --cache /opt/lacuna/cache/lacuna --gpus $GPUS
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY service service
RUN pip install --constraint constraints.txt '.[gpu,formats]'

FROM ${CUDA_IMAGE}-base-ubuntu24.04 AS runtime
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lacuna
COPY --from=build /opt/lacuna /opt/lacuna
COPY deploy/models /models
# The kernels are looked for in $XDG_CACHE_HOME/lacuna.
ENV PATH=/opt/lacuna/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    XDG_CACHE_HOME=/opt/lacuna/cache LACUNA_HOST=0.0.0.0 LACUNA_PORT=8000 LACUNA_REPOSITORY=/models
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lacuna"]
CMD ["serve"]

FROM ${PYTHON_IMAGE} AS cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch's own index has the build without CUDA, a tenth of the size; its dependencies come with the next step.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY constraints.txt ./
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lacuna \
    && pip install --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY kernels kernels
COPY service service
RUN pip install --constraint constraints.txt '.[formats]'
COPY deploy/models /models
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    LACUNA_HOST=0.0.0.0 LACUNA_PORT=8000 LACUNA_REPOSITORY=/models LACUNA_DEVICE=cpu
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lacuna"]
CMD ["serve"]

# The default target is the last stage.
FROM runtime
