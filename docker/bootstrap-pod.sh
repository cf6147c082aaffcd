#!/bin/sh
# A bare rented machine with Python 3.11 and git becomes one that trains:
#   git clone REPOSITORY ehrtrack && sh ehrtrack/docker/bootstrap-pod.sh pod.env
# pod.env is the file that `ehrtrack server` or docker/add-user.sh wrote; without it runs stay in mlflow.db.
set -eu
env_file=${1:-}
if [ -n "$env_file" ]; then
    env_file=$(cd "$(dirname "$env_file")" && pwd)/$(basename "$env_file")
    set -a
    . "$env_file"
    set +a
fi
cd "$(dirname "$0")/.."
make install
.venv/bin/ehrtrack doctor
cat <<END
ready. Now:
  cd $(pwd) && . .venv/bin/activate${env_file:+ && set -a && . $env_file && set +a}
  mlflow run . --env-manager local --experiment-name gi_bleed -e pretrain -P config=projects/gi_bleed/pretrain.toml
END
