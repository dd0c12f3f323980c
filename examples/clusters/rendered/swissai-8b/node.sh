#!/usr/bin/env bash
# Start the ranks of one node: bash node.sh ENDPOINT ID DEBUG, where DEBUG is the job's folder for logs and traces.
set -euo pipefail
endpoint=$1 id=$2 debug=$3
cd /iopsstor/scratch/cscs/you
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
export OMP_NUM_THREADS=72
mkdir -p "$debug"
export MCONV_JOB_MARK="$debug/mark"
trap '' USR2  # torch's agent would die of it; each rank handles it
exec numactl --membind=0-3 python3 -m torch.distributed.run --nnodes=16 --nproc-per-node=4 --max-restarts=0 \
  --rdzv-backend=c10d --rdzv-endpoint="$endpoint" --rdzv-id="$id" -m mconv train \
  /iopsstor/scratch/cscs/you/runs/llama3-8b/launch/run.yaml
