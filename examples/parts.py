"""Stand-ins for what the guides download, made offline: a small LLaMA, texts, a tokenizer.

python examples/parts.py llama DIR        a LLaMA of random weights with a SentencePiece tokenizer (4 M parameters)
python examples/parts.py code FILE        source files, one JSON line each (text)
python examples/parts.py pairs FILE       "ITA ... ENG ..." lines: numbers in two languages
python examples/parts.py formulas FILE     sums between [formula] and [/formula], one JSON line each (text)
python examples/parts.py bpe DIR FILE     a byte-level BPE tokenizer of 2000 tokens, as GPT-2's, trained on FILE's lines
"""

import sys
from pathlib import Path

from mconv.cli import demo_parts

SMALL = {
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove",
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen",
}
TENS = {
    "it": "venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
}


def main() -> None:
    kind, where, *more = sys.argv[1:]
    if kind == "llama":
        demo_parts.make_model(Path(where), demo_parts.sources())
    elif kind == "code":
        demo_parts.write_jsonl(Path(where), demo_parts.sources())
    elif kind == "pairs":
        numbers = [(n * 7919) % 10_000 for n in range(4000)]
        Path(where).write_text("".join(f"ITA {italian(n)} ENG {english(n)}\n" for n in numbers), encoding="utf-8")
    elif kind == "formulas":
        pairs = [((n * 7919) % 90, (n * 104729) % 90) for n in range(4000)]
        demo_parts.write_jsonl(Path(where), [f"The sum is [formula] {a} + {b} = {a + b} [/formula]." for a, b in pairs])
    elif kind == "bpe":
        bpe(Path(where), Path(more[0]))
    else:
        sys.exit(__doc__)


def italian(n: int) -> str:
    """Return a number below 10000 in Italian words, one word for each group of digits."""
    if n < 20:
        return SMALL["it"].split()[n]
    if n < 100:
        tens = TENS["it"].split()[n // 10 - 2]
        return tens if n % 10 == 0 else (tens[:-1] if n % 10 in (1, 8) else tens) + SMALL["it"].split()[n % 10]
    size, one, many = (100, "cento", "cento") if n < 1000 else (1000, "mille", "mila")
    head = one if n // size == 1 else italian(n // size) + many
    return head if n % size == 0 else f"{head} {italian(n % size)}"


def english(n: int) -> str:
    """Return a number below 10000 in English words."""
    if n < 20:
        return SMALL["en"].split()[n]
    if n < 100:
        return TENS["en"].split()[n // 10 - 2] + ("" if n % 10 == 0 else "-" + SMALL["en"].split()[n % 10])
    size, word = (100, "hundred") if n < 1000 else (1000, "thousand")
    head = f"{english(n // size)} {word}"
    return head if n % size == 0 else f"{head} {english(n % size)}"


def bpe(folder: Path, lines: Path) -> None:
    """Train and save a tokenizer like GPT-2's, with its end-of-text token."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(lines)], vocab_size=2000, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=end, bos_token=end).save_pretrained(folder)


if __name__ == "__main__":
    main()
