#!/usr/bin/env bash
# Set up the environment if need be, and run the tests.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${1:-}" in
  -h | --help)
    echo 'usage: bash tools/run_tests.sh [pytest arguments, paths relative to the repository]'
    exit 0 ;;
esac

python="$(bash "$root/tools/setup.sh" --print-python)"
cd "$root"
# Small tensors: more threads only get into each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest "$@"
