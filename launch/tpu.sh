#!/usr/bin/env bash
# Trains on a slice of Cloud TPUs: creates or reuses it, installs kdjax on every worker, runs there,
# follows the log, and starts again after a preemption.
#
#   launch/tpu.sh --name kdjax --zone us-west4-a --type v5litepod-16 [--spot] [--delete] [--dry-run] \
#       [--runtime v2-alpha-tpuv5-lite] [--setup COMMAND] \
#       -- --config configs/X.py --workdir gs://BUCKET/RUN
#
# --setup runs on every worker before the training, for example to copy the prepared data to its
# disk: --setup 'gcloud storage rsync -r gs://BUCKET/data data'. --delete deletes the slice at the
# end. The script needs gcloud, logged in with a project that has quota. KDJAX_POLL is the number of
# seconds between two checks. It was tested with a stand-in for gcloud, never in the cloud.
set -euo pipefail

usage() { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
wrong() { echo "launch/tpu.sh: $1" >&2; exit 2; }

name='' zone='' type='' runtime='' setup=true spot=() delete='' dry_run=''
while (($#)); do
  case $1 in
    --name | --zone | --type | --runtime | --setup)
      [[ ${2-} && $2 != --* ]] || wrong "$1 needs a value" ;;&
    --name) name=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --type) type=$2; shift 2 ;;
    --runtime) runtime=$2; shift 2 ;;
    --setup) setup=$2; shift 2 ;;
    --spot) spot=(--spot); shift ;;
    --delete) delete=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) wrong "$1 is no option; the flags of kdjax train come after --" ;;
    *) usage ;;
  esac
done
if [[ -z $name || -z $zone || -z $type ]] || (($# == 0)); then usage; fi
poll=${KDJAX_POLL:-30}
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "KDJAX_POLL is '$poll'; give seconds"
[[ $dry_run ]] || command -v gcloud >/dev/null || wrong "gcloud is not installed"

case $type in
  v4-*) : "${runtime:=tpu-ubuntu2204-base}" ;;
  v5litepod-*) : "${runtime:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${runtime:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${runtime:=v2-alpha-tpuv6e}" ;;
  *) wrong "--type $type: give v4-N, v5litepod-N, v5p-N or v6e-N" ;;
esac

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
queue() { run gcloud compute tpus queued-resources "$1" "$name" --zone "$zone" "${@:2}"; }
on_workers() { run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker "$1" --command "$2"; }

state() {
  if [[ $dry_run ]]; then
    echo MISSING
  else
    queue describe --format 'value(state.state)' 2>/dev/null || echo MISSING
  fi
}

# Waits until the slice is ready, and requests it again if it was preempted.
acquire() {
  while :; do
    case $(state) in
      ACTIVE) return ;;
      SUSPENDED | FAILED) queue delete --force --quiet ;;
      MISSING)
        queue create --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" \
          "${spot[@]}"
        [[ -z $dry_run ]] || return 0
        ;;
    esac
    sleep "$poll"
  done
}

# Installs the committed checkout in a new environment, because the image's Python is too old.
install() {
  run git archive --format tar.gz --output "$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" "$name:kdjax.tar.gz" --zone "$zone" --worker all &&
    on_workers all "set -e; mkdir -p kdjax; tar xzf kdjax.tar.gz -C kdjax; cd kdjax
    python3 -m pip install --user --quiet uv
    [ -d .venv ] || python3 -m uv venv --quiet --python 3.11
    python3 -m uv pip install --quiet -r requirements.txt 'jax[tpu]>=0.10.2,<0.12'
    $setup"
}

running() { [[ -z $dry_run ]] && on_workers 0 "kill -0 \$(cat kdjax/pid)" 2>/dev/null; }

# Starts the training on every worker, so that it continues after the connection closes.
start() {
  on_workers all "cd kdjax; while kill -0 \$(cat pid) 2>/dev/null; do sleep 1; done; rm -f status
    nohup sh -c '.venv/bin/python -m kdjax train \"\$@\"; echo \$? >status' - $arguments \
      >>log 2>&1 </dev/null & echo \$! >pid"
}

# Shows the log of the first worker until its training has ended.
follow() {
  on_workers 0 "cd kdjax; tail -n 20 -F log & while kill -0 \$(cat pid) 2>/dev/null; do sleep 5; done
    kill \$!"
}

archive=$(mktemp --suffix .tar.gz)
trap 'rm -f "$archive"' EXIT
arguments=$(printf '%q ' "$@")

while :; do
  acquire
  if running || { install && start; }; then
    follow || true
    # The status of gcloud itself does not reliably show how the training ended.
    status=$(on_workers 0 "cat kdjax/status") || status=''
    if [[ $dry_run ]]; then
      printf '%s\n' "$status" "# again on status 75, on a signal, and when the slice was preempted"
      status=0
    fi
    # Without a status, the connection broke or the slice is gone. Check again.
    if [[ $status ]] && ((status != 75 && status <= 128)); then break; fi
  elif [[ $(state) == ACTIVE ]]; then
    echo "launch/tpu.sh: the installation failed" >&2
    status=1
    break
  fi
  sleep "$poll"
done
if [[ $delete ]]; then queue delete --force --quiet; fi
exit "$status"
