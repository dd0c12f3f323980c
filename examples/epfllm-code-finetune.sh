#!/usr/bin/env bash
# epfLLM's walk: Llama 2 is taught code. Convert, verify, shard, finetune, merge, export, use, publish.
# In real life: MODEL=llama2 with --size 7, starcoderdata's Julia files, tp 2, 500 iterations of 1000 samples on 8 GPUs.
set -euo pipefail
out=${1:-walk-code}; parts="python $(dirname "$0")/parts.py"
mkdir -p "$out"

$parts llama "$out/llama"                                       # mconv pull meta-llama/Llama-2-7b-hf llama
$parts code "$out/code.jsonl"                                   # one {"text": ...} a source file

mconv data tokenize "$out/code.jsonl" --prefix "$out/code" --tokenizer "$out/llama" --workers 2
mconv hf2meg "$out/llama" --out "$out/megatron"
mconv verify "$out/llama" "$out/megatron"
mconv reshard "$out/megatron" --out "$out/sharded" --tp 2

cat > "$out/run.yaml" <<YAML
load: $out/sharded
data: $out/code
save: $out/run
tp: 2
sequence_parallel: true
recompute_granularity: selective
seq_length: 128
micro_batch_size: 8
global_batch_size: 16
train_iters: 40
lr: 3e-3
min_lr: 1e-5
lr_decay_style: cosine
lr_warmup_iters: 5
split: 95,5,0
eval_interval: 20
eval_iters: 2
save_interval: 20
log_interval: 10
YAML
mconv train "$out/run.yaml" --verify-first
mconv plot "$out/run" --out "$out/loss.png"

mconv merge "$out/run" --out "$out/merged"                      # or straight from the ranks' files: mconv meg2hf $out/run
mconv meg2hf "$out/merged" --out "$out/llama-code"
mconv verify "$out/run" "$out/llama-code"
python -W ignore -c "
from transformers import pipeline
print(pipeline('text-generation', '$out/llama-code')('def ', max_new_tokens=24, do_sample=False)[0]['generated_text'])"
echo "publish it: mconv push $out/llama-code ORG/NAME --dry-run"
