"""A Hugging Face model folder: which files belong to the model, and whether they are complete."""

import fnmatch
import re
from pathlib import Path

from mconv.convert.folders.recognize import explain, what_is
from mconv.convert.folders.sidecar import LeftOut, look
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, MconvError, refuse

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PUBLISHED = (WEIGHTS, "model-*-of-*.safetensors", INDEX)
"""Weights that are published. `convert/folders/sidecar.py` chooses the files beside them."""
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
"""Weights in torch.save files: read where there are no safetensors, never published."""
OWN = ("meta", "mistral")
"""Kinds of folders with weights in Meta's and Mistral's own files, which are downloaded if there are no others."""
CARD = "README.md"
SOURCE_CARD = "SOURCE_README.md"
"""Name, in the repository, of the card that was copied from the source model."""
MANIFEST = "mconv.json"
STALE = (
    "*.safetensors",
    INDEX,
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "adapter_config.json",
    "adapter_model.bin",
)
"""Weights, and an adapter, that transformers might load instead of the new ones."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SECRET = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,}|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bsk-(?:[a-z0-9]+-)*[A-Za-z0-9_]{32,}"
    rb"|-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----(?:\\n|\s)+[A-Za-z0-9+/=]{16}"
)
"""Patterns of tokens of the Hub, of GitHub, of cloud and model services, and of private keys."""


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a name matches one of the patterns; `*` stays within one folder."""
    return any(name.count("/") == p.count("/") and fnmatch.fnmatchcase(name, p) for p in patterns)


def survey(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """Return the names of the files that belong to the model, and those left out."""
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; give a folder with config.json and model.safetensors")
    weights = {p.name for p in folder.iterdir() if p.is_file() and matches(p.name, (*PUBLISHED, MANIFEST))}
    found = look(folder, weights=weights)
    return sorted({*found.files, *weights}), list(found.left_out)


def check_weights(folder: Path) -> None:
    """Raise FormatError with every reason why a downloaded model is not complete. `.bin` files count as weights."""
    from mconv.convert.formats import meta
    from mconv.convert.formats.hf import open_folder

    if what_is(folder).kind in OWN:
        meta.open_folder(folder)
        return
    names, _ = survey(folder)
    problems = _config_problems(folder)
    if not any(name.endswith(".safetensors") or name == INDEX for name in names) and not missing(folder):
        open_folder(folder)  # reads the pickles without running them, and holds them against their index
    else:
        problems += _weight_problems(folder, names)
    refuse(problems, doing=f"{folder} is not a complete model folder", kind=FormatError)


def check(folder: Path) -> None:
    """Raise FormatError with every reason why transformers could not load `folder` or why it must not be published."""
    what = what_is(folder)
    if what.readable and what.kind != "hf":
        first = "" if what.kind not in OWN else f"`mconv hf2meg {folder} --out MEGATRON` and then "
        make = f"{first}`mconv meg2hf {'MEGATRON' if first else folder} --out FOLDER` makes one that can be pushed"
        raise FormatError(f"{folder} is {what.text}, not a Hugging Face folder; {make}")
    if what.kind not in ("hf", "hf-odd", "config-only", "weights-only", "absent"):
        raise FormatError(explain(folder))
    names, left_out = survey(folder)
    pickled = [item.name for item in left_out if item.name.endswith(PICKLES) and "/" not in item.name]
    problems = [f"{folder / name}: a pickle, which runs code when loaded; remove it" for name in pickled]
    problems += _config_problems(folder) + _weight_problems(folder, names) + secrets_in(folder, names)
    refuse(problems, doing=f"{folder} is not a complete model folder", kind=FormatError)


def missing(folder: Path) -> list[str]:
    """Return the files that a model needs and that are missing, without reading headers."""
    if what_is(folder).kind in OWN:
        return []
    needed = {"config.json", WEIGHTS}
    if (folder / INDEX).is_file():
        needed = {"config.json", *set(shards(folder).values())}
    elif not (folder / WEIGHTS).is_file() and (folder / BIN_INDEX).is_file():
        needed = {"config.json", *set(shards(folder, BIN_INDEX, "*.bin").values())}
    elif not (folder / WEIGHTS).is_file() and (folder / BIN).is_file():
        needed = {"config.json"}
    return sorted(name for name in needed if not (folder / name).is_file())


def shards(folder: Path, index: str = INDEX, pattern: str = "*.safetensors") -> dict[str, str]:
    """Return the shard of each tensor as the index names it. Raises FormatError."""
    path = folder / index
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(v, str) for v in named.values()):
        raise FormatError(f"{path}: 'weight_map' must map tensor names to file names")
    if strange := sorted({v for v in named.values() if not matches(v, (pattern,))}):
        raise FormatError(f"{path}: names the shard {strange[0]!r}, which is no {pattern[2:]} file of this folder")
    return named


def _config_problems(folder: Path) -> list[str]:
    try:
        config = read_json(folder / "config.json")
    except MconvError as error:
        return [str(error)]
    if not isinstance(config.get("model_type"), str):
        return [f"{folder / 'config.json'}: has no 'model_type'; transformers could not load it"]
    return []


def _weight_problems(folder: Path, names: list[str]) -> list[str]:
    found = {name for name in names if name.endswith(".safetensors")}
    if INDEX not in names:
        if found != {WEIGHTS}:
            fault = f"there is no {WEIGHTS}" if WEIGHTS not in found else f"{INDEX} is missing"
            return [f"{folder}: {fault} (safetensors files: {', '.join(sorted(found)) or 'none'})"]
        return [p for p in (_header_problem(folder / WEIGHTS, wanted=None),) if p]
    try:
        index = shards(folder)
    except MconvError as error:
        return [str(error)]
    wanted = {shard: {t for t, s in index.items() if s == shard} for shard in sorted(set(index.values()))}
    problems = [f"{folder / name}: not named by {INDEX}; remove it" for name in sorted(found - set(wanted))]
    return problems + [p for shard in wanted if (p := _header_problem(folder / shard, wanted=wanted[shard]))]


def _header_problem(path: Path, *, wanted: set[str] | None) -> str | None:
    """Return what is wrong with a safetensors file (header, length or tensors), None if nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:  # reads the header and compares the length with it
            held = set(file.keys())
    except FileNotFoundError:
        return f"{path}: missing, but {INDEX} names it"
    except (SafetensorError, OSError) as error:
        return f"{path}: truncated or damaged ({error}); write it again"
    odd = sorted(held ^ wanted) if wanted is not None else []
    return f"{path}: {INDEX} and the file disagree about {odd[0]} ({len(odd)} tensors)" if odd else None


def secrets_in(folder: Path, names: list[str]) -> list[str]:
    """Return a problem for each token and key in files that are about to be published."""
    texts = [name for name in names if not name.endswith((".safetensors", ".model"))]
    found = {name: hit[0] for name in texts if (hit := _SECRET.search((folder / name).read_bytes()))}
    return [f"{folder / name}: holds {_kind(secret)}; remove it, and revoke it" for name, secret in found.items()]


def _kind(secret: bytes) -> str:
    """Return the kind of a secret, without any of its characters."""
    if secret.startswith(b"hf_"):
        return "a Hugging Face token"
    return "a private key" if secret.startswith(b"-----") else "what looks like an access token"
