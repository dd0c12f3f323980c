"""`mconv verify`: the check that fails the process."""

import json as jsonlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mconv.cli import options as o
from mconv.cli.terminal import progress
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.convert.checkpoint import Checkpoint


def verify(
    a: Path,
    b: Path,
    *,
    digests: o.Flag = False,
    tp: int | None = None,
    pp: int | None = None,
    sequence_parallel: o.Flag = False,
    length: int | None = None,
    batch: int = 2,
    seed: int = 1234,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    iteration: o.Iteration = None,
    vocab_size: o.VocabSize = None,
    dialect: o.Dialect = None,
    config: o.Config = None,
    record: o.Flag = False,
    json: o.Json = False,
) -> int:
    """Compare the logits of two checkpoints: exit 0 if they compute the same function, 1 if not, 2 if it cannot tell.

    A Hugging Face folder runs in transformers, a Megatron checkpoint in megatron-core's own GPTModel on tp x pp real
    ranks, which mconv starts itself (under torchrun it joins the ranks that are there).

    Parameters
    ----------
    a
        The reference: a Hugging Face folder or a Megatron checkpoint.
    b
        The checkpoint to judge.
    digests
        Compare the tensors themselves, bit for bit, in one pass and without a model: any two checkpoints, whatever their
        formats, dialects and layouts. Exit 0 if they hold the same logical tensors, 1 if not, with their names.
    tp
        Tensor-parallel ranks of the Megatron side. Default: those of an mp_rank checkpoint, 1 for torch_dist.
    pp
        Pipeline stages of the Megatron side. Default: likewise.
    sequence_parallel
        Run the Megatron side with sequence parallelism.
    length
        Positions to probe. Default: all that the model has, up to 2048.
    batch
        Sequences; the last is real text where there is a tokenizer, the others are random ids.
    seed
        Of the random ids.
    dtype
        Of the arithmetic, whatever the weights are. Only fp32 can judge to 1e-4.
    record
        Keep the verdict in the manifest of B, from where it goes into the model card.
    """
    from mconv.convert.opening import open_checkpoint

    said: dict[str, Any] = {"iteration": iteration, "vocab_size": vocab_size, "dialect": dialect}
    said["config"] = str(config.resolve()) if config else None
    if digests:
        given = {"tp": tp, "pp": pp, "sequence-parallel": sequence_parallel, "length": length, "record": record}
        given |= {"batch": batch != 2, "seed": seed != 1234, "dtype": dtype != "fp32"}
        if mixed := [f"--{name}" for name, value in given.items() if value]:
            raise MconvError(f"{', '.join(mixed)}: of a comparison of logits; --digests compares the tensors themselves")
        return _digests(*(open_checkpoint(p, **_of_megatron(p, said)) for p in (a, b)), json=json)

    from mconv.train.launch import ranks
    from mconv.verify import report as reports

    if batch < 1 or (length is not None and length < 2):
        raise MconvError("--batch must be at least 1 and --length at least 2")
    if not 0 <= seed < 1 << 63 or 0 in (tp, pp) or min(tp or 1, pp or 1) < 1:
        raise MconvError("--tp and --pp must be at least 1, and --seed a positive number of at most 63 bits")
    sides = [open_checkpoint(path, **_of_megatron(path, said)) for path in (a, b)]
    if all(c.format == "hf" for c in sides) and (tp or pp or sequence_parallel):
        raise MconvError(
            "--tp, --pp and --sequence-parallel are of a Megatron side; both of these are Hugging Face folders"
        )
    if record and sides[1].manifest is None:
        raise MconvError(f"{sides[1].path} has no mconv.json to record the verdict in; mconv did not make it")
    own = next((c.layout for c in sides if c.format == "mp_rank" and c.layout), None)
    parallel = {"tp": tp or (own.tp if own else 1), "pp": pp or (own.pp if own else 1)}
    payload = {
        "a": str(a.resolve()), "b": str(b.resolve()), "length": length, "batch": batch, "seed": seed, "dtype": dtype,
        "a_options": _of_megatron(a, said), "b_options": _of_megatron(b, said),
        "sequence_parallel": sequence_parallel, **parallel,
    }  # fmt: skip
    nproc = 1 if all(c.format == "hf" for c in sides) else parallel["tp"] * parallel["pp"]
    report = ranks.run("mconv.verify.logits:work", payload, nproc=nproc)
    if not report:  # a rank other than 0 of somebody's torchrun
        return 0
    print(jsonlib.dumps(_finite(report), indent=1, allow_nan=False) if json else "\n".join(reports.lines(report)))
    if record:
        reports.record(sides[1].path, report, against=sides[0].name)
    return 0 if report["passed"] else 1


def _digests(a: "Checkpoint", b: "Checkpoint", *, json: bool) -> int:
    """Exit 0 if both hold the same logical tensors, 1 if not."""
    from mconv.verify import digests, report

    with progress(digests.nbytes(a) + digests.nbytes(b), "comparing") as advance:
        found = digests.compare(a, b, progress=advance)
    for warning in report.digest_warnings(found):
        print(f"warning: {warning}", file=sys.stderr)
    if json:
        print(jsonlib.dumps(_finite(found.to_dict()), indent=1, allow_nan=False))
    else:
        print("\n".join(report.digest_lines(found)))
    return 0 if found.same else 1


def _of_megatron(path: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What is said of Megatron roots (--iteration, --dialect, ...); a Hugging Face folder knows all of it."""
    return {} if (path / "config.json").is_file() else said


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
