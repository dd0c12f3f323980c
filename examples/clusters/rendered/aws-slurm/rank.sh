#!/usr/bin/env bash
# Be one rank, with files of its own in the job's debug folder: bash rank.sh DEBUG
set -euo pipefail
debug=$1
host=$(hostname)
file=$host-rank$RANK-local$LOCAL_RANK
export NCCL_DEBUG_FILE="$debug/nccl-$file.txt"
export TORCH_NCCL_DEBUG_INFO_TEMP_FILE="$debug/nccl-trace-$host-rank"
exec python3 -m mconv train /fsx/runs/gpt3-7.5b/launch/run.yaml
