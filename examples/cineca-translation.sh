#!/usr/bin/env bash
# CINECA's walk: a decoder-only translator from scratch, on pair lines. The preset is theirs; the sizes here are smaller.
# In real life: preset cineca-mt as it is (6 layers x 2048, 32 heads), fp16, micro batch 32, 32 samples a GPU.
set -euo pipefail
out=${1:-walk-translation}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

mconv doctor                                                        # what nvidia-smi is asked for there
$parts pairs "$out/pairs.txt"; $parts bpe "$out/tokenizer" "$out/pairs.txt"
mconv data export "$out/pairs.txt" --out "$out/pairs.jsonl"          # one JSON object a line
mconv data shuffle "$out/pairs.jsonl" --out "$out/shuffled.jsonl" --seed 1234
mconv data tokenize "$out/shuffled.jsonl" --prefix "$out/pairs" --tokenizer "$out/tokenizer" --workers 2
mconv data stats "$out/pairs" --tokenizer "$out/tokenizer"          # how long the lines are, what of the vocabulary is used
small="--num-layers 2 --hidden-size 128 --num-attention-heads 4 --max-position-embeddings 128 --vocab-size 2000"

mconv train --init random --preset cineca-mt $small --data "$out/pairs" --save "$out/run" --split 99,1,0 \
  --dataloader-type cyclic --num-workers 2 --seq-length 64 --micro-batch-size 16 --global-batch-size 32 \
  --train-iters 60 --lr 3e-3 --min-lr 6e-6 --lr-warmup-fraction 0.05 --weight-decay 0.1 --adam-beta2 0.95 \
  --eval-interval 30 --eval-iters 1 --log-interval 10
mconv plot "$out/run" --out "$out/run.png"

for ranks in 1 2; do                                                # the exercise: weak scaling, samples grow with ranks
  mconv train --init random --preset cineca-mt $small --data "$out/pairs" --nproc-per-node $ranks --seq-length 64 \
    --micro-batch-size 16 --global-batch-size $((16 * ranks)) --train-iters 6 --lr 1e-3 --save "$out/scale-$ranks"
done
mconv plot "$out/scale-1" "$out/scale-2" --out "$out/scaling.png"
mconv meg2hf "$out/run" --out "$out/hf"
