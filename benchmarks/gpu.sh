#!/usr/bin/env bash
# All that is measured on a GPU, in eight minutes at most: tests/gpu, two devices, and the rows of benchmarks/rows/gpu.py.
#
#   benchmarks/gpu.sh              on the CUDA device that torch sees; results go to benchmarks/results
#   DEVICE=cpu benchmarks/gpu.sh   tries all of it on a CPU at tiny sizes; its results say so, and go to a folder beside
#
# What has not ended when the time is over is ended; rows that were measured until then are kept.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
python=${PYTHON:-python}
end=$((SECONDS + 470))
failed=0
case $device in
  cuda) out=benchmarks/results; quick=() ;;
  cpu) out=$(mktemp -d); quick=(--quick) ;;
  *) echo "DEVICE is $device; it takes cuda or cpu" >&2; exit 2 ;;
esac

stage() {
  local left=$((end - SECONDS))
  echo "== $1 ($left s are left)"
  shift
  if ((left < 5)); then echo "no time is left for it"; failed=1; return; fi
  timeout --signal=INT --kill-after=10 "$left" "$@" || { echo "ended with exit code $?"; failed=1; }
}

export BENCHMARKS_DEVICE=$device
rows=$("$python" -m benchmarks --list | awk '$1 ~ /^gpu-|^large-batches$/ {print $1}')
stage "tests/gpu" "$python" -m pytest -q tests/gpu
stage "two devices" "$python" tests/training/two_devices.py
# shellcheck disable=SC2086  # names of rows have no spaces
stage "rows" "$python" -m benchmarks "${quick[@]}" --out "$out" --only $rows
cat "$out"/*.md 2>/dev/null | tail -n 40
exit $failed
