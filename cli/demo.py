"""`mconv demo`: every command once, offline, on a small model. A user could type each step."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mconv import extras
from mconv.cli import demo_report
from mconv.cli import options as o
from mconv.cli.demo_report import StepResult
from mconv.errors import CheckFailed, MconvError

MARK = ".mconv-demo"
"""File that marks a demo's folder; only such a folder may be replaced."""
REPOSITORY = "demo/tiny-python-llama"
ITERATIONS = 60


@dataclass(slots=True)
class Demo:
    """The demo's folder, and the steps done so far."""

    folder: Path
    steps: list[StepResult]
    started: float

    def at(self, name: str) -> str:
        """Return a path in the demo's folder as a user would type it."""
        return shlex.quote(str(self.folder / name))

    def do(self, step: str, command: str, work: Callable[[], str]) -> None:
        """Run one step, time it, keep what it proved, and print it."""
        start = time.perf_counter()
        try:
            proven = work()
        except MconvError as error:
            raise CheckFailed(f"demo: step '{step}' failed\n  {command}\n  {error}") from error
        self.steps.append(StepResult(step, command, time.perf_counter() - start, proven))
        print(f"  {step:<9} {self.steps[-1].seconds:5.1f} s  {proven}", flush=True)

    def mconv(self, step: str, arguments: str, prove: Callable[[str], str], **environment: str) -> None:
        """Run one `mconv` command in its own process; its output goes to the folder's logs and to `prove`."""
        self.do(
            step, f"mconv {arguments}", lambda: prove(self._run(["-m", "mconv", *shlex.split(arguments)], environment))
        )

    def python(self, step: str, code: str, prove: Callable[[str], str]) -> None:
        self.do(step, f'python -c "{code}"', lambda: prove(self._run(["-W", "ignore", "-c", code], {})))

    def _run(self, arguments: list[str], environment: dict[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
        )
        log = self.folder / "logs" / f"{len(self.steps) + 1:02d}.log"
        log.write_text(f"{done.stdout}\n{done.stderr}", encoding="utf-8")
        if done.returncode:
            raise CheckFailed(f"exit code {done.returncode}, see {log}\n{(done.stderr or done.stdout)[-2000:].rstrip()}")
        return done.stdout


def demo(*, out: Path = Path("mconv-demo"), overwrite: o.Flag = False) -> None:
    """Run every step once, offline, on a small LLaMA: convert, verify, reshard, train, merge, export, push, generate.

    Parameters
    ----------
    out
        The folder to work in; it is kept.
    overwrite
        Replace the folder of an earlier demo.
    """
    extras.need("train", to="the demo")
    run = Demo(_prepare(out, overwrite=overwrite), [], time.perf_counter())
    print(f"mconv demo in {run.folder}", flush=True)
    parameters = _make(run)
    _there_and_back(run)
    losses = _train(run)
    _home(run)
    _generate(run, _publish(run))
    seconds = time.perf_counter() - run.started
    demo_report.write(run.folder, run.steps, parameters=parameters, losses=losses, seconds=seconds)
    print(f"look around in {run.folder}, or open {run.at('report.html')}")


def _prepare(out: Path, *, overwrite: bool) -> Path:
    import shutil

    if out.exists() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise MconvError(f"{out} exists and is not the folder of a demo; name another one with --out")
        if not overwrite:
            raise MconvError(f"{out} holds an earlier demo; give --overwrite to replace it")
        shutil.rmtree(out)
    (out / "logs").mkdir(parents=True)
    (out / MARK).touch()
    return out


# ---- the steps -------------------------------------------------------------------------------------------------------
def _make(run: Demo) -> int:
    from mconv.cli import demo_parts

    found = {"parameters": 0}

    def work() -> str:
        texts = demo_parts.sources()
        demo_parts.write_jsonl(run.folder / "code.jsonl", texts)
        found["parameters"] = demo_parts.make_model(run.folder / "hf", texts)
        size = (run.folder / "code.jsonl").stat().st_size
        return f"{found['parameters'] / 1e6:.1f} M parameters, GQA 8/4; {len(texts)} source files, {size / 1e6:.1f} MB"

    run.do("make", "(a random LLaMA, its SentencePiece tokenizer, the standard library's sources)", work)
    return found["parameters"]


def _there_and_back(run: Demo) -> None:
    hf, first, second = run.at("hf"), run.at("megatron"), run.at("resharded")
    run.mconv("hf2meg", f"hf2meg {hf} --out {first} --tp 2 --pp 2", _first_line)
    run.mconv("verify", f"verify {hf} {first} --tp 2 --pp 2 --json", _proven)
    run.mconv("reshard", f"reshard {first} --out {second} --tp 4 --pp 1 --format mp_rank", lambda _: _same_digests(run))
    run.mconv("meg2hf", f"meg2hf {second} --out {run.at('back')}", lambda _: _same_files(run, "hf", "back"))


def _train(run: Demo) -> list[float]:
    run.mconv(
        "tokenize",
        f"data tokenize {run.at('code.jsonl')} --prefix {run.at('code')} --tokenizer {run.at('hf')}",
        _first_line,
    )
    losses: list[float] = []
    run.mconv(
        "train",
        f"train --load {run.at('resharded')} --data {run.at('code')} --save {run.at('trained')} --tp 2 --pp 2 "
        f"--sequence-parallel --seq-length 128 --micro-batch-size 8 --global-batch-size 16 "
        f"--train-iters {ITERATIONS} --lr 3e-3 --lr-warmup-iters 5 --log-interval 10 --verify-first",
        lambda text: f"{_judged(text, 'PASS: hf')}; {_fallen(run, losses)}",
    )
    return losses


def _home(run: Demo) -> None:
    trained, merged, final = run.at("trained"), run.at("merged"), run.at("final")
    run.mconv("merge", f"merge {trained} --out {merged}", _first_line)
    run.mconv("meg2hf", f"meg2hf {merged} --out {final}", _first_line)
    run.mconv("verify", f"verify {trained} {final} --tp 2 --pp 2 --record --json", _proven)


def _publish(run: Demo) -> str:
    """Push and pull the model if there is a loopback Hub; return the name of the last copy."""
    if not extras.found("mconv.hub.loopback"):
        print("  push and pull: left out; they need the Hub on 127.0.0.1 from mconv's sources", flush=True)
        return "final"
    from mconv.hub.loopback import LoopbackHub

    token = "hf_" + "demo" * 8
    with LoopbackHub(run.folder / "hub", token=token, orgs=("demo",)) as hub:
        environment = {**hub.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(run.folder / "hf-home")}
        for step, option in (("dry run", " --dry-run"), ("push", "")):
            run.mconv(step, f"push {run.at('final')} {REPOSITORY}{option}", _published, **environment)
        run.mconv(
            "pull",
            f"pull {REPOSITORY} {run.at('pulled')}",
            lambda _: _same_files(run, "final", "pulled", exact=True),
            **environment,
        )
    return "pulled"


def _generate(run: Demo, name: str) -> None:
    code = (
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', {str(run.folder / name)!r})"
        "('def ', max_new_tokens=24, do_sample=False)[0]['generated_text'])"
    )
    run.python("generate", code, lambda text: repr(text.strip()[-100:]))


# ---- proofs ----------------------------------------------------------------------------------------------------------
def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "done"


def _proven(text: str) -> str:
    found = json.loads(text)
    return (
        f"same function: max error {found['max_abs_error']:.1e} ({found['relative_max']:.1e} of scale), "
        f"KL {found['kl']:.0e}, argmax {100 * found['argmax_agreement']:.0f} %"
    )


def _judged(text: str, wanted: str) -> str:
    """Return what a passed check printed, from `wanted` on."""
    found = [
        line[line.index(wanted) :] for line in text.splitlines() if wanted in line and not line.strip().startswith("NO ")
    ]
    if not found:
        raise CheckFailed(f"nothing was verified: no line has {wanted!r}")
    return found[0]


def _published(text: str) -> str:
    return (
        f"{_judged(text, 'verified against')}; {next(line for line in text.splitlines() if REPOSITORY in line).strip()}"
    )


def _same_digests(run: Demo) -> str:
    from mconv.convert.checkpoint.open import open_checkpoint

    one, two = (open_checkpoint(run.folder / name).manifest or {} for name in ("megatron", "resharded"))
    if not one["digests"] or one["digests"] != two["digests"]:
        raise CheckFailed("the resharded checkpoint holds other tensors")
    return f"{len(one['digests'])} logical tensors, same digests; torch_dist 2 x 2 -> mp_rank 4 x 1"


def _same_files(run: Demo, a: str, b: str, *, exact: bool = False) -> str:
    """Check that every weight, config and tokenizer file of `a` equals `b`'s, and return how many there are.

    Only the model card may be in one of them alone: a push writes it.
    """
    from mconv.convert.folders.sidecar import look

    first = run.folder / a
    names, others = (
        sorted({*(p.name for p in folder.glob("*.safetensors")), *look(folder).files} - {"README.md"})
        for folder in (first, run.folder / b)
    )
    if names != others:
        raise CheckFailed(f"{b} has the files {others}, {a} has {names}")
    different = [name for name in names if not _equal(first / name, run.folder / b / name, exact=exact)]
    if different:
        raise CheckFailed(f"{different} differ between {a} and {b}")
    what = "files" if exact else "files (of safetensors: every tensor)"
    return f"{len(names)} {what} of {a} and {b} are the same bytes"


def _equal(a: Path, b: Path, *, exact: bool) -> bool:
    """Return whether two files have the same bytes; safetensors files, unless `exact`, the same tensors."""
    if exact or a.suffix != ".safetensors":
        return a.read_bytes() == b.read_bytes()
    from mconv.convert.formats.hf import read_header
    from mconv.convert.formats.mapped import bytes_of

    one, two = read_header(a), read_header(b)
    return one.keys() == two.keys() and all(
        (x.dtype, x.shape) == (two[n].dtype, two[n].shape) and bytes_of(x.load()) == bytes_of(two[n].load())
        for n, x in one.items()
    )


def _fallen(run: Demo, losses: list[float]) -> str:
    records = [json.loads(line) for line in (run.folder / "trained" / "train.jsonl").read_text().splitlines()]
    losses.extend(record["loss"] for record in records if "loss" in record)
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    if not last < 0.85 * first:
        raise CheckFailed(f"the loss did not clearly fall: {first:.2f} -> {last:.2f}")
    return f"loss {first:.2f} -> {last:.2f} in {len(losses)} iterations, tp 2 x pp 2, sequence parallel"
