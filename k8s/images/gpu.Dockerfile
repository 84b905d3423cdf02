# docker build --file k8s/images/gpu.Dockerfile --tag REGISTRY/ingot:0.1.0-gpu .
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# CUDA comes with the requirements, the driver with the node. `compile: true` needs a compiler; KubeRay before
# 1.7 asks Ray by wget whether it is well.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libnuma1 wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --user-group --create-home ingot
WORKDIR /home/ingot
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

COPY requirements/gpu.txt requirements/
RUN pip install --no-deps --require-hashes --requirement requirements/gpu.txt

COPY pyproject.toml README.md LICENSE source/
COPY ingot source/ingot
COPY k8s source/k8s
COPY recipes source/recipes
RUN pip install --no-deps --no-build-isolation ./source \
 && mv source/recipes recipes \
 && rm -rf source \
 && chown ingot:ingot .

# The user 1000 can't write __pycache__, and the image comes without those of the standard library: each start of
# Ray would compile its modules again, in more time and memory. Some packages carry templates that are no Python.
RUN python -m compileall -q -j 0 /usr/local/lib/python3.11 || true

# By number, so that Kubernetes can see that it is not root.
USER 1000:1000
