#!/usr/bin/env bash
# Trains with several processes on this machine, and continues when they are preempted or killed.
#
#   launch/local.sh --processes 2 [--restarts 10] [--port 8476] [--dry-run] \
#       -- --config configs/X.py --workdir DIR
#
# With --gpus, each process gets its own GPU: CUDA_VISIBLE_DEVICES is the number of the process.
# Without it, all processes see all devices, as on a CPU.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
wrong() { echo "launch/local.sh: $1" >&2; exit 2; }

# Stores a whole number from `least` to `most` (0 for no limit) in the variable named by an option.
number() {
  local least=$1 most=$2 option=$3 value=${4-}
  # At most nine digits, which fit into an integer, in base ten even with leading zeros.
  if [[ ! $value =~ ^[0-9]{1,9}$ ]] || ((10#$value < least || (most && 10#$value > most))); then
    wrong "$option is '$value'; give a whole number, $least or more$( ((!most)) || echo ", $most at most")"
  fi
  printf -v "${option#--}" %d "$((10#$value))"
}

processes=1 restarts=10 port=8476 gpus='' dry_run=''
while (($#)); do
  case $1 in
    --processes) number 1 0 "$@"; shift 2 ;;
    --restarts) number 0 0 "$@"; shift 2 ;;
    --port) number 1 65535 "$@"; shift 2 ;;
    --gpus) gpus=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    -*) wrong "$1 is no option; the flags of kdjax train come after --" ;;
    *) usage ;;
  esac
done
(($#)) || usage

# Prints the command of a process, or executes it in place of this shell.
process() {
  local id=$1 command
  shift
  command=("${PYTHON:-python}" -m kdjax train "$@" --coordinator "localhost:$port"
    --num_processes "$processes" --process_id "$id")
  [[ -z $gpus ]] || command=(env "CUDA_VISIBLE_DEVICES=$id" "${command[@]}")
  if [[ $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo '&'
  else
    exec "${command[@]}"
  fi
}

if [[ $dry_run ]]; then
  for ((id = 0; id < processes; id++)); do process "$id" "$@"; done
  echo "# stop them all when one fails; again on status 75 or a signal, at most $restarts times"
  exit
fi

# The number of seconds that the other processes get to stop after one has failed.
grace=${KDJAX_GRACE:-60}
[[ $grace =~ ^[0-9]{1,9}$ ]] || wrong "KDJAX_GRACE is '$grace'; give whole seconds"
# The processes read from this pipe. The system closes it when this script ends for any reason, and
# the processes then save and stop.
pipe=$(mktemp -u)
mkfifo "$pipe"
exec {held}<>"$pipe"
exec {lifeline}<"$pipe"
rm "$pipe"
export KDJAX_LIFELINE=$lifeline
stopping=''
children=()
trap 'stopping=1; kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT

alive() { kill -0 "${children[@]}" 2>/dev/null; }

# Runs all processes to their end, and returns the status of the first that failed.
attempt() {
  local id status ended failed=0
  children=()
  for ((id = 0; id < processes; id++)); do
    process "$id" "$@" {held}>&- &
    children+=($!)
  done
  while ((!failed)); do
    status=0 ended=''
    wait -n -p ended || status=$?
    # A signal also ends `wait`, while the processes are still saving.
    if [[ ${ended:-} ]]; then
      failed=$status
    elif ! alive; then
      break
    fi
  done
  # The other processes stop within a minute. Kill those that do not.
  for ((second = 0; second < grace; second++)); do
    alive || break
    sleep 1
  done
  kill -KILL "${children[@]}" 2>/dev/null || true
  wait || true
  return "$failed"
}

# On a port in use, the processes would join another run, or wait minutes for another program.
if (: </dev/tcp/localhost/"$port") 2>/dev/null; then
  wrong "port $port is taken by another run, or another program; choose another by --port"
fi

for ((restart = 0; ; restart++)); do
  status=0
  attempt "$@" || status=$?
  if [[ $stopping ]] || ((status != 75 && status <= 128 || restart >= restarts)); then
    exit "$status"
  fi
  echo "launch/local.sh: status $status, continuing (restart $((restart + 1)) of $restarts)" >&2
done
