"""`mconv push` and `mconv pull`: models to and from the Hugging Face Hub."""

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from mconv.hub.push import PushPlan, PushResult

Flag = Annotated[bool, Parameter(negative=())]
_CARD_LINES = 20


def push(
    folder: Path,
    repo: str,
    *,
    private: Flag = False,
    revision: str | None = None,
    dry_run: Flag = False,
    overwrite: Flag = False,
    overwrite_card: Flag = False,
    license: str | None = None,
    json: Flag = False,
) -> None:
    """Publish a model folder on the Hugging Face Hub, in one commit.

    The token comes from HF_TOKEN or from `hf auth login`, the address of another Hub from HF_ENDPOINT.

    Parameters
    ----------
    folder
        A Hugging Face model folder: config.json, safetensors weights, tokenizer.
    repo
        ORG/NAME, or NAME for a repository of your own. It is made if it is not there.
    private
        Make the repository private.
    revision
        The branch to push to. It is made if it is not there.
    dry_run
        List what would be sent, show the card, contact nobody.
    overwrite
        Delete weights of the repository that this push does not replace.
    overwrite_card
        Replace a README.md that somebody wrote.
    license
        The license for the card, an identifier of the Hub such as llama2.
    json
        Print one JSON object instead of tables.
    """
    from mconv.hub import push as hub

    if dry_run:
        planned = hub.plan(folder, repo, overwrite_card=overwrite_card, license=license)
        _show(hub.as_json(planned)) if json else _print_plan(planned)
        return
    with hub.progress(shown=not json and sys.stderr.isatty()):
        done = hub.push(
            folder,
            repo,
            private=private,
            revision=revision,
            overwrite=overwrite,
            overwrite_card=overwrite_card,
            license=license,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    _show(hub.as_json(done)) if json else _print_result(done)


def pull(
    repo: str,
    out: Path,
    *,
    size: str | None = None,
    revision: str | None = None,
    overwrite: Flag = False,
    json: Flag = False,
) -> None:
    """Download a model from the Hugging Face Hub into a folder, and check that it is whole.

    Parameters
    ----------
    repo
        ORG/NAME, or a family (llama2, llama3.1, ...) together with --size.
    out
        The folder to make. An interrupted pull is resumed.
    size
        Billions of parameters, for a family: 7, 13, 70.
    revision
        A branch, tag or commit.
    overwrite
        Allow a folder that holds other files.
    json
        Print one JSON object.
    """
    from mconv.hub.fetch import pull as fetch
    from mconv.hub.push import progress

    with progress(shown=not json and sys.stderr.isatty()):
        folder = fetch(
            repo, out, size=size, revision=revision, overwrite=overwrite, endpoint=os.environ.get("HF_ENDPOINT")
        )
    files = sorted(p.name for p in folder.iterdir() if p.is_file())
    _show({"folder": str(folder), "files": files}) if json else print(f"{folder}: {len(files)} files, whole")


def _show(value: dict[str, Any]) -> None:
    print(jsonlib.dumps(value, indent=2))


def _print_plan(planned: "PushPlan") -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "size", title=f"would go to {planned.repo}", title_justify="left")
    for file in planned.files:
        table.add_row(Text(file.name), decimal(file.size))
    table.add_section()
    table.add_row(f"{len(planned.files)} files", decimal(planned.total_bytes))
    console = Console()
    console.print(table)
    for item in planned.left_out:
        console.print(Text(f"left out: {item.name} ({item.why})"), soft_wrap=True)
    head = planned.card.splitlines()
    console.print(Text("\n".join(["", "README.md" + ("" if planned.card_is_ours else " (yours)"), *head[:_CARD_LINES]])))
    if len(head) > _CARD_LINES:
        console.print(Text(f"... {len(head) - _CARD_LINES} more lines"))


def _print_result(done: "PushResult") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(f"{done.url}  commit {done.commit[:12]}, {len(done.files)} files"))
    for name in done.deleted:
        console.print(Text(f"deleted from the repository: {name}"))
    for name in done.kept:
        console.print(Text(f"kept as it is in the repository: {name} (--overwrite-card replaces it)"))
