#!/bin/bash
# A sweep over the nodes of a Slurm job: Ray starts on all of them, the sweep runs on the first, and both end together.
#   sbatch docs/cluster/slurm.sh --preset paper --out /shared/results/paper
# /shared stands for storage that all nodes see: the checkout, its environment, model folders and --out lie there.
#SBATCH --job-name=tda-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

BIN=$(cd "${TDA_BIN:-.venv/bin}" && pwd)
export PATH=$BIN:$PATH
PORT=${TDA_RAY_PORT:-6379}
# Ray's processes answer only to who knows this token, which lies on the shared storage for this job alone.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# The resource tda_host keeps a timed group on the CPU alone on its node.
srun ray symmetric-run --address "$first:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --resources '{"tda_host": 1}' -- tda sweep --ray-address "$first:$PORT" "$@" &
# The signal before the end of the job's time reaches this script: the sweep keeps what is done, and the same sbatch
# command goes on with it.
trap 'kill -TERM %1 2>/dev/null; wait' TERM
wait %1
