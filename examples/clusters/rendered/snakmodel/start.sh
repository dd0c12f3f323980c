#!/usr/bin/env bash
# Start this node's share of the run: bash start.sh, on each node
set -euo pipefail
cd /data/snakmodel
mkdir -p /data/snakmodel/models/snakmodel-7b/debug/snakmodel-7b
exec docker run --rm --gpus=all --network=host --shm-size=128g --ulimit=memlock=-1 --ulimit=stack=67108864 \
  --user="$(id -u):$(id -g)" --volume=/data/snakmodel:/mpt --env=HOME=/tmp --env=SLURM_JOB_END_TIME --workdir=/mpt \
  --entrypoint=bash nvcr.io/nvidia/pytorch:23.07-py3 /mpt/models/snakmodel-7b/launch/node.sh localhost:29500 \
  snakmodel-7b /mpt/models/snakmodel-7b/debug/snakmodel-7b
