#!/usr/bin/env bash
# Distil a pair without a config: make one from the student's own, say what it does, and train it.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/distill.sh STUDENT TEACHER [GPUS] [--method NAME+NAME] [options of tools/train.py]

  STUDENT  CONFIG or CONFIG:CHECKPOINT; its config's data, schedule and head are used
  TEACHER  CONFIG:CHECKPOINT
  GPUS     processes of this node, a GPU each; without it one, on a GPU if there is one

A config is a path, or mmdet::FOLDER/FILE.py for one that the installed MMDetection ships. With
mmdet::..., CHECKPOINT may be `zoo`: the model zoo's weights, which are downloaded and verified.
--method   what is taught: gkd (default), class-space, or others and several, such as gkd+pkd

Both checkpoints, classes and the pair are checked; what will be taught, what is left out and why,
and what it costs is said before training; and the config that is used is kept in the work dir,
under its name, to edit and to train again with tools/train.sh.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/tools/launch.sh"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
esac
if [ $# -lt 2 ] || [[ "$1" == -* ]] || [[ "$2" == -* ]]; then
  usage >&2
  exit 2
fi

student="$1"
teacher="$2"
gpus=''
shift 2
if is_number "${1:-}"; then
  gpus="$1"
  shift
fi

python="$(bash "$root/tools/setup.sh" --print-python)"
config="$("$python" "$root/tools/distill.py" "$student" "$teacher" --gpus "${gpus:-1}" "$@")"

# What has gone into the config already is no option of the training any more.
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --method | --work-dir | --epochs) shift 2 ;;
    --method=* | --work-dir=* | --epochs=*) shift ;;
    --cfg-options)
      shift
      while [ $# -gt 0 ] && [[ "$1" != --* ]]; do shift; done
      ;;
    *)
      options+=("$1")
      shift
      ;;
  esac
done
launch train.py "$gpus" "$config" ${options[@]+"${options[@]}"}
