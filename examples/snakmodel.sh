#!/usr/bin/env bash
# Snakmodel's nine steps: a Llama 2 goes on with Danish text at tp 4. The container (1) is not needed; the others follow.
# In real life: --size 7, 12500 iterations x 512 samples x 4096 tokens, lr 1.5e-5 to 5e-8, tp 4.
set -euo pipefail
out=${1:-walk-snakmodel}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out/raw"

$parts pairs "$out/raw/pairs.txt"                                                   # raw text, one document a line
$parts llama "$out/llama"
cat > "$out/corpus.yaml" << END
out: $out/corpus
tokenizer: $out/llama
workers: 2
sets: {danish: {sources: [$out/raw]}}
dedup: {threshold: 0.85, num_perm: 64}
shuffle: true
END
mconv data prepare "$out/corpus.yaml"                                               # 0 and 2; the same again: nothing to do
mconv data stats "$out/corpus/tokens" --html "$out/corpus.html"
mconv hf2meg "$out/llama" --out "$out/megatron"                                     # 3
mconv verify "$out/llama" "$out/megatron" --tp 2                                    # 4, on two ranks
mconv reshard "$out/megatron" --out "$out/sharded" --tp 4                           # 5

train() {                                                                           # 6; after a crash: the same again
  mconv train --load "$out/sharded" --data "$out/corpus/tokens" --save "$out/run" --tp 4 --seq-length 64 --micro-batch-size 8 \
    --global-batch-size 16 --train-iters 30 --lr 3e-3 --min-lr 1e-5 --lr-warmup-iters 3 --seed 8446 \
    --save-interval 10 --log-interval 10 "$@"
}
train --exit-after 20
train

mconv meg2hf "$out/run" --out "$out/hf" --iterations all                            # 7 and 8, every checkpoint at once
mconv meg2hf "$out/run" --out "$out/final"
echo "9: mconv push $out/final ORG/NAME --max-shard-size 2GB --dtype bf16 --dry-run"
