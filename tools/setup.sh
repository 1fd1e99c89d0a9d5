#!/usr/bin/env bash
# Make or reuse the Python environment of this clone.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash tools/setup.sh [--mmdet 2|3] [--with-ops] [--print-python]

Makes the Python environment that the other scripts use, or does nothing if it is complete.

Which environment: $GKD_VENV if set; else the active virtual or conda environment (not conda's
base); else .venv in this clone. In an environment that this script has not made a torch >= 2.1 is
kept, and packages are only added or changed where they do not fit.

  --mmdet 2|3     which MMDetection; without it an environment keeps the one that it has, and a
                  new one gets 2.28
  --with-ops      compile mmcv-full with its own operators instead of running on torchvision's;
                  takes 9 to 20 minutes on 2 cores and needs a C++ compiler; for MMDetection 2
  --print-python  print the path of the environment's Python; everything else goes to stderr

environment variables:
  GKD_VENV    folder of the environment
  GKD_PYTHON  Python 3.9 to 3.14 to make it with
  GKD_MMDET   2 or 3, like --mmdet
TEXT
}

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
with_ops=''
print_python=''
mmdet="${GKD_MMDET:-}"  # its major version
while [ $# -gt 0 ]; do
  case "$1" in
    --mmdet) mmdet="${2:-no number}"; shift $(($# > 1)) ;;
    --mmdet=*) mmdet="${1#*=}" ;;
    --with-ops) with_ops=yes ;;
    --print-python) print_python=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
case "$mmdet" in
  '' | 2 | 3) ;;
  *) echo "error: --mmdet (or GKD_MMDET) takes 2 or 3, not $mmdet" >&2; exit 2 ;;
esac

say() { echo "setup: $*" >&2; }
fail() { echo "error: $*" >&2; exit 1; }

# --- Installed with pip --------------------------------------------------------------------------

# These scripts then lie in the package, and the environment around it is complete.
if [ "$(basename "$root")" = .mim ]; then
  finds='import importlib.util, os, sys
spec = importlib.util.find_spec("gkd")
sys.exit(spec is None or not os.path.samefile(os.path.dirname(spec.origin), sys.argv[1]))'
  for python in "$(cd "$root/../../../../.." && pwd)/bin/python" python3 python; do
    if (cd / && "$python" -c "$finds" "$root/..") 2> /dev/null; then
      if [ -n "$print_python" ]; then echo "$python"; fi
      exit 0
    fi
  done
  fail "no Python finds the package that this script is of: $(cd "$root/.." && pwd)."
fi

# --- Which environment ---------------------------------------------------------------------------

named=yes  # or active
if [ -n "${GKD_VENV:-}" ]; then
  environment="$GKD_VENV"
elif [ -n "${VIRTUAL_ENV:-}" ] && [ "$VIRTUAL_ENV" != "$root/.venv" ]; then
  environment="$VIRTUAL_ENV"
  named=''
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
  environment="$CONDA_PREFIX"
  named=''
else
  environment="$root/.venv"
fi
mkdir -p "$(dirname "$environment")"
environment="$(cd "$(dirname "$environment")" && pwd)/$(basename "$environment")"
python="$environment/bin/python"
stamp="$environment/.gkd-setup"
lock="$environment/.gkd-lock"
if [ -n "$named" ]; then lock="$environment.gkd-lock"; fi  # it outlives a remade environment

# What the stamp of a complete environment says: pins and clone, how mmcv was installed, and which
# MMDetection.
pins=(requirements/{build,torch,torch_with_ops,runtime,mmdet2,mmdet3,tests,benchmarks}.txt
  setup.py)
wanted="$(cd "$root" && cat "${pins[@]}" | cksum | tr ' ' '-') $root"
stamped_ops() { [ -f "$stamp" ] && [ "$(sed -n 2p "$stamp")" = with-ops ]; }
complete() {
  [ -x "$python" ] && [ -f "$stamp" ] && [ "$(sed -n 1p "$stamp")" = "$wanted" ] &&
    { [ -z "$with_ops" ] || stamped_ops; } &&
    { [ -z "$mmdet" ] || [ "$mmdet" = "$(sed -n 3p "$stamp")" ]; }
}
finish() {
  if [ -n "$print_python" ]; then echo "$python"; fi
  exit 0
}
if complete; then finish; fi

# --- One set-up at a time ------------------------------------------------------------------------

exec 9> "$lock" || fail "cannot write $lock; set GKD_VENV to a folder that you may write to."
if command -v flock > /dev/null && ! flock -n 9; then
  say "waiting for another set-up of $environment"
  flock 9
  if complete; then finish; fi
fi

# An environment that this script has made may be remade. Any other may be a user's work.
made="$environment/.gkd-made"
own=''
if [ -n "$named" ] && { [ -e "$made" ] || [ ! -e "$environment/pyvenv.cfg" ]; }; then own=yes; fi

# --- Which MMDetection ---------------------------------------------------------------------------

# An interrupted set-up leaves packages of which nobody knows how complete they are.
interrupted=''
if [ -e "$stamp.unfinished" ]; then interrupted=yes; fi

# has PACKAGE FROM BELOW: such a version is installed, by whatever name the package index knows it.
has() { "$python" "$root/gkd/installed.py" "$@" > /dev/null 2>&1; }

if [ -z "$mmdet" ] && [ -n "$interrupted" ]; then mmdet="$(cat "$stamp.unfinished")"; fi
if [ -z "$mmdet" ]; then
  mmdet=2
  if has mmdet 3 4; then mmdet=3; fi
fi
had_ops=''
if stamped_ops; then had_ops=yes; fi
if [ "$mmdet" = 2 ]; then
  with_ops="${with_ops:-$had_ops}"  # an environment with compiled operators stays one
elif [ -n "$with_ops" ]; then
  fail "--with-ops compiles mmcv-full for MMDetection 2. For MMDetection 3 install an mmcv 2.1 with
operators yourself; an active environment keeps it."
fi

# --- A Python that fits --------------------------------------------------------------------------

newest=14
if [ -n "$with_ops" ]; then newest=12; fi  # mmcv-full compiles against no torch of later ones
usable="import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, $newest))"

find_python() {
  local candidate found=''
  for candidate in ${GKD_PYTHON:+"$GKD_PYTHON"} python3.11 python3.12 python3.13 python3.14 \
    python3.10 python3.9 python3; do
    if "$candidate" -c "$usable" 2> /dev/null; then
      if "$candidate" -c 'import ensurepip, venv' 2> /dev/null; then
        echo "$candidate"
        return
      fi
      found+="  $candidate: without its venv module (Debian, Ubuntu: apt install python3-venv)"$'\n'
    elif "$candidate" -V > /dev/null 2>&1; then
      found+="  $candidate: $("$candidate" -V 2>&1)"$'\n'
    fi
    if [ -n "${GKD_PYTHON:-}" ]; then break; fi
  done
  fail "no Python 3.9 to 3.$newest found. Found:
${found:-  none
}Install one of them and, if it is not on the PATH, set GKD_PYTHON to it."
}

make_environment() {
  local base
  base="$(find_python)"
  say "making $environment with $("$base" -V 2>&1)"
  if [ -e "$environment" ] && [ ! -f "$environment/pyvenv.cfg" ] &&
    [ -n "$(ls -A "$environment")" ]; then
    fail "$environment exists and is no virtual environment; set GKD_VENV to another folder."
  fi
  # Marked at once, since pip takes seconds.
  "$base" -m venv --clear --without-pip "$environment" && touch "$made" &&
    "$python" -m ensurepip --upgrade --default-pip > /dev/null ||
    fail "cannot make $environment; see above."
}

# --- Installing ----------------------------------------------------------------------------------

# pip is silent while it unpacks large packages. A log needs a line less often than a person does.
heartbeat() {
  local started=$SECONDS pause=60
  if [ -t 2 ]; then pause=10; fi
  trap 'kill $(jobs -p) 2> /dev/null; exit 0' TERM
  while kill -0 $$ 2> /dev/null; do
    sleep "$pause" &
    wait $!
    say "  ... $((SECONDS - started)) s"
  done
}
beat=''
stop_heartbeat() {
  if [ -n "$beat" ]; then kill "$beat" 2> /dev/null || true; fi
  beat=''
}
trap stop_heartbeat EXIT
step() {
  local message="$1" status=0
  shift
  say "$message"
  heartbeat > /dev/null 9>&- &
  beat=$!
  "$@" >&2 9>&- || status=$?
  stop_heartbeat
  return $status
}
pip() { "$python" -m pip install --disable-pip-version-check --no-warn-script-location "$@"; }
version_of() {
  "$python" -c "from importlib.metadata import version; print(version('$1'))" 2> /dev/null || true
}

if [ -n "$own" ]; then
  if [ -n "$interrupted" ] || [ "$with_ops" != "$had_ops" ] ||
    ! "$python" -m pip --version > /dev/null 2>&1 || ! "$python" -c "$usable"; then
    make_environment
  fi
elif ! "$python" -c "$usable" 2> /dev/null; then
  fail "the environment $environment has $("$python" -V 2>&1 || echo no Python); needed is
Python 3.9 to 3.$newest. Deactivate it, or set GKD_VENV to a new folder, to let this script make one."
elif ! "$python" -m pip --version > /dev/null 2>&1 && ! "$python" -m ensurepip >&2; then
  fail "the environment $environment has no pip; install it there."
fi
rm -f "$stamp"
echo "$mmdet" > "$stamp.unfinished"

constraints="$environment/.gkd-constraints.txt"
: > "$constraints"
torch_version="$(version_of torch)"
keep_torch=''
if [ -n "$torch_version" ] && [ -z "$own" ]; then
  keep_torch=yes
  case "$torch_version, numpy $(version_of numpy)" in
    0.* | 1.* | 2.0.*) fail "the environment $environment has torch $torch_version, and at least
2.1 is needed. Upgrade it; or deactivate the environment, or set GKD_VENV to a new folder, to let this
script make one." ;;
    # torch before 2.3 is built against numpy 1; beside a later one, other packages may be.
    2.1.* | 2.2.* | *', numpy 1.'*) echo 'numpy<2' >> "$constraints" ;;
  esac
  say "keeping torch $torch_version of $environment"
  echo "torch==$torch_version" >> "$constraints"
  if [ -n "$(version_of torchvision)" ]; then
    echo "torchvision==$(version_of torchvision)" >> "$constraints"
  fi
fi

if [ -z "$own" ] && "$python" -W ignore -c 'import pkg_resources, wheel' 2> /dev/null; then
  say '[1/5] build tools are there'
else
  step '[1/5] build tools' pip -q -r "$root/requirements/build.txt" ||
    fail 'pip failed; see above.'
fi

if [ -n "$keep_torch" ]; then
  say '[2/5] torch is there'
elif [ -n "$with_ops" ]; then
  step '[2/5] torch (about 2 GB)' pip -r "$root/requirements/torch_with_ops.txt" ||
    fail 'pip failed; see above.'
  printf '%s\n' 'numpy<2' "torch==$(version_of torch)" > "$constraints"
else
  step '[2/5] torch (about 2 GB)' pip -r "$root/requirements/torch.txt" ||
    fail 'pip failed; see above.'
fi

if [ -s "$constraints" ]; then
  # With another torch than the pinned one, other versions may be needed: whatever fits.
  names=(addict matplotlib packaging Pillow pyyaml scipy six terminaltables yapf)
  if [ "$mmdet" = 3 ]; then names+=(rich shapely termcolor); fi
  if [ -n "$with_ops" ]; then names+=(ninja psutil); fi
  if ! "$python" -c 'import cv2' 2> /dev/null; then names+=(opencv-python-headless); fi
  for opencv in opencv{,-contrib}-python{,-headless}; do  # the one there must suit numpy, too
    if [ -n "$(version_of "$opencv")" ]; then names+=("$opencv"); fi
  done
  own_needs='import setuptools, distutils.core
setup = distutils.core.run_setup("setup.py", stop_after="init")
needs = setup.install_requires
for extra in ("tests", "digits"):
    needs += setup.extras_require[extra]
print(*(need for need in needs if not need.startswith("mmdet")), sep="\n")'
  mapfile -t -O "${#names[@]}" names < <(cd "$root" && "$python" -W ignore -c "$own_needs")
  step '[3/5] tools' pip -q -c "$constraints" "${names[@]}" || fail 'pip failed; see above.'
else
  step '[3/5] tools' pip -q -r "$root/requirements/runtime.txt" \
    -r "$root/requirements/tests.txt" -r "$root/requirements/benchmarks.txt" ||
    fail 'pip failed; see above.'
fi

# --- MMDetection ---------------------------------------------------------------------------------

# What is wanted of a package, as its pin says. The environment's own, of the right generation, is
# kept unless this script made it.
pin() { grep -E "^$1==" "$root/requirements/mmdet$mmdet.txt"; }
install() { pip -q -c "$constraints" --no-deps --no-build-isolation "$@"; }
fits() { [ -z "$own" ] && has "$@"; }
remove() { "$python" -m pip uninstall -q -q -y "$@" >&2; }

# mmcv 1.7.2's setup script fails from Python 3.13 on, where `exec` no longer changes `locals()`.
# What it does without operators is to pack a folder: pip leaves its source here, and a few lines
# describe the package.
install_mmcv_without_its_script() {
  local folder="$environment/.gkd-mmcv" source
  rm -rf "$folder"
  mkdir -p "$folder/downloaded"
  TMPDIR="$folder" "$python" -m pip download --disable-pip-version-check --no-clean --no-deps \
    --no-build-isolation --no-binary mmcv -d "$folder/downloaded" "$1" > "$folder/log" 2>&1 || true
  source="$(find "$folder" -path '*/mmcv/version.py' | head -n 1)"
  source="${source%/mmcv/version.py}"
  if [ -z "$source" ]; then
    cat "$folder/log"
    return 1
  fi
  rm -f "$source"/setup.py "$source"/setup.cfg "$source"/MANIFEST.in
  cat > "$source/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "mmcv"
version = "${1#mmcv==}"
dependencies = ["addict", "numpy", "packaging", "Pillow", "pyyaml", "yapf"]
[tool.setuptools.packages.find]
include = ["mmcv*"]
namespaces = false
[tool.setuptools.package-data]
mmcv = ["model_zoo/*.json"]
TOML
  install "$source" && rm -rf "$folder"
}

install_mmcv_1() {
  local mmcv mmcv_full
  mmcv="$(pin mmcv)"
  mmcv_full="mmcv-full==${mmcv#mmcv==}"
  if "$python" -c 'import torch, mmcv._ext' 2> /dev/null; then
    say '[4/5] a compiled mmcv-full is there and works'
  elif [ -n "$with_ops" ]; then
    command -v "${CXX:-c++}" > /dev/null || fail "--with-ops needs a C++ compiler (${CXX:-c++} not
found; Debian, Ubuntu: apt install g++)."
    remove mmcv mmcv-full
    # Never from pip's wheel cache, which hands out what was compiled against another torch.
    export MMCV_WITH_OPS=1
    step '[4/5] compiling mmcv-full; this takes 9 to 20 minutes on 2 cores' \
      pip -c "$constraints" --no-build-isolation --no-cache-dir --no-binary mmcv-full \
      "$mmcv_full" ||
      fail "mmcv-full did not compile against torch $(version_of torch). It is written in C++17; the
headers of recent torch need C++20. Versions known to work are in requirements/torch_with_ops.txt.
Without --with-ops no compiler is needed."
  else
    if [ -n "$(version_of mmcv-full)" ]; then
      say "mmcv-full does not load with torch $(version_of torch); putting mmcv in its place"
      remove mmcv-full
    fi
    export MMCV_WITH_OPS=0
    if [ "$(version_of mmcv)" = "${mmcv#mmcv==}" ]; then
      say '[4/5] mmcv is there'
    elif "$python" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
      step '[4/5] mmcv' install_mmcv_without_its_script "$mmcv" || fail 'pip failed; see above.'
    else
      step '[4/5] mmcv' install "$mmcv" || fail 'pip failed; see above.'
    fi
  fi
}

if [ "$mmdet" = 2 ]; then
  if has mmcv 2 3; then remove mmcv mmcv-lite onedl-mmcv; fi
  if has mmdet 3 4; then remove mmdet onedl-mmdetection; fi
  fits mmdet 2.28 3 || step '[4/5] MMDetection 2' install "$(pin mmdet)" ||
    fail 'pip failed; see above.'
  install_mmcv_1
else
  if has mmcv 1 2; then remove mmcv mmcv-full; fi
  if [ -n "$own" ]; then
    missing=(-r "$root/requirements/mmdet3.txt")
  else
    missing=()
    fits mmdet 3 4 || missing+=("$(pin mmdet)")
    fits mmengine 0.7 1 || missing+=("$(pin mmengine)")
    fits mmcv 2 3 || missing+=("$(pin mmcv-lite)")
  fi
  if [ ${#missing[@]} -eq 0 ]; then
    say '[4/5] MMDetection 3 is there'
  else
    step '[4/5] MMDetection 3' install "${missing[@]}" || fail 'pip failed; see above.'
  fi
fi

step '[5/5] gkd' pip -q --no-deps --no-build-isolation -e "$root" || fail 'pip failed; see above.'
"$python" -c 'import gkd' >&2 || fail 'the environment was made, but gkd cannot be imported.'

printf '%s\n' "$wanted" "${with_ops:+with-ops}" "$mmdet" > "$stamp.unfinished"
mv "$stamp.unfinished" "$stamp"
say "ready: $environment"
finish
