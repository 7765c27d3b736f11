# medsiam in a container, for GPU or CPU.
#
#   docker build -t medsiam .                               CUDA wheels of torch
#   docker build -t medsiam --build-arg TORCH_INDEX=cpu .   CPU wheels, far smaller
#
#   docker run --rm --gpus all -v "$PWD:/data" -v medsiam-key:/home/medsiam/.config \
#       medsiam compare /data/prior /data/current --out /data/result

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=default
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/medsiam
ENV PATH=/opt/medsiam/bin:$PATH
WORKDIR /src
# torch first: it is the largest layer and changes least.
COPY constraints.txt ./
RUN if [ "$TORCH_INDEX" = default ]; then \
        pip install -c constraints.txt torch; \
    else \
        pip install -c constraints.txt torch --index-url "https://download.pytorch.org/whl/$TORCH_INDEX"; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY medsiam ./medsiam
RUN pip install -c constraints.txt .

FROM python:${PYTHON}-slim
# Nothing here calls home.
ENV PATH=/opt/medsiam/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DO_NOT_TRACK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Lays out the report's PDF.
RUN apt-get update && apt-get install -y --no-install-recommends libpango-1.0-0 libpangoft2-1.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 medsiam \
    && install -d -o medsiam -g medsiam /data /home/medsiam/.config
COPY --from=build /opt/medsiam /opt/medsiam
USER medsiam
WORKDIR /data
ENTRYPOINT ["medsiam"]
CMD ["--help"]
