#!/usr/bin/env bash
# A soup of a run: its last checkpoints averaged from the ranks' files, proven, exported, and measured beside the last one.
# In real life: the stable phase of a warmup-stable-decay schedule, a window of its checkpoints in place of the decay.
set -euo pipefail
out=${1:-walk-soup}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

$parts llama "$out/llama"; $parts code "$out/code.jsonl"
mconv data tokenize "$out/code.jsonl" --prefix "$out/code" --tokenizer "$out/llama"
mconv train --load "$out/llama" --data "$out/code" --save "$out/run" --tp 2 --seq-length 64 --micro-batch-size 8 \
  --global-batch-size 8 --train-iters 60 --lr 3e-3 --lr-decay-style constant --split 95,5,0 --save-interval 10 --log-interval 10

mconv blend "$out/run" --last 4 --weights linear --out "$out/soup" --format torch_dist --tp 2   # or --iterations 30,40,50,60
mconv verify "$out/soup"                                     # what its recipe makes of the four, again in fp64
mconv meg2hf "$out/soup" --out "$out/soup-hf"
mconv verify "$out/soup" "$out/soup-hf" --tp 2

for model in "$out/run" "$out/soup"; do                      # the loss on text that neither has seen
  mconv train --load "$model" --finetune --eval-only --data "$out/code" --split 95,5,0 --seq-length 64 \
    --micro-batch-size 8 --global-batch-size 8 --eval-iters 10
done
echo "publish it: mconv push $out/soup-hf ORG/NAME --dry-run"
