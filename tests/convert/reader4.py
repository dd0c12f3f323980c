"""Run with transformers 4.57: write what it makes of the folders in `folders.json` to `found.*` beside it."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

root = Path(sys.argv[1])
tokens, logits, said = load_file(root / "tokens.safetensors"), {}, {"version": __version__}
for folder, text in json.loads((root / "folders.json").read_text()).items():
    model, info = AutoModelForCausalLM.from_pretrained(root / folder, dtype="auto", output_loading_info=True)
    with torch.no_grad():
        logits[folder] = model(tokens[folder]).logits.contiguous()
    said[folder] = {
        "info": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "dtype": str(model.dtype),
        "ends": [model.config.eos_token_id, model.generation_config.eos_token_id],
        "ids": AutoTokenizer.from_pretrained(root / folder)(text)["input_ids"] if text else None,
    }
save_file(logits, root / "found.safetensors")
(root / "found.json").write_text(json.dumps(said))
