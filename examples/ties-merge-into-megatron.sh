#!/usr/bin/env bash
# Two finetunes of one base, merged with TIES straight into a Megatron layout: no conversion before, none after, proven.
# In real life: BASE=llama2 of 7 B, a code model and a translation model of it, and a layout to train on with.
set -euo pipefail
out=${1:-walk-ties}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

$parts llama "$out/base"; $parts code "$out/code.jsonl"; $parts pairs "$out/pairs.txt"
for task in code.jsonl pairs.txt; do
  name=${task%.*}
  mconv data tokenize "$out/$task" --prefix "$out/$name" --tokenizer "$out/base" --append-eod
  mconv train --load "$out/base" --data "$out/$name" --save "$out/$name-run" --seq-length 64 --micro-batch-size 8 \
    --global-batch-size 8 --train-iters 30 --lr 1e-3 --log-interval 10
done
mconv meg2hf "$out/pairs-run" --out "$out/pairs-hf"          # one of the two as Hugging Face: formats mix

mconv diff "$out/base" "$out/code-run" --top 5 --html "$out/moved.html"       # what the finetune has moved
mconv blend "$out/code-run" "$out/pairs-hf" --base "$out/base" --method ties --weights 0.5,0.5 --density 0.5 \
  --out "$out/both" --format torch_dist --tp 2 --pp 2
mconv verify "$out/both"                                     # each tensor is what TIES makes of the three, again in fp64
mconv meg2hf "$out/both" --out "$out/both-hf"
mconv verify "$out/both" "$out/both-hf" --tp 2 --pp 2

mconv lora extract "$out/code-run" "$out/base" --rank 16 --out "$out/code-adapter"   # or one of them as an adapter
