#!/usr/bin/env bash
# Set up the environment if need be, and evaluate a detector.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/test.sh CONFIG CHECKPOINT [GPUS] [options of tools/test.py]

Prints COCO mAP of a distilled student, a teacher or any plain detector. CONFIG may be the
distillation config or the detector's own; CHECKPOINT the full one or the exported student.

Several processes or nodes: as in tools/train.sh.
Options: bash tools/test.sh --options.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/tools/launch.sh"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --options) launch test.py '' --help ;;
esac
if [ $# -lt 2 ]; then
  usage >&2
  exit 2
fi

config="$1"
checkpoint="$2"
gpus=''
shift 2
if is_number "${1:-}"; then
  gpus="$1"
  shift
fi
launch test.py "$gpus" "$config" "$checkpoint" "$@"
