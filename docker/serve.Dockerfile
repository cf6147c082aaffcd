# A machine that answers requests with a registered model: `ehrtrack serve` for others than this machine.
#   docker build -f docker/serve.Dockerfile --build-arg GIT_COMMIT=$(git rev-parse HEAD) -t ehrtrack-serve .
#   docker run --env-file serve.env -p 127.0.0.1:8000:8000 ehrtrack-serve models:/gi_bleed@champion
# serve.env has MLFLOW_TRACKING_URI with its login, and EHRTRACK_SERVE_TOKEN (`openssl rand -hex 32`).
# docker/pin-images.sh pins it by its digest
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}

ARG GIT_COMMIT=unknown
ENV EHRTRACK_GIT_COMMIT=$GIT_COMMIT \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml setup.py LICENSE README.md ./
COPY ehrtrack ehrtrack
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home server
USER server

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# exec form: SIGTERM reaches the program, which answers what is in flight
ENTRYPOINT ["ehrtrack", "serve", "--host", "0.0.0.0"]
CMD ["--help"]
