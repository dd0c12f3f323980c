"""`mconv push`: its checks in order of cost, the dry run, and its output."""

import json as jsonlib
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mconv.cli import choose
from mconv.convert.folders import logbook
from mconv.errors import MconvError

if TYPE_CHECKING:
    from mconv.cli.gate import Finding
    from mconv.hub.push import PushPlan, PushResult
    from mconv.hub.ready import Check, Readiness

_CARD_LINES = 20
_MARKS = {True: "ok", False: "NO", None: "?"}
"""Beginning of a line of the checklist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """Options of a push."""

    private: Annotated[bool, Parameter(help="Make the repository private.", negative=())] = False
    revision: Annotated[
        str | None,
        Parameter(help="The branch to push to. The push makes it if it does not exist. Default: main."),
    ] = None
    yes: Annotated[bool, Parameter(help="Take the default repository without asking: for scripts.", negative=())] = False
    overwrite: Annotated[
        bool,
        Parameter(
            help="Delete weights and tokenizer files of the repository that this push does not replace.", negative=()
        ),
    ] = False
    overwrite_card: Annotated[bool, Parameter(help="Replace a README.md that somebody wrote.", negative=())] = False
    license: Annotated[
        str | None, Parameter(help="The license for the card, an identifier of the Hub such as llama2.")
    ] = None
    against: Annotated[
        Path | None,
        Parameter(
            help="Verify the folder against this checkpoint, folder or cached repository of the Hub. Default: its source."
        ),
    ] = None
    record: Annotated[
        bool,
        Parameter(help="Keep the verdict in the folder's mconv.json too, not only in what is published.", negative=()),
    ] = False
    unverified: Annotated[bool, Parameter(help="Publish without a proof; the card then says so.", negative=())] = False
    json: Annotated[bool, Parameter(help="Print one JSON object instead of tables.", negative=())] = False

    def __post_init__(self) -> None:
        if self.unverified and (self.against or self.record):
            raise MconvError("--unverified skips the proof that --against and --record are about: drop one or the other")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRequest:
    """A push as the command line asks for it."""

    folder: Path
    repo: str | None
    """Repository; None for the folder's name under the token's owner, once confirmed."""
    how: PushOptions

    @property
    def card(self) -> dict[str, Any]:
        """Options that decide the model card."""
        return {"overwrite_card": self.how.overwrite_card, "license": self.how.license}

    @property
    def endpoint(self) -> str | None:
        return os.environ.get("HF_ENDPOINT")

    @property
    def name(self) -> str:
        """Repository, as far as it is known without asking the Hub."""
        from mconv.hub import push as hub

        return self.repo or hub.repository_name(self.folder)

    def look(self, planned: "PushPlan | None") -> "Readiness":
        """Return what the Hub says about the push, without sending anything."""
        from mconv.hub.ready import Wanted, look

        files = frozenset(file.name for file in planned.files) if planned else frozenset()
        return look(
            Wanted(repo=self.name, branch=self.how.revision or "main", private=self.how.private,
                   overwrite=self.how.overwrite, files=files),
            endpoint=self.endpoint,
        )  # fmt: skip


def publish(asked: PushRequest) -> int:
    """Push a folder if all quick checks pass, and then the proof. Return the exit code."""
    from mconv.hub import push as hub

    folder, json = asked.folder, asked.how.json
    if not (asked.repo or asked.how.yes or sys.stdin.isatty()):
        raise MconvError(
            f"no repository was given, and there is no terminal to confirm the default on: give ORG/NAME, or --yes for "
            f"{asked.name} under the name of the token's owner"
        )
    ready = asked.look(hub.plan(folder, asked.name, **asked.card)).require()
    repo = ready.repo if asked.repo else _confirmed(folder, ready.repo, yes=asked.how.yes)
    found = _gate(asked)
    if not json:
        print("\n".join(found.lines), flush=True)
    if not (found.passed or asked.how.unverified):
        show({"verification": found.as_json()}) if json else print("nothing was sent")
        return 1
    with hub.progress(shown=not json and sys.stderr.isatty()):
        done = hub.push(
            folder, repo, private=asked.how.private, revision=asked.how.revision, overwrite=asked.how.overwrite,
            verified=found.verdicts, endpoint=asked.endpoint, **asked.card,
        )  # fmt: skip
    logbook.add(folder, "pushed", repo=done.repo, url=done.url, commit=done.commit)
    show({**hub.as_json(done), "verification": found.as_json()}) if json else _print_result(done)
    return 0


def _confirmed(folder: Path, name: str, *, yes: bool) -> str:
    """Return the proposed repository once the user confirms it at the terminal. Raises MconvError otherwise."""
    if yes:
        choose.say(f"push: {folder} to {name} (--yes)")
        return name
    print(f"push {folder} to {name}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise MconvError(f"{name} was not confirmed, and nothing was sent; give ORG/NAME for another repository")
    return name


def _gate(asked: PushRequest, *, rehearsal: bool = False) -> "Finding":
    from mconv.cli import gate
    from mconv.hub import adapter

    if adapter.is_adapter(asked.folder):
        return gate.of_an_adapter(asked.folder, asked=asked.how.against is not None or asked.how.record)
    if asked.how.unverified:
        return gate.without_a_verdict(asked.folder)
    return gate.before_publishing(asked.folder, against=asked.how.against, rehearsal=rehearsal, record=asked.how.record)


# ---- dry run ---------------------------------------------------------------------------------------------------------
def rehearse(asked: PushRequest) -> int:
    """Show what a push would send and whether it would go ahead. Return 0 if so, 1 if the proof fails.

    Raises MconvError, exit code 2, if anything else is missing.
    """
    from mconv.hub import push as hub

    if asked.how.record:
        raise MconvError("--record keeps a verdict, but --dry-run makes none: drop one of the two")
    planned, folder = _planned(asked)
    ready = asked.look(planned)
    checks = [folder, *ready.checks]
    if planned:
        planned = hub.plan(asked.folder, ready.repo, **asked.card)
        if not asked.how.json:
            _print_plan(planned)
    if not asked.how.json:
        print("\n".join(["", "what a push needs:", *map(_line, checks)]), flush=True)
    proof, found = _proof(asked) if planned else (None, None)
    checks += [proof] if proof else []
    if asked.how.json:
        if planned and found:
            planned = hub.plan(asked.folder, ready.repo, verified=found.verdicts, **asked.card)
        _show_rehearsal(planned, ready.repo, checks, proof, found)
    elif proof:
        print("\n".join([_line(proof), *(f"         {line}" for line in (found.lines if found else ())[1:])]))
    missing = [check.name for check in checks if check.passed is False and not (found and check is proof)]
    if missing:
        raise MconvError(f"a push would be refused, and nothing was sent: see {', '.join(missing)} above")
    return 0 if not found or found.passed or asked.how.unverified else 1


def _planned(asked: PushRequest) -> "tuple[PushPlan | None, Check]":
    """Return what would be sent, None if the folder cannot be, and the check of the folder."""
    from rich.filesize import decimal

    from mconv.hub import push as hub
    from mconv.hub.faults import check_repo_id
    from mconv.hub.ready import Check

    check_repo_id(asked.name)
    try:
        planned = hub.plan(asked.folder, asked.name, **asked.card)
    except MconvError as error:
        return None, Check(name="folder", passed=False, text=str(error))
    size = decimal(planned.total_bytes)
    return planned, Check(
        name="folder", passed=True, text=f"{asked.folder} is complete: {len(planned.files)} files, {size}"
    )


def _proof(asked: PushRequest) -> "tuple[Check, Finding | None]":
    """Return the check of the proof; no finding if there is nothing to judge the folder against."""
    from mconv.hub.ready import Check

    try:
        found = _gate(asked, rehearsal=True)
    except MconvError as error:
        return Check(name="proof", passed=False, text=str(error)), None
    passed = found.passed or asked.how.unverified
    return Check(name="proof", passed=passed, text=found.lines[0] if found.lines else ""), found


def _show_rehearsal(
    planned: "PushPlan | None", repo: str, checks: "list[Check]", proof: "Check | None", found: "Finding | None"
) -> None:
    from mconv.hub import push as hub

    refused = {"state": "refused", "passed": False, "against": None, "lines": [proof.text] if proof else []}
    show({
        **(hub.as_json(planned) if planned else {"repo": repo}),
        "checks": [asdict(check) for check in checks],
        "ready": not any(check.passed is False for check in checks),
        "verification": found.as_json() if found else refused,
    })  # fmt: skip


def _line(check: "Check") -> str:
    return f"  {_MARKS[check.passed]:<3} {check.name:<11} {check.text}"


# ---- what is printed -------------------------------------------------------------------------------------------------
def show(value: dict[str, Any]) -> None:
    """Print one JSON object."""
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
