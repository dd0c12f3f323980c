"""`mconv data tokenize` beside datatrove and Megatron-LM's preprocess_data.py, on the same text with the same tokenizer.

    python benchmarks/data.py [--size 60MB] [--text code] [--tokenizer bpe] [--workers 2] [--repeat 3]
        [--datatrove PYTHON] [--megatron CHECKOUT] [--folder DIR]

The text is that of the Python files (`code`) or of the documentation (`prose`) of this Python and its packages, file by
file, from the start again where it is shorter than `--size`. The tokenizers are trained on its beginning, once:
a byte-level BPE of 49152 entries like SmolLM2's (`bpe`), or SentencePiece of 32000 like Llama 2's (`sentencepiece`).
`--datatrove` is the Python of an environment with datatrove and tokenizers, `--megatron` a checkout of Megatron-LM, which
runs in this Python (and needs the package six, on PYTHONPATH). Contestants take turns; each row is the fastest of its
runs as a whole process, start and imports among it. `cpu` is the processor time of all its processes, which other work
on the machine changes less. The token ids of all must be equal.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

END = "<|endoftext|>"
SUFFIXES = {"code": {".py"}, "prose": {".rst", ".md", ".txt", ".html"}}
SAMPLE = {"bpe": 40_000_000, "sentencepiece": 10_000_000}
"""Bytes of text that a tokenizer is trained on."""
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
"""Processes that a contestant leaves behind, as datatrove's fork server, are counted too."""
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
FLOOR = """
import json, sys
from multiprocessing import get_context
from tokenizers import Tokenizer

def count(path):
    tokenizer, tokens, texts = Tokenizer.from_file(sys.argv[1]), 0, []
    def flush():
        found = sum(len(one.ids) for one in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        texts.clear()
        return found
    for line in open(path, "rb"):
        texts.append(json.loads(line)["text"])
        if len(texts) == 200:
            tokens += flush()
    return tokens + flush()

if __name__ == "__main__":
    with get_context("spawn").Pool(len(sys.argv[2:])) as pool:
        print(sum(pool.map(count, sys.argv[2:])))
"""
DATATROVE = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import MegatronDocumentTokenizer

if __name__ == "__main__":
    tokenizer, out, source, tasks = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    steps = [
        JsonlReader(source, glob_pattern="part-*.jsonl"),
        MegatronDocumentTokenizer(
            output_folder=out, tokenizer_name_or_path=tokenizer, save_filename="d", eos_token="<|endoftext|>"
        ),
    ]
    LocalPipelineExecutor(steps, tasks=tasks, workers=tasks, logging_dir=out + "/logs").run()
"""
MEGATRON = """
import runpy, sys, types

# Its imports lead to kernels for GPUs, which want triton; tokenizing calls none of them.
kernels = types.ModuleType("megatron.core.transformer.custom_layers.batch_invariant_kernels")
kernels.__getattr__ = lambda name: None
sys.modules[kernels.__name__] = kernels
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Case:
    """One text, one tokenizer."""

    folder: Path
    parts: list[Path]
    """The text as JSON lines, a file for each worker."""
    whole: Path
    """The same in one file."""
    tokenizer: Path
    kind: str
    workers: int
    size: int


@dataclass(frozen=True)
class Run:
    """How a contestant did."""

    seconds: float
    cpu: float


# ---- text and tokenizers ---------------------------------------------------------------------------------------------
def texts(kind: str) -> Iterator[str]:
    """Yield the text of each file of this Python and its packages, in the order of their names, again and again."""
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    roots = [*roots, *(Path(path) for path in sys.path if path.endswith("site-packages"))]
    found = {path.resolve() for root in roots for path in root.rglob("*") if path.suffix in SUFFIXES[kind]}
    paths = sorted(path for path in found if path.is_file() and path.stat().st_size)
    while True:
        for path in paths:
            yield path.read_text(errors="replace")


def write_text(folder: Path, kind: str, size: int, parts: int) -> list[Path]:
    """Write `parts` files of JSON lines with `size` bytes of text, and all of it in whole.jsonl; returns the parts."""
    paths = [folder / f"part-{number}.jsonl" for number in range(parts)]
    if (folder / "whole.jsonl").exists():
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    source, written = texts(kind), 0
    for number, path in enumerate(paths, 1):
        with path.open("w") as file:
            while written < size * number // parts:
                text = next(source)
                written += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
    with (folder / "unfinished").open("wb") as whole:
        for path in paths:
            with path.open("rb") as file:
                shutil.copyfileobj(file, whole)
    (folder / "unfinished").rename(folder / "whole.jsonl")
    return paths


def sample(kind: str, size: int) -> Iterator[str]:
    """Yield the beginning of a text."""
    for text in texts(kind):
        if size <= 0:
            return
        size -= len(text)
        yield text


def train_bpe(folder: Path, text: str) -> None:
    """Train a byte-level BPE as SmolLM2 has it, and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=49152, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sample(text, SAMPLE["bpe"]), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def train_sentencepiece(folder: Path, text: str) -> None:
    """Train a SentencePiece BPE with the options of Llama 2's."""
    import sentencepiece

    lines = (line for one in sample(text, SAMPLE["sentencepiece"]) for line in one.splitlines() if line.strip())
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "tokenizer"), model_type="bpe", vocab_size=32000,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.99995, minloglevel=2,
    )  # fmt: skip


TRAINERS: dict[str, Callable[[Path, str], None]] = {"bpe": train_bpe, "sentencepiece": train_sentencepiece}


def make(folder: Path, *, text: str, tokenizer: str, size: int, workers: int) -> Case:
    """Write the text and train the tokenizer where an earlier run has not."""
    trained = folder / f"{tokenizer}-{text}"
    if not trained.exists():
        print(f"training {trained.name} ...", file=sys.stderr)
        TRAINERS[tokenizer](trained, text)
    place = folder / f"{text}-{size}-{workers}"
    parts = write_text(place, text, size, workers)
    return Case(place, parts, place / "whole.jsonl", trained, tokenizer, workers, size)


# ---- contestants -----------------------------------------------------------------------------------------------------
def timed(command: list[str], **environment: str) -> Run:
    """Run a command and return how long it took. Raises CalledProcessError, with what it printed, if it fails."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        ended = dict(_ended())
        seconds = time.perf_counter() - began
        process.returncode, _ = ended[process.pid]
        if process.returncode:
            said.seek(0)
            print(said.read()[-3000:], file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command)
    return Run(seconds, sum(cpu for _, cpu in ended.values()))


def _ended() -> Iterator[tuple[int, tuple[int, float]]]:
    """Wait for all processes; yield the id, the exit code and the processor time of each that was not waited for."""
    with suppress(ChildProcessError):
        while True:
            pid, status, used = os.wait4(-1, 0)
            yield pid, (os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)


def tokenizer_words(case: Case) -> list[str]:
    """Return Megatron's options for the tokenizer, which are mconv's too."""
    kinds = {
        "bpe": ["HuggingFaceTokenizer", str(case.tokenizer)],
        "sentencepiece": ["GPTSentencePieceTokenizer", str(case.tokenizer / "tokenizer.model")],
    }
    kind, model = kinds[case.kind]
    return ["--tokenizer-type", kind, "--tokenizer-model", model]


def ours(case: Case, out: Path) -> Run:
    """Tokenize with mconv."""
    code = "import sys; from mconv.cli.app import main; main()"
    words = ["data", "tokenize", *map(str, case.parts), *tokenizer_words(case), "--out", str(out / "d")]
    return timed([sys.executable, "-c", code, *words, "--workers", str(case.workers)])


def floor(case: Case, out: Path) -> Run:
    """Only parse and encode, in as many bare processes."""
    script = out / "floor.py"
    script.write_text(FLOOR)
    command = [sys.executable, str(script), str(case.tokenizer / "tokenizer.json"), *map(str, case.parts)]
    return timed(command, TOKENIZERS_PARALLELISM="false")


def datatrove(case: Case, out: Path, python: str) -> Run:
    """Tokenize with datatrove, a task for each part."""
    script = out / "run_datatrove.py"
    script.write_text(DATATROVE)
    tokenizer = str(case.tokenizer / "tokenizer.json")
    return timed([python, str(script), tokenizer, str(out), str(case.folder), str(case.workers)])


def megatron(case: Case, out: Path, checkout: str) -> Run:
    """Tokenize with Megatron-LM's preprocess_data.py."""
    script = out / "run_megatron.py"
    script.write_text(MEGATRON)
    command = [sys.executable, str(script), f"{checkout}/tools/preprocess_data.py", "--input", str(case.whole)]
    words = [*tokenizer_words(case), "--append-eod", "--workers", str(case.workers), "--output-prefix", str(out / "d")]
    return timed([*command, *words], PYTHONPATH=f"{checkout}:{os.environ.get('PYTHONPATH', '')}")


def digest(out: Path) -> str | None:
    """Return a digest of all ids, None where none were written. Datatrove writes a file for each task."""
    paths = sorted(out.glob("*.bin"), key=lambda path: re.findall(r"\d+", path.name))
    found = hashlib.sha256()
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest() if paths else None


def contestants(options: argparse.Namespace) -> dict[str, Callable[[Case, Path], Run]]:
    """Return who takes part, by name; says who does not."""
    found: dict[str, Callable[[Case, Path], Run]] = {"mconv": ours}
    rust = options.tokenizer == "bpe"
    wanted = {
        "encode_batch_fast alone": (rust, "is of the package tokenizers", floor),
        "datatrove": (rust and options.datatrove, "needs --datatrove PYTHON and --tokenizer bpe",
                      lambda case, out: datatrove(case, out, options.datatrove)),
        "Megatron-LM": (options.megatron, "needs --megatron CHECKOUT",
                        lambda case, out: megatron(case, out, options.megatron)),
    }  # fmt: skip
    for name, (there, why, run) in wanted.items():
        if there:
            found[name] = run
        else:
            print(f"left out: {name} {why}", file=sys.stderr)
    return found


def main() -> None:
    """Print a row for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="60MB")
    parser.add_argument("--text", choices=SUFFIXES, default="code")
    parser.add_argument("--tokenizer", choices=TRAINERS, default="bpe")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--datatrove", metavar="PYTHON")
    parser.add_argument("--megatron", metavar="CHECKOUT")
    parser.add_argument("--folder", type=Path, default=Path("build/bench-data"))
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    size = int(options.size[:-2]) * UNITS[options.size[-2:].upper()]
    case = make(options.folder, text=options.text, tokenizer=options.tokenizer, size=size, workers=options.workers)
    runs: dict[str, list[Run]] = {}
    digests: dict[str, str] = {}
    tokens = 0
    for _ in range(options.repeat):
        for name, contestant in contestants(options).items():
            out = options.folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            runs.setdefault(name, []).append(contestant(case, out))
            if found := digest(out):
                digests[name] = found
                tokens = tokens or sum(path.stat().st_size for path in out.glob("*.bin")) // 2
    report(case, runs, tokens)
    if len(set(digests.values())) > 1:
        sys.exit(f"the ids differ: {digests}")


def report(case: Case, runs: dict[str, list[Run]], tokens: int) -> None:
    """Print the table."""
    print(f"{case.folder.name}, {case.tokenizer.name}: {tokens / 1e6:.1f} M tokens, {case.workers} workers")
    print(f"| {'':<24} | seconds | cpu, s | M tokens/s | MB/s a worker | times mconv's |")
    print("|---|---|---|---|---|---|")
    base = min(run.seconds for run in runs["mconv"])
    for name, found in runs.items():
        seconds, cpu = min(run.seconds for run in found), min(run.cpu for run in found)
        rates = f"{tokens / seconds / 1e6:.2f} | {case.size / 1e6 / seconds / case.workers:.2f}"
        print(f"| {name:<24} | {seconds:.1f} | {cpu:.1f} | {rates} | {seconds / base:.2f} |")


if __name__ == "__main__":
    main()
