#!/usr/bin/env bash
# Set up the environment if need be, and train on a Slurm cluster.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS='...'] \
       bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]

Starts GPUS processes, one a GPU, GPUS_PER_NODE on each node. The clone and its environment must lie
on a file system that all nodes see.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/tools/launch.sh"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
esac
if [ $# -lt 3 ]; then
  usage >&2
  exit 2
fi

partition="$1"
job_name="$2"
config="$3"
shift 3
gpus="${GPUS:-8}"
gpus_per_node="${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}"
read -r -a srun_args <<< "${SRUN_ARGS:-}"

python="$(bash "$root/tools/setup.sh" --print-python)"
command -v srun > /dev/null || { echo 'error: srun not found; is this a Slurm node?' >&2; exit 2; }
exec srun --partition "$partition" --job-name "$job_name" --gres "gpu:$gpus_per_node" \
  --ntasks "$gpus" --ntasks-per-node "$gpus_per_node" --cpus-per-task "${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 "${srun_args[@]+"${srun_args[@]}"}" \
  "$python" -u "$(path_of "$python" train.py)" "$config" --launcher slurm "$@"
