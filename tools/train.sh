#!/usr/bin/env bash
# Set up the environment if need be, and train.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/train.sh [CONFIG [GPUS]] [options of tools/train.py]

  no CONFIG    run the quickstart: data, teacher, student, distilled student, a table
  CONFIG       train this config in one process, on a GPU if there is one
  CONFIG GPUS  train it in so many processes of this node, a GPU each; without GPUs, on the CPU

Several nodes: run it on each with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR and, if port 29500 is
taken, MASTER_PORT set. With Slurm: tools/slurm_train.sh. PET_MAX_RESTARTS=3 starts all processes
again up to three times when one has ended, unless by an error that you must fix yourself; they
resume from the last checkpoint.
Options: bash tools/setup.sh && python tools/train.py --help, or bash tools/train.sh --options.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/tools/launch.sh"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --options) launch train.py '' --help ;;
  # The quickstart starts its own processes; the same command resumes after those that finished.
  '' | -*) unset PET_MAX_RESTARTS; launch train.py '' "$@" ;;
esac

config="$1"
gpus=''
shift
if is_number "${1:-}"; then
  gpus="$1"
  shift
fi
launch train.py "$gpus" "$config" "$@"
