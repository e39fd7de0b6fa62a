# For NVIDIA GPUs, with a driver for CUDA 13 on the host: docker build -f docker/gpu.Dockerfile -t manu_jax:gpu .
FROM python:3.12-slim
# NCCL finds InfiniBand between nodes by these; without them it takes TCP.
RUN apt-get update && apt-get install --yes --no-install-recommends libibverbs1 ibverbs-providers \
    && rm -rf /var/lib/apt/lists/*
# Docker's --gpus sets them; enroot looks for them in the image, and shows no GPU without.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /manu_jax
COPY pyproject.toml README.md LICENSE ./
COPY manu_jax manu_jax
# CUDA, cuDNN and NCCL come as wheels.
RUN pip install --no-cache-dir '.[cuda,cloud]'
COPY configs configs
COPY tools tools
# Python is the first process of the container, so that SIGTERM reaches it: it saves and stops.
ENTRYPOINT ["python", "-m", "manu_jax.run"]
CMD ["--help"]
