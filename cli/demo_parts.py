"""Material of the demo: a small LLaMA, a tokenizer trained on the spot, the standard library's sources."""

import json
import sysconfig
from pathlib import Path

VOCAB = 2000
TEXT_BYTES = 1_500_000
"""Largest size of the text used."""
MODEL = {
    "vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02,
}  # fmt: skip


def sources() -> list[str]:
    """Return Python sources of the running interpreter's standard library, always the same ones."""
    texts, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if size + len(text) <= TEXT_BYTES:
            texts.append(text)
            size += len(text)
    return texts


def write_jsonl(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def make_model(folder: Path, texts: list[str]) -> int:
    """Save a LLaMA with random weights and a SentencePiece tokenizer of `texts`; return its number of parameters."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LlamaTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    _train_tokenizer(folder, texts)
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**MODEL))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _train_tokenizer(folder: Path, texts: list[str]) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines() if line.strip()]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        input_sentence_size=20_000,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
