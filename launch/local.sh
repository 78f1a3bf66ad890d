#!/usr/bin/env bash
# Trains on this machine: launch/local.sh PROCESSES recipe=… key=value …
# One process a GPU, or as many as the layout needs on a CPU. No setting of the run is decided here.
set -euo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
    echo "usage: launch/local.sh PROCESSES recipe=NAME key=value …   (for example: launch/local.sh 8 recipe=nvlm_d_8b)" >&2
    exit 2
fi
processes=$1
shift

# Ctrl-C and SIGTERM are passed on to the ranks, which save and stop; torchrun would kill them after 30 seconds, and a large
# checkpoint takes longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node="$processes" -m nvlm_train train "$@"
