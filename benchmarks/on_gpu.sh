#!/usr/bin/env bash
# The first ten minutes on a GPU: what is measured nowhere else, the most wanted first.
#
#     bash benchmarks/on_gpu.sh [--cut] [FOLDER]        # FOLDER: $OUT where that is set, else runs/on-gpu
#
# (a) throughput at the demo's size over widths 1 to 1024, against PyTorch; (b) the model of 33 M parameters;
# (c) sharpness, against PyHessian; (d) the phases of complexity_control, reduced. At most nine minutes in all. Every
# part has a limit of its own and prints as it goes, so a run that is cut short keeps what it printed (log.txt). A part
# that fails or cannot run says so in a line, and the rest goes on.
# --cut: the smallest sizes, on a CPU: whether it runs at all.
# PYTHON names the Python (default: that of .venv, else python3), ALL_SECONDS the limit of all. The laboratory need not
# be installed; what it imports is installed where there is a network, and else named.
set -uo pipefail

CUT="" FOLDER=""
for word in "$@"; do
  case $word in
    --cut) CUT=1 ;;
    -*) echo "on_gpu.sh: unknown option $word; there is --cut" >&2; exit 2 ;;
    *) FOLDER=$word ;;
  esac
done
FOLDER=${FOLDER:-${OUT:-$(dirname "$0")/../runs/on-gpu}}
mkdir -p "$FOLDER" || exit 2
FOLDER=$(cd "$FOLDER" && pwd)
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
ALL_SECONDS=${ALL_SECONDS:-540}
EXTRAS=bench
NEEDED="absl-py flax jax jinja2 matfree matplotlib ml_collections optax orbax-checkpoint pandas scipy tqdm xarray"
COMPARED="torch hessian-eigenthings pyhessian"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# Imported from a copy in which the configs lie where an installation would put them.
cp -r lab "$SCRATCH/lab" && cp -r configs "$SCRATCH/lab/configs"
export PYTHONPATH="$SCRATCH${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -n "$CUT" ]; then export JAX_PLATFORMS=cpu; fi

# part NAME SECONDS COMMAND...: for so long at most, or as long as is left
part() {
  local name=$1 most=$2 left=$((ALL_SECONDS - SECONDS)) code=0
  shift 2
  if [ "$left" -lt 15 ]; then echo "$name: left out, no time is left"; return 1; fi
  if [ "$most" -gt "$left" ]; then most=$left; fi
  echo; echo "== $name (at most $most s; it is second $SECONDS)"
  timeout --kill-after=10 "$most" "$@" || code=$?
  case $code in
    0) ;;
    124 | 137) echo "$name: stopped after $most s; what is printed above stands" ;;
    *) echo "$name: failed with code $code; the rest goes on" ;;
  esac
  return $code
}

# Of the distributions named, those that are not installed.
missing() {
  "$PYTHON" -c '
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(name, end=" ")' "$@"
}

install_missing() {
  local absent
  absent=$(missing $NEEDED $COMPARED)
  if [ -z "$absent" ]; then return; fi
  case " $absent " in *" jax "*) if command -v nvidia-smi >/dev/null; then EXTRAS=bench,cuda; fi ;; esac
  if [ -z "$CUT" ]; then
    part "installing $absent" 90 "$PYTHON" -m pip install --quiet --retries=0 --timeout=10 ".[$EXTRAS]"
    absent=$(missing $NEEDED $COMPARED)
  fi
  if [ -n "$absent" ]; then echo "missing: $absent(pip install 'gammalab[$EXTRAS]'); what needs them is left out"; fi
}

# What JAX computes on; fails where that is no GPU and should be one.
devices() {
  "$PYTHON" -c '
import sys, jax
print(f"jax {jax.__version__}, {jax.device_count()} x {jax.default_backend()}: {jax.devices()[0].device_kind}")
if sys.argv[1] != "cut" and jax.default_backend() != "gpu":
    sys.exit("JAX sees no GPU: pip install \"gammalab[cuda]\"; --cut tries the script on a CPU")' "${CUT:+cut}"
}

measure() {
  if [ -n "$CUT" ]; then
    part "a: demo's size" 240 "$PYTHON" benchmarks/throughput.py --preset=smoke --rounds=2 --json="$FOLDER/demo.json"
    part "b: large model" 240 "$PYTHON" benchmarks/throughput.py --preset=smoke --sizes=demo --rounds=1 \
      --seconds=0.1 --widths=1,2 --json="$FOLDER/large.json"
    part "c: sharpness" 240 "$PYTHON" benchmarks/sharpness.py --preset=smoke --rounds=2 --json="$FOLDER/sharpness.json"
    phases 240 --preset=smoke --variants=phase --config.steps=4 --config.eval_every=2 --config.checkpoint_every=4 \
      --config.optim.warmup_steps=1 "--config.grid.seed=(0,)"
    return
  fi
  part "a: demo's size" 170 "$PYTHON" benchmarks/throughput.py --preset=gpu --sizes=demo --rounds=3 --seconds=0.5 \
    --widths=1,4,16,64,256,1024 --json="$FOLDER/demo.json"
  part "b: large model" 115 "$PYTHON" benchmarks/throughput.py --preset=gpu --sizes=second --rounds=3 --seconds=0.5 \
    --json="$FOLDER/large.json"
  part "c: sharpness" 90 "$PYTHON" benchmarks/sharpness.py --preset=gpu --rounds=3 --json="$FOLDER/sharpness.json"
  # 11 x 4 x 3 rows in one vmap, which is halved where the memory does not do
  phases 110 --preset=gpu --variants=phase --config.steps=2000 --config.eval_every=500 --config.checkpoint_every=500 \
    --config.block_width=132
}

# phases SECONDS OPTION...: what is trained is reported, as far as it is analyzed; the metrics are kept in any case
phases() {
  local most=$1 before_report=$((ALL_SECONDS - SECONDS - 50)) run="$SCRATCH/run" file
  local lab=("$PYTHON" -P -m lab)  # -P: from the copy, not from here
  shift
  if [ "$most" -gt "$before_report" ]; then most=$((before_report > 15 ? before_report : 15)); fi
  if ! part "d: phases" "$most" "${lab[@]}" reproduce complexity_control "$@" --workdir="$run" && [ -d "$run" ]; then
    part "d: report of what there is" 45 "${lab[@]}" report --partial --workdir="$run"
  fi
  for file in "$run/claims.json" "$run/report/index.html"; do
    if [ -f "$file" ]; then cp "$file" "$FOLDER/phases-$(basename "$file")"; fi
  done
  if [ -d "$run/phase/metrics" ]; then
    (cd "$run/phase" && tar -czf "$FOLDER/phases-metrics.tar.gz" metrics config.json grid.json)
  fi
}

main() {
  if [ -z "$CUT" ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  fi
  install_missing
  devices || return 2
  measure
  echo; echo "$SECONDS s; in $FOLDER: $(ls "$FOLDER" | tr '\n' ' ')"
}

main 2>&1 | tee "$FOLDER/log.txt"
exit "${PIPESTATUS[0]}"
