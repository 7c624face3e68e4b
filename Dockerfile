# syntax=docker/dockerfile:1
# Targets: the last one serves on a GPU (and falls back to the CPU without one); `--target cpu` is small and CPU only.

FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 CUDA_ROOT=/usr/local/cuda
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev python3-venv g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/lacuna
ENV PATH=/opt/lacuna/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# Heavy and seldom changed: a layer of its own.
RUN pip install --constraint constraints.txt torch numpy pycuda
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY kernels kernels
COPY service service
RUN pip install --constraint constraints.txt '.[gpu,formats]'
COPY deploy/models deploy/models
# The image needs no compiler at run time: kernels of the demo models for the GPUs of today.
RUN python3 -m lacuna_kernels.cuda.compiler --fill /opt/lacuna/kernels --architectures sm_80,sm_86,sm_89,sm_90,sm_100,sm_120

FROM nvidia/cuda:13.0.2-base-ubuntu24.04 AS runtime
ENV DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lacuna
COPY --from=build /opt/lacuna /opt/lacuna
COPY deploy/models /models
ENV PATH=/opt/lacuna/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
    LACUNA_HOST=0.0.0.0 LACUNA_PORT=8000 LACUNA_REPOSITORY=/models LACUNA_KERNEL_CACHE=/opt/lacuna/kernels
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lacuna"]
CMD ["serve"]

FROM python:3.12-slim AS cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE CHANGELOG.md ./
# PyTorch's own index has the build without CUDA, a tenth of the size.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lacuna \
    && pip install --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0'
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
