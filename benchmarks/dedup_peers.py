"""Run another program's deduplication, with a Python that has it; dedup.py beside this file starts it.

    PYTHON benchmarks/dedup_peers.py text-dedup|datasketch|rensa SOURCE.jsonl KEPT.jsonl

Records have `id` and `text`. Prints seconds and CPU seconds as JSON: of text-dedup's whole command between two data
sets on the disk, of the others from reading to writing. Parameters are those of `text_dedup.minhash --num_perm 64
--threshold 0.85` (5-grams); rensa's recipe needs equal bands and takes 8 x 8.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NUM_PERM, THRESHOLD, NGRAM = 64, 0.85, 5


def text_dedup(source: Path, kept: Path) -> tuple[float, float]:
    import datasets

    before, after = (str(kept.with_suffix(suffix)) for suffix in (".before", ".after"))
    cache = str(kept.with_suffix(".cache"))
    datasets.Dataset.from_json(str(source), cache_dir=cache).save_to_disk(before)
    command = [
        sys.executable, "-m", "text_dedup.minhash", "--path", before, "--split", "train", "--cache_dir", cache, "--local",
        "--output", after, "--column", "text", "--seed", "42", "--batch_size", "4096", "--num_perm", str(NUM_PERM),
        "--threshold", str(THRESHOLD), "--num_proc", str(os.cpu_count()),
    ]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(errors.decode())
    datasets.load_from_disk(after).to_json(str(kept))
    return seconds, usage.ru_utime + usage.ru_stime


def texts(source: Path) -> Iterator[tuple[str, set[str]]]:
    for line in source.open():
        words = json.loads(line)["text"].lower().split()
        yield line, {" ".join(words[at : at + NGRAM]) for at in range(max(1, len(words) - NGRAM + 1))}


def datasketch(source: Path, kept: Path) -> None:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERM)
    with kept.open("w") as file:
        for number, (line, grams) in enumerate(texts(source)):
            signature = MinHash(num_perm=NUM_PERM)
            signature.update_batch([gram.encode() for gram in grams])
            if not index.query(signature):
                index.insert(number, signature)
                file.write(line)


def rensa(source: Path, kept: Path) -> None:
    from rensa import RMinHash, RMinHashLSH

    index, signatures = RMinHashLSH(threshold=THRESHOLD, num_perm=NUM_PERM, num_bands=8), {}
    with kept.open("w") as file:
        for number, (line, grams) in enumerate(texts(source)):
            signature = RMinHash(num_perm=NUM_PERM, seed=42)
            signature.update(list(grams))
            if all(signature.jaccard(signatures[other]) < THRESHOLD for other in index.query(signature)):
                signatures[number] = signature
                index.insert(number, signature)
                file.write(line)


def main() -> None:
    name, source, kept = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name == "text-dedup":
        seconds, cpu = text_dedup(source, kept)
    else:
        start = time.perf_counter(), time.process_time()
        {"datasketch": datasketch, "rensa": rensa}[name](source, kept)
        seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    print(json.dumps({"seconds": seconds, "cpu": cpu}))


if __name__ == "__main__":
    main()
