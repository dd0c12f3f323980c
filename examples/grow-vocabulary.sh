#!/usr/bin/env bash
# A vocabulary that grows before a finetune: two tokens more, straight into a Megatron layout, then training on their text.
# In real life: Falcon with --tokens "[formula],[/formula]" (Megatron-LLM's --vocab_extra_ids_list, --true_vocab_size 65026), or
# Llama 2 with --tokens "<CLS>,<SEP>,<EOD>,<MASK>,<PAD>" (32,000 -> 32,005 rows).
set -euo pipefail
out=${1:-walk-vocabulary}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

$parts llama "$out/llama"; $parts formulas "$out/formulas.jsonl"
mconv resize "$out/llama" --tokens "[formula],[/formula]" --init mean --out "$out/wider" --format torch_dist --tp 2
mconv verify "$out/wider"                                    # old rows bit for bit, new ones by the rule
mconv diff "$out/llama" "$out/wider" --top 0

mconv data tokenize "$out/formulas.jsonl" --prefix "$out/formulas" --tokenizer "$out/wider" --append-eod
mconv train --load "$out/wider" --data "$out/formulas" --save "$out/run" --tp 2 --seq-length 64 --micro-batch-size 8 \
  --global-batch-size 8 --train-iters 40 --lr 3e-3 --log-interval 10
mconv meg2hf "$out/run" --out "$out/tuned"
mconv verify "$out/run" "$out/tuned" --tp 2
python -W ignore -c "
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained('$out/tuned').tokenize('The sum is [formula] 1 + 2 = 3 [/formula].'))"
