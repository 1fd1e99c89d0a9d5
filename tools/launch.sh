# Sourced by the scripts that train and test.

# path_of PYTHON TOOL: the file of a tool. MMDetection 3 has some of its own.
path_of() {
  local python="$1" tool="$2" installed="$root/gkd/installed.py"
  if [ ! -f "$installed" ]; then installed="$root/../installed.py"; fi  # installed with pip
  if "$python" "$installed" mmdet 3 4; then tool="mmdet3/$tool"; fi
  echo "$root/tools/$tool"
}

# launch TOOL GPUS ARGUMENTS...: run a tool in one process, or in several through torchrun.
#   GPUS: processes on this node, '' for one. NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT (or
#   PORT) from the environment for several nodes; PET_MAX_RESTARTS is torchrun's --max_restarts.

launch() {
  local tool="$1" gpus="${2:-1}" python
  shift 2
  python="$(bash "$root/tools/setup.sh" --print-python)"
  tool="$(path_of "$python" "$tool")"
  if [ "$gpus" -eq 1 ] && [ "${NNODES:-1}" -eq 1 ] && [ "${PET_MAX_RESTARTS:-0}" -eq 0 ]; then
    exec "$python" "$tool" "$@"
  fi

  local rendezvous=(--standalone)  # finds a free port
  local port="${MASTER_PORT:-${PORT:-}}"
  if [ "${NNODES:-1}" -gt 1 ] || [ -n "$port" ]; then
    if [ "${NNODES:-1}" -gt 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
      echo 'error: NNODES is set; set MASTER_ADDR to the name of the first node, too.' >&2
      exit 2
    fi
    local address="${MASTER_ADDR:-127.0.0.1}"
    port="${port:-29500}"
    rendezvous=(--nnodes "${NNODES:-1}")
    if [ "${PET_MAX_RESTARTS:-0}" -gt 0 ]; then
      # With a fixed order of nodes, processes that are started again would not find each other.
      rendezvous+=(--rdzv_backend c10d --rdzv_id gkd --rdzv_endpoint "$address:$port"
        --rdzv_conf "is_host=$((${NODE_RANK:-0} == 0)),read_timeout=600")
    else
      rendezvous+=(--node_rank "${NODE_RANK:-0}" --master_addr "$address" --master_port "$port")
    fi
  fi
  # Share the cores between the processes.
  local threads=$(($(getconf _NPROCESSORS_ONLN) / gpus))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 1 ? threads : 1))}"
  exec "$python" "$root/tools/torchrun.py" "${rendezvous[@]}" --nproc_per_node "$gpus" \
    "$tool" "$@" --launcher pytorch
}

is_number() { [[ "${1:-}" =~ ^[1-9][0-9]*$ ]]; }
