#!/usr/bin/env bash
# The sample data and vocabulary of AWS's guide: bash getdata.sh DIR. mconv reads .xz files, and GPT-2's vocabulary, as they are.
set -euo pipefail
cd "${1:?the folder to download to}"
wget --continue https://huggingface.co/bigscience/misc-test-data/resolve/main/stas/oscar-1GB.jsonl.xz
wget --continue https://s3.amazonaws.com/models.huggingface.co/bert/gpt2-vocab.json
wget --continue https://s3.amazonaws.com/models.huggingface.co/bert/gpt2-merges.txt
