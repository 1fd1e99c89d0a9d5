#!/usr/bin/env bash
# Set up the environment if need be, and build the documentation.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/build_docs.sh [options of sphinx-build]

Builds the site into docs/_build/html; open index.html there in a browser. No network is needed once
the packages in requirements/docs.txt are installed.
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
esac

python="$(bash "$root/tools/setup.sh" --print-python)"
if "$python" "$root/gkd/installed.py" mmdet 3 4; then
  echo "error: the documentation is built with MMDetection 2, and $python has 3." \
    "Name another environment: GKD_VENV=FOLDER bash tools/build_docs.sh" >&2
  exit 2
fi
"$python" -m pip install -q --disable-pip-version-check -r "$root/requirements/docs.txt"
out="$root/docs/_build/html"
# Warnings are errors: a link to nowhere, a docstring that cannot be read.
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$python" -m sphinx -q -W --keep-going "$@" \
  "$root/docs" "$out"
echo "wrote $out/index.html"
