#!/usr/bin/env bash
# AWS' test case: GPT-3 from scratch with a schedule in samples, then a Llama 2 with the sizes that the real one has.
# In real life: the presets as they are, tp 8 on 8 GPUs and more, --fp16 or --bf16, global batch 288.
set -euo pipefail
out=${1:-walk-aws}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

# What the real run is, before anything is paid for: 941,594,624 parameters a rank, 508,626 iterations.
mconv plan --init random --preset gpt3-7.5b --data "$out/text" --tp 8 --seq-length 2048 --global-batch-size 288 \
  --train-samples 146484375 --lr-decay-samples 126953125 --lr-warmup-samples 183105 --lr 6e-5 --min-lr 6e-6
mconv plan --init random --preset llama2-7b --data "$out/text" --tp 2 --seq-length 4096 --global-batch-size 288 \
  --train-iters 1000 --lr 3e-4

$parts code "$out/text.jsonl"; $parts bpe "$out/tokenizer" "$out/text.jsonl"
mconv data tokenize "$out/text.jsonl" --prefix "$out/text" --tokenizer "$out/tokenizer" --workers 2

common="--init random --data $out/text --tp 2 --pp 2 --seq-length 64 --micro-batch-size 2 --global-batch-size 8 \
  --log-interval 5 --max-position-embeddings 128 --vocab-size 2000"
MCONV_TRAIN_NUM_LAYERS=4 MCONV_TRAIN_HIDDEN_SIZE=128 MCONV_TRAIN_NUM_ATTENTION_HEADS=4 \
  mconv train --preset gpt3-7.5b $common --save "$out/gpt3" `# sizes by environment, as its job script takes them` \
  --train-samples 160 --lr-decay-samples 120 --lr-warmup-samples 16 --lr 1e-3 --min-lr 1e-4 --recompute-granularity selective
mconv train --preset llama2-7b --num-layers 4 --hidden-size 128 --ffn-hidden-size 344 --num-attention-heads 4 \
  --num-query-groups 4 $common --save "$out/llama2" --sequence-parallel --distributed-optimizer --bf16 \
  --train-iters 20 --lr 1e-3
mconv meg2hf "$out/llama2" --out "$out/llama2-hf"
