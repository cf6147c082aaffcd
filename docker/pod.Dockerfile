# A machine that trains: EHRTrack with CUDA torch (torch's wheel for Linux brings its CUDA libraries along).
#   docker build -f docker/pod.Dockerfile --build-arg GIT_COMMIT=$(git rev-parse HEAD) -t ehrtrack .
#   docker run --gpus all --env-file pod.env -v "$PWD/data:/app/data" ehrtrack finetune --config projects/…/finetune.toml
# docker/pin-images.sh pins it by its digest
ARG PYTHON_IMAGE=python:3.11-slim
FROM ${PYTHON_IMAGE}

# Without git the run's code version comes from the build; runs carry it as the tag ehrtrack.git_commit.
ARG GIT_COMMIT=unknown
ENV EHRTRACK_GIT_COMMIT=$GIT_COMMIT \
    PYTHONUNBUFFERED=1

WORKDIR /app
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml setup.py LICENSE README.md MLproject ./
COPY ehrtrack ehrtrack
COPY projects projects
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home trainer \
    && chown trainer /app
USER trainer

# exec form: SIGTERM from the pod's owner reaches the program, which then ends its run as KILLED
ENTRYPOINT ["ehrtrack"]
CMD ["--help"]
