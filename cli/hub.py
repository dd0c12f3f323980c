"""`mconv push` and `mconv pull`: models to and from the Hugging Face Hub."""

import json as jsonlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import choose
from mconv.convert import logbook
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.cli.gate import Finding
    from mconv.hub.push import PushPlan, PushResult

Flag = Annotated[bool, Parameter(negative=())]
_CARD_LINES = 20


def push(
    folder: Path | None = None,
    repo: str | None = None,
    *,
    private: Flag = False,
    revision: str | None = None,
    yes: Flag = False,
    dry_run: Flag = False,
    overwrite: Flag = False,
    overwrite_card: Flag = False,
    license: str | None = None,
    against: Path | None = None,
    record: Flag = False,
    unverified: Flag = False,
    json: Flag = False,
) -> int:
    """Publish a model folder on the Hugging Face Hub, in one commit, if it is proven to be what it was made from.

    A passing verdict that `mconv verify --record` left counts while the weights are the same. Without one the folder is
    judged now, by its source. Exit code 1: they are not the same model; 2: there is nothing to judge it by. Nobody is
    contacted before.

    The token comes from HF_TOKEN or from `hf auth login`, the address of another Hub from HF_ENDPOINT.

    Parameters
    ----------
    folder
        A Hugging Face model folder: config.json, safetensors weights, tokenizer. Default: the newest in the current
        folder that mconv made.
    repo
        ORG/NAME, or NAME for a repository of your own. It is made if it is not there. Default: the folder's name under
        that of the token's owner, once it is confirmed.
    private
        Make the repository private.
    revision
        The branch to push to. It is made if it is not there.
    yes
        Take the default repository without asking: for scripts.
    dry_run
        List what would be sent, show the card, compare the tensors with those of the source, contact nobody
        (but ask for the token's owner, where no repository is named).
    overwrite
        Delete weights of the repository that this push does not replace.
    overwrite_card
        Replace a README.md that somebody wrote.
    license
        The license for the card, an identifier of the Hub such as llama2.
    against
        Judge the folder by this: a checkpoint, a folder, or a repository of the Hub's cache. Default: by its source.
    record
        Keep the verdict in the folder's mconv.json too, not only in what is published.
    unverified
        Publish without a verdict; the card then says so.
    json
        Print one JSON object instead of tables.
    """
    from mconv.hub import push as hub

    _check_gate(against=against, record=record, unverified=unverified, dry_run=dry_run)
    if folder and repo is None and not folder.exists() and len(folder.parts) == 2:
        raise MconvError(f"{folder} is no folder here; a repository is named after one: `mconv push FOLDER {folder}`")
    folder = folder or choose.newest("push", "Hugging Face folder that mconv made").path
    if not (repo or yes or dry_run or sys.stdin.isatty()):
        raise MconvError(
            f"no repository was named, and nobody is at a terminal to confirm one: give ORG/NAME, or --yes for "
            f"{hub.repository_name(folder)} under the name of the token's owner"
        )
    card: dict[str, Any] = {"overwrite_card": overwrite_card, "license": license}
    hub.plan(folder, repo or hub.repository_name(folder), **card)  # first, what is wrong with the folder itself
    if dry_run:
        named = repo or _proposed(folder, rehearsal=True)
        return _rehearse(hub.plan(folder, named, **card), against=against, unverified=unverified, json=json, **card)
    found = _gate(folder, against=against, unverified=unverified, record=record)
    if not json:
        print("\n".join(found.lines), flush=True)
    if not (found.passed or unverified):
        _show({"verification": found.as_json()}) if json else print("nothing was sent")
        return 1
    repo = repo or _proposed(folder, confirmed=yes)
    with hub.progress(shown=not json and sys.stderr.isatty()):
        done = hub.push(
            folder,
            repo,
            private=private,
            revision=revision,
            overwrite=overwrite,
            verified=found.verdicts,
            endpoint=os.environ.get("HF_ENDPOINT"),
            **card,
        )
    logbook.add(folder, "pushed", repo=done.repo, url=done.url, commit=done.commit)
    _show({**hub.as_json(done), "verification": found.as_json()}) if json else _print_result(done)
    return 0


def _proposed(folder: Path, *, confirmed: bool = False, rehearsal: bool = False) -> str:
    """USER/FOLDER by the token's owner, confirmed at the terminal. A rehearsal does without an owner, and says so."""
    from mconv.hub import push as hub

    try:
        name = hub.propose(folder, endpoint=os.environ.get("HF_ENDPOINT"))
    except MconvError as error:
        if not rehearsal:
            raise
        print(f"note: whose repository it would be is not known ({error})", file=sys.stderr)
        return hub.repository_name(folder)
    if rehearsal:
        return name
    if confirmed:
        print(f"push: {folder} to {name} (--yes)", file=sys.stderr)
        return name
    print(f"push {folder} to {name}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise MconvError(f"{name} was not confirmed: nothing was sent; give ORG/NAME for another repository")
    return name


def _check_gate(*, against: Path | None, record: bool, unverified: bool, dry_run: bool) -> None:
    if unverified and (against or record):
        raise MconvError("--unverified goes without a verdict: give it, or --against and --record")
    if dry_run and record:
        raise MconvError("--record: a dry run reaches no verdict that could be kept")


def _gate(
    folder: Path, *, against: Path | None, unverified: bool, record: bool = False, rehearsal: bool = False
) -> "Finding":
    from mconv.cli import gate
    from mconv.hub import adapter

    if adapter.is_adapter(folder):
        return gate.of_an_adapter(folder, asked=against is not None or record)
    if unverified:
        return gate.without_a_verdict(folder)
    return gate.before_publishing(folder, against=against, rehearsal=rehearsal, record=record)


def _rehearse(planned: "PushPlan", *, against: Path | None, unverified: bool, json: bool, **card: Any) -> int:
    """Show what would be sent, and then whether it would be sent at all: with the exit code that the push would have."""
    from mconv.hub import push as hub

    refused = None
    try:
        found = _gate(planned.folder, against=against, unverified=unverified, rehearsal=True)
        planned = hub.plan(planned.folder, planned.repo, verified=found.verdicts, **card)
        told = found.as_json()
    except MconvError as error:
        refused, told = error, {"state": "refused", "passed": False, "against": None, "lines": [str(error)]}
    if json:
        _show({**hub.as_json(planned), "verification": told})
    else:
        _print_plan(planned)
        print("\n".join(["", *([] if refused else told["lines"])]))
    if refused:
        raise refused
    return 0 if told["passed"] or unverified else 1


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
    from mconv.convert.sidecar import LeftOut, note
    from mconv.hub import adapter
    from mconv.hub.fetch import pull as fetch
    from mconv.hub.folder import survey
    from mconv.hub.push import progress

    left: list[LeftOut] = []
    with progress(shown=not json and sys.stderr.isatty()):
        folder = fetch(
            repo, out, size=size, revision=revision, overwrite=overwrite, endpoint=os.environ.get("HF_ENDPOINT"),
            tell=left.extend,
        )  # fmt: skip
    if behind := note(left):
        print(f"note: {behind}", file=sys.stderr)
    alone = adapter.is_adapter(folder)
    files = sorted(path.name for path in folder.iterdir() if path.is_file()) if alone else survey(folder)[0]
    told = f"; an adapter: `mconv lora merge {folder} --base BASE` makes a model of it and its base" * alone
    _show({"folder": str(folder), "files": files}) if json else print(f"{folder}: {len(files)} files, whole{told}")


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
