"""Runs, artifacts and models on an MLflow server. The only package that imports mlflow."""

import os

# Set before the first import of mlflow, which reads some of them then; whoever sets one outside keeps it.
# A call against a dead server gives up after about 15 s (refused) or 90 s (black hole), not after four
# minutes, and nothing about work on health data is reported to mlflow's own telemetry.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}.items():
    os.environ.setdefault(_name, _value)
