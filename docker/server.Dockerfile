# The tracking server: the same mlflow as the clients', its login, a PostgreSQL driver, and S3.
# docker/pin-images.sh pins it by its digest
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}

RUN pip install --no-cache-dir "mlflow[auth]==3.17.2" "psycopg2-binary>=2.9,<3" "boto3>=1.34,<2" \
    && useradd --create-home mlflow \
    && mkdir /artifacts \
    && chown mlflow /artifacts
COPY ehrtrack/server/guard.py /opt/mlflow/
USER mlflow
WORKDIR /home/mlflow

# Lean: one process, one worker and no job runner take 0.3 GB instead of 2.5 GB.
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["python", "/opt/mlflow/guard.py", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--app-name", "basic-auth"]
