"""Rewrite the tables of docs/from-megatron-lm.md and docs/option-names.md from the code."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from mconv.cli import foreign, misuse
from mconv.train.config import TrainConfig
from mconv.train.config.aliases import CONVERTED, NEEDLESS, RENAMED

ROOT = Path(__file__).parents[1]
PAGES = [Path(__file__).with_name(name) for name in ("from-megatron-lm.md", "option-names.md")]
FACTS = json.loads((ROOT / "tests" / "convert" / "megatron_facts.json").read_text())["core_v0.16.1"]
"""Options and defaults of Megatron-LM 0.16.1, read from its source."""
OURS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
WHY = {
    "adam_beta2": "what LLaMA and most recipes since take",
    "lr_decay_style": "the usual shape for a finetuning run",
    "hidden_dropout": "LLaMA, Mistral and Falcon are trained without; give it for GPT-2",
    "attention_dropout": "LLaMA, Mistral and Falcon are trained without; give it for GPT-2",
    "micro_batch_size": "Megatron-LM asks for it",
    "global_batch_size": "not derived from the number of ranks, so a run is the same run at every layout",
    "split": "no data is held back unless you say so",
    "seq_length": "Megatron-LM asks for it",
    "eval_iters": "a quick measurement; raise it for a precise one",
    "log_interval": "one line a step",
    "save_interval": "with 0 the run is saved once, at its end",
}
"""Reason for each default that differs from Megatron-LM's. The script stops at a differing field without one."""
STAND_IN = {
    "micro_batch_size": "none, required",
    "global_batch_size": "micro batch x replicas",
    "split": "969, 30, 1",
    "seq_length": "none, required",
    "save_interval": "none",
}
"""Values that Megatron-LM uses where its parser's default is None (see its `validate_args`)."""
SAME = {"dataloader_type", "eval_interval", "recompute_granularity", "recompute_method", "recompute_num_layers"}
"""Fields for which None in Megatron-LM means the same as mconv's default."""
IN_WORDS = {"split": "all for training", "seq_length": "the model's `max_position_embeddings`"}


def filled(page: str) -> str:
    """Return the page with every table generated from the code."""
    tables = {
        "renamed": _renamed, "converted": _converted, "needless": _needless, "defaults": _defaults, "same": _same,
        "commands": _commands, "names": _names,
    }  # fmt: skip

    def fill(found: re.Match[str]) -> str:
        return "\n".join([f"<!-- {found[1]} -->", *tables[found[1]](), "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n(?:.*\n)*?<!-- end -->", fill, page)


def _renamed() -> list[str]:
    """Return one row for each field that has another name in another program."""
    theirs: dict[str, list[list[str]]] = {}
    for name, ours in RENAMED.items():
        theirs.setdefault(ours, [[], []])[name not in FACTS["names"]].append(name)
    return _table(
        ["Megatron-LM", "others (transformers' Trainer, Megatron-LLM, NeMo)", "mconv train"],
        [[_flags(megatron), _flags(others), _flags([ours])] for ours, (megatron, others) in theirs.items()],
    )


def _converted() -> list[str]:
    """Return one row for each option whose value must be converted."""
    fields = {name: f"`--{name.replace('_', '-')}`" for name in OURS}
    return _table(["option", "in mconv"], [[_flags([name]), text.format_map(fields)] for name, text in CONVERTED.items()])


def _needless() -> list[str]:
    """Return one row for each reason why an option of another program has no counterpart."""
    names: dict[str, list[str]] = {}
    for name, reason in NEEDLESS.items():
        names.setdefault(reason, []).append(name)
    return _table(["option", "in mconv"], [[_flags(listed), reason] for reason, listed in names.items()])


def _same() -> list[str]:
    """Return the options that have the same name in both."""
    return [_flags(sorted(set(OURS) & set(FACTS["names"])))]


def _defaults() -> list[str]:
    """Return one row for each option whose default differs."""
    rows = [
        [_flags([ours]), _value(ours, theirs, STAND_IN), _value(ours, OURS[ours], IN_WORDS), WHY[ours]]
        for ours, theirs in sorted(_their_defaults().items())
        if theirs != OURS[ours] and ours not in SAME
    ]
    rows += [
        [_flags([ours]), words, _value(ours, OURS[ours], IN_WORDS), WHY[ours]]
        for ours, words in sorted(STAND_IN.items())
        if _their_defaults()[ours] == OURS[ours]
    ]
    return _table(["option", "Megatron-LM", "mconv train", "why"], rows)


def _commands() -> list[str]:
    """Return the rows of other programs' commands."""
    return _table(
        ["elsewhere", "mconv"],
        [[f"`{theirs}`", f"`{ours}`".replace(" or ", "` or `")] for theirs, ours in misuse.VERBS.items()],
    )


def _names() -> list[str]:
    """Return a section for each command, with a row for each option that has another name in other programs."""
    lines: list[str] = []
    for command, rows in foreign.TABLES.items():
        theirs: dict[str, list[str]] = {}
        for name, ours in rows.items():
            theirs.setdefault(ours, []).append(name)
        body = [[_flags(names), f"`{ours}`" if _is_name(ours) else ours] for ours, names in theirs.items()]
        lines += [f"### {command}", "", *_table(["elsewhere", f"`mconv {command}`"], body), ""]
    return lines


def _is_name(ours: str) -> bool:
    return ours.isupper() or re.fullmatch(r"--[a-z0-9-]+( [a-z0-9]+)?", ours) is not None


def _their_defaults() -> dict[str, Any]:
    """Return Megatron-LM's default for each of mconv's fields that it has."""
    return {RENAMED.get(name, name): default for name, default in FACTS["defaults"].items() if name not in CONVERTED}


def _value(name: str, value: Any, words: dict[str, str]) -> str:
    return words.get(name) or ("none" if value is None else f"`{value}`")


def _flags(names: list[str]) -> str:
    return ", ".join(f"`--{name.replace('_', '-')}`" for name in names)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
