# For NVIDIA GPUs, with a driver for CUDA 13 on the host: docker build -f docker/gpu.Dockerfile -t manu_jax:gpu .
FROM python:3.12-slim
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
