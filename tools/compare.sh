#!/usr/bin/env bash
# Set up the environment if need be, and compare ways to distil a student.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/compare.sh CONFIG [--methods gkd fgd gkd+fgd ...] [--seeds 3] [--epochs N] \
         [--strip STRIP] [--teacher-seed N] [--work-dir DIR] [--jobs N]

Trains the student that the distillation config CONFIG names without a teacher and with every
method, from the same start and on the same images in the same order, and writes a table and a plot.
The same command resumes where it was stopped.

Options: bash tools/compare.sh --options.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --options) set -- --help ;;
  '') usage >&2; exit 2 ;;
esac
python="$(bash "$root/tools/setup.sh" --print-python)"
exec "$python" "$root/tools/compare.py" "$@"
