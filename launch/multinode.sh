#!/usr/bin/env bash
# Trains on several machines without a scheduler: the same command on every one of them, in any order.
#   launch/multinode.sh NODES PROCESSES HEAD[:PORT] recipe=… key=value …
# NODES machines with PROCESSES ranks each meet at HEAD, the name of one of them as the others resolve it. run.dir must lie on
# storage that all of them share. Run by hand it has no one to start it again: the same command goes on from the last checkpoint.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || ! ${2:-} =~ ^[1-9][0-9]*$ || -z ${3:-} || ${3:-} == *=* || $# -lt 4 ]]; then
    echo "usage: launch/multinode.sh NODES PROCESSES HEAD[:PORT] recipe=NAME key=value …" >&2
    echo "for example, on each of two: launch/multinode.sh 2 8 node1:29400 recipe=nvlm_d_8b run.dir=/shared/runs/first" >&2
    exit 2
fi
nodes=$1 processes=$2 head=$3
shift 3
[[ $head == *:* ]] || head=$head:29400

# As in local.sh. Of two runs that meet at one place by mistake, those of other settings stay apart.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node="$processes" --max-restarts=0 \
    --rdzv-backend=c10d --rdzv-endpoint="$head" --rdzv-id="nvlm-$(cksum <<< "$*" | cut -d " " -f 1)" -m nvlm_train train "$@"
