# The API of trained runs, on a CPU: docker build -f docker/serve.Dockerfile -t sensorium-serve .
# Runs are mounted below /runs, and the key at /run/secrets/key (docs/serve.md).
FROM python:3.12-slim

# A user without rights: what a picture might make a decoder do, it does as nobody.
RUN useradd --create-home --uid 10001 sensorium

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# torch for CPUs comes first, from its own index: the one on PyPI brings gigabytes of CUDA along.
RUN grep -E '^(torch|torchvision)==' constraints.txt | sed 's/+.*//' > torch.txt \
    && pip install --no-cache-dir --requirement torch.txt --index-url https://download.pytorch.org/whl/cpu \
    && grep -vE '^(torch|torchvision)==' constraints.txt > others.txt \
    && pip install --no-cache-dir --constraint others.txt ".[serve]"

USER sensorium
WORKDIR /home/sensorium
EXPOSE 7870
# The address is the container's own loopback, which needs neither a key nor a name of its own.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7870/health', timeout=4)"]
ENTRYPOINT ["sensorium", "serve"]
CMD ["/runs", "--host", "0.0.0.0", "--key-file", "/run/secrets/key"]
