#!/usr/bin/env bash
# swiss-ai's cycle: a run outlives its jobs. A save on demand, a time limit, a signal; the next job goes on.
set -euo pipefail
out=${1:-walk-resume}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

$parts llama "$out/llama"; $parts code "$out/code.jsonl"
mconv data tokenize "$out/code.jsonl" --prefix "$out/data/code" --tokenizer "$out/llama"

job=(mconv train --load "$out/llama" --data "$out/data" --save "$out/run" --tp 2 --seq-length 64 --micro-batch-size 4
  --global-batch-size 8 --train-iters 60 --lr 1e-3 --save-interval 20 --async-save --keep-last 2 --log-interval 10)
mkdir -p "$out/run/triggers"                        # what each job of the queue runs is this, word for word
touch "$out/run/triggers/save"                      # anyone who may write here may ask for a checkpoint ...
"${job[@]}" --exit-interval 15                      # ... and the first job ends at iteration 15, as at a time limit

"${job[@]}" & second=$!
until grep -q '"iteration": 25' "$out/run/train.jsonl"; do sleep 1; done
kill -USR2 $second; wait $second                    # Slurm's --signal=SIGUSR2@600: saved, and exit code 0
"${job[@]}"                                         # the last job of the queue

mconv plot "$out/run" --out "$out/run.png"
mconv meg2hf "$out/run" --out "$out/hf"
