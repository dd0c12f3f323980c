#!/usr/bin/env bash
# Start the ranks of one node: bash node.sh ENDPOINT ID DEBUG, where DEBUG is the job's folder for logs and traces.
set -euo pipefail
endpoint=$1 id=$2 debug=$3
cd /mpt
export CUDA_DEVICE_MAX_CONNECTIONS=1
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
mkdir -p "$debug"
export MCONV_JOB_MARK="$debug/mark"
trap '' USR2  # torch's agent would die of it; each rank handles it
exec python3 -m torch.distributed.run --nnodes=1 --nproc-per-node=4 --max-restarts=0 --rdzv-backend=c10d \
  --rdzv-endpoint="$endpoint" --rdzv-id="$id" -m mconv train /mpt/models/snakmodel-7b/launch/run.yaml
