#!/bin/sh
#SBATCH --job-name=ehrtrack
#SBATCH --array=1-8                 # so many workers; each takes the next cell of the study until none is left
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300           # five minutes before the end, so that the last snapshot is kept
#SBATCH --requeue                   # a worker that lost its node is started again, and continues
#SBATCH --open-mode=append
#SBATCH --output=ehrtrack-%A_%a.log
# Workers of a study on Slurm:  sbatch docker/slurm.sh projects/gi_bleed/study.toml
# Beside it lies pod.env (of `ehrtrack server`), or runtime.storage and MLFLOW_TRACKING_URI name places that all nodes see.
# GPUs, memory and partition are options of sbatch: sbatch --gpus-per-task=1 --mem=16G -p gpu docker/slurm.sh STUDY
set -eu
study=${1:?usage: sbatch docker/slurm.sh STUDY.toml}
cd "${SLURM_SUBMIT_DIR:-.}"
if [ -f pod.env ]; then
    set -a
    . ./pod.env
    set +a
fi
# exec: Slurm's SIGTERM reaches the worker itself
exec "${EHRTRACK:-.venv/bin/ehrtrack}" work "$study"
