"""Default names of outputs: the model's own name, and the kind of the result. Names do not grow with each step."""

import re

FORMATS = "mp_rank|nvidia-legacy|megatron-llm|fp32|bf16|fp16"
KIND = re.compile(rf"-(?:megatron|hf|adapter|run)(?:-(?:v?pp\d+|tp\d+|{FORMATS}))*$", re.IGNORECASE)
ITERATION = re.compile(r"-iter_\d+$")


def stem(name: str, *, iteration: int | None = None) -> str:
    """Return a name without what an earlier output's kind, layout or iteration added to it, and with `iteration`.

    `llama2-7b-megatron-tp4-pp2` is `llama2-7b`. A run's own name stays: `llama2-7b-run-iter_500` at iteration 500.
    """
    found = KIND.search(name)
    plain = name[: found.start()] if found and found.start() and found[0] != "-run" else name
    plain = ITERATION.sub("", plain) or plain
    return plain if iteration is None else f"{plain}-iter_{iteration}"


def megatron(
    name: str, *, tp: int = 1, pp: int = 1, vpp: int = 1, format: str = "torch_dist", dialect: str = "mcore",
    dtype: str | None = None, iteration: int | None = None,
) -> str:  # fmt: skip
    """Return the name of a Megatron root made of what is called `name`: NAME-megatron-tp4-pp2-mp_rank."""
    sizes = [f"{word}{size}" for word, size in (("tp", tp), ("pp", pp), ("vpp", vpp)) if size > 1]
    kind = [format] * (format != "torch_dist" and dialect == "mcore") + [dialect] * (dialect != "mcore")
    return "-".join([stem(name, iteration=iteration), "megatron", *sizes, *kind, *([dtype] if dtype else [])])


def hugging_face(name: str, *, iteration: int | None = None, dtype: str | None = None) -> str:
    """Return the name of a Hugging Face folder made of what is called `name`: NAME-hf, NAME-iter_500-hf."""
    return "-".join([stem(name, iteration=iteration), "hf", *([dtype] if dtype else [])])


def made(name: str, *, format: str, dtype: str | None, tp: int, pp: int) -> str:
    """Return the name of a model made in either kind of format; a Megatron root's leaves the dtype out."""
    return hugging_face(name, dtype=dtype) if format == "hf" else megatron(name, format=format, tp=tp, pp=pp)


def merged(name: str, *, iteration: int | None = None) -> str:
    """Return what to call an adapter's merge, before its format and layout: NAME-iter_500-merged."""
    return f"{stem(name, iteration=iteration)}-merged"


def adapter(name: str, *, iteration: int | None = None) -> str:
    """Return the name of a PEFT folder made of a run: NAME-iter_500-adapter."""
    return f"{stem(name, iteration=iteration)}-adapter"


def run(name: str) -> str:
    """Return the name of the folder of a run that starts from what is called `name`: NAME-run."""
    return f"{stem(name)}-run"
