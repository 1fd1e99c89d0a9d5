#!/usr/bin/env bash
# Set up the environment if need be, and run the tests.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${1:-}" in
  -h | --help)
    echo 'usage: bash tools/run_tests.sh [pytest arguments, paths relative to the repository]'
    echo 'Without arguments: all tests on the CPU, then those of the GPU (-m gpu) if there is one.'
    echo 'The CPU runs them in as many processes as it has cores, at most 4; -n 0: in this one.'
    exit 0 ;;
esac

python="$(bash "$root/tools/setup.sh" --print-python)"
cd "$root"
# Small tensors: more threads only get into each other's way.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# On Linux, memory that nothing was written to then holds huge numbers. It often holds zeros else,
# and a test of a weight that was never set would fail now and then.
export MALLOC_PERTURB_=1
# A file's tests stay together: they share what is costly to make.
processes=(-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
if [ $# -gt 0 ]; then
  case " $* " in *' -m gpu '*) processes=(-n 0) ;; esac
  exec "$python" -m pytest "${processes[@]}" "$@"
fi
status=0
"$python" -m pytest "${processes[@]}" || status=$?
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  "$python" -m pytest -m gpu tests || status=$?
fi
exit "$status"
