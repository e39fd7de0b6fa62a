# For TPU VMs and GKE: docker build -f docker/tpu.Dockerfile -t manu_jax:tpu .
FROM python:3.12-slim
WORKDIR /manu_jax
COPY pyproject.toml README.md LICENSE ./
COPY manu_jax manu_jax
RUN pip install --no-cache-dir '.[tpu,cloud]'
COPY configs configs
COPY tools tools
# Python is the first process of the container, so that SIGTERM reaches it: it saves and stops.
ENTRYPOINT ["python", "-m", "manu_jax.run"]
CMD ["--help"]
