"""A PEFT adapter's folder: which of its files are published, whether they are whole, and its card."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mconv.convert.folders.sidecar import LEGAL, LeftOut
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import FormatError, MconvError, refuse
from mconv.hub import card as cards
from mconv.hub.folder import CARD, MANIFEST, secrets_in
from mconv.hub.folder import missing as missing_of_a_model

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PUBLISHED = (CONFIG, WEIGHTS, CARD, MANIFEST)
"""Files of an adapter that are published, besides licenses and notices."""
UNFILLED = "[More Information Needed]"
"""PEFT's placeholder, which a card that nobody has filled in has some forty times."""


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter and no model."""
    from mconv.convert.peft import folder as peft

    return peft.is_adapter(folder)


def of_a_repository(names: Mapping[str, Any]) -> list[str]:
    """Return the files of a repository's adapter, [] if it has none. Like PEFT, prefers safetensors."""
    weights = next((name for name in (WEIGHTS, OLD_WEIGHTS) if name in names), None)
    return [CONFIG, weights] if CONFIG in names and weights else []


def missing(folder: Path) -> list[str]:
    """Return the necessary files that are missing, of an adapter or else of a model."""
    if not is_adapter(folder):
        return missing_of_a_model(folder)
    return [] if any((folder / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS)) else [WEIGHTS]


def survey(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """Return the names of the files that are published, and those left out."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name != ".cache")
    mine = [name for name in names if name in PUBLISHED or (name.startswith(LEGAL) and not name.endswith("/"))]
    return mine, [LeftOut(name=name, why="not a file of an adapter") for name in names if name not in mine]


def check(folder: Path) -> None:
    """Raise FormatError with every reason why PEFT could not load the folder, or why it must not be shared."""
    names, _ = survey(folder)
    problems = [f"{folder / name}: a pickle, which runs code when loaded; save it as {WEIGHTS} and remove it"
                for name in (OLD_WEIGHTS,) if (folder / name).is_file()]  # fmt: skip
    problems += [f"{folder / WEIGHTS}: missing"] * (not problems and WEIGHTS not in names)
    problems += _base_problems(folder) + secrets_in(folder, names)
    refuse(problems, doing=f"{folder} is not an adapter to publish", kind=FormatError)
    check_tensors(folder)


def check_tensors(folder: Path) -> None:
    """Raise FormatError unless an adapter's file is whole, with both factors of each module and no NaN or infinity."""
    from mconv.convert.peft import folder as peft

    read_json(folder / CONFIG)
    found = peft.tensors(folder)
    bad = [f"{key}: is of {where.dtype}" for key, where in found.items() if where.dtype not in peft.DTYPES]
    refuse(bad, doing=f"{folder} is not a whole adapter", kind=FormatError)
    bad = [f"{key}: holds NaN or infinity" for key, where in found.items() if not bool(where.load().isfinite().all())]
    for key in found:
        if (other := _other_factor(key)) and other not in found:
            bad.append(f"{key}: its other factor {other} is missing")
    refuse(bad, doing=f"{folder} is not a whole adapter", kind=FormatError)


def _other_factor(key: str) -> str | None:
    """Return the name of the other factor, for the name of one."""
    swapped = re.sub(r"\.lora_(embedding_)?([AB])(?=\.|$)",
                     lambda match: f".lora_{match[1] or ''}{'B' if match[2] == 'A' else 'A'}", key)  # fmt: skip
    return swapped if swapped != key else None


def _base_problems(folder: Path) -> list[str]:
    """Return why nobody else could find the base that the config names."""
    try:
        name = read_json(folder / CONFIG).get("base_model_name_or_path")
    except MconvError as error:
        return [str(error)]
    here = isinstance(name, str) and name and (Path(name).is_absolute() or _is_beside(folder, name))
    if isinstance(name, str) and not here and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        return []
    return [
        f"{folder / CONFIG}: base_model_name_or_path is {name!r}, which nobody else has: write the base's name on the "
        "Hub there (of a run's adapter: `mconv lora export RUN --base-model ORG/NAME`)"
    ]


def _is_beside(folder: Path, name: str) -> bool:
    """Return whether a name is that of a folder here, in the adapter's or beside it, and not ORG/NAME."""
    return "/" not in name and any((place / name).is_dir() for place in (Path(), folder, folder.parent))


def published_config(folder: Path) -> bytes | None:
    """Return the config without this machine's paths in its training settings; None if there are none."""
    config = read_json(folder / CONFIG)
    plain = {key: cards.public(value) if key.endswith("_config") else value for key, value in config.items()}
    return None if plain == config else (json.dumps(plain, indent=2) + "\n").encode()


def is_template(card: str) -> bool:
    """Return whether a card is the one that PEFT writes and nobody has filled in."""
    return card.count(UNFILLED) >= 20


def render(folder: Path, *, repo: str, license: str | None = None) -> str:
    """Return the whole README.md of an adapter's repository: base, rank, alpha, targets, and how to load it."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    from mconv.convert.peft.facts import facts

    found = {key: cards.public(value) for key, value in facts(folder).items()}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, finalize=cards.escape, autoescape=False)
    template = environment.from_string(Path(__file__).with_name("adapter.md.jinja").read_text(encoding="utf-8"))
    body = template.render(
        name=repo.rpartition("/")[2], repo=cards.Plain(json.dumps(repo)), base=cards.Plain(json.dumps(found["base"])),
        facts=found, rows=_rows(found),
        pasted=cards.Plain(f"mconv lora merge ADAPTER --base {found['base']} --out FOLDER"),
    )  # fmt: skip
    metadata = yaml.safe_dump(_metadata(found, license=license), sort_keys=False, allow_unicode=False)
    return cards.seal(f"---\n{metadata}---\n\n{body}")


def _rows(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    names = {
        "base": "base model", "rank": "rank", "alpha": "alpha", "scale": "B A is multiplied by", "targets": "adapts",
        "modules": "adapted modules", "whole_modules": "replaces whole", "parameters": "parameters", "dtype": "dtype",
    }  # fmt: skip
    rows = [(shown, found[key]) for key, shown in names.items() if found[key] not in (None, [])]
    return [(shown, ", ".join(map(str, value[:40])) if isinstance(value, list) else value) for shown, value in rows]


def _metadata(found: Mapping[str, Any], *, license: str | None) -> dict[str, Any]:
    cards.check_license(license)
    known = {
        "library_name": "peft", "pipeline_tag": "text-generation", "license": license, "base_model": found["base"],
        "base_model_relation": "adapter", "tags": ["mconv", "lora"],
    }  # fmt: skip
    return {key: value for key, value in known.items() if value}
