# syntax=docker/dockerfile:1
# longtake for CPU, or for NVIDIA GPUs:
#   docker build -t longtake .
#   docker build -t longtake:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# PyPI's torch for Linux contains CUDA; NVIDIA's container toolkit supplies the driver.

FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/longtake
# torch changes less often than the source, so it has a layer of its own.
COPY constraints.txt .
RUN /opt/longtake/bin/pip install --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY . .
RUN /opt/longtake/bin/pip install --constraint constraints.txt .

FROM python:3.12-slim
LABEL org.opencontainers.image.title=longtake \
      org.opencontainers.image.licenses=Apache-2.0
RUN useradd --create-home --uid 1000 longtake && \
    mkdir /data && chown longtake:longtake /data
COPY --from=build /opt/longtake /opt/longtake
ENV PATH=/opt/longtake/bin:$PATH \
    HF_HOME=/data/huggingface \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["longtake"]
CMD ["--help"]
