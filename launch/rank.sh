#!/usr/bin/env bash
# One rank of a Slurm step, for what is not a whole job of nvlm submit: a check, a look at something, a run by hand.
#   srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/rank.sh doctor --distributed recipe=nvlm_d_8b
# MASTER_ADDR and MASTER_PORT may be given, where the first node's name is not what the others know it by.
set -euo pipefail

if [[ -z ${SLURM_PROCID:-} || $# -eq 0 ]]; then
    echo "usage: srun --nodes=NODES --ntasks-per-node=RANKS … launch/rank.sh VERB word …" >&2
    exit 2
fi
export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%(*}
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)}
exec "${PYTHON:-python}" -m nvlm_train "$@"
