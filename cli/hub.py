"""`mconv push` and `mconv pull`: models to and from the Hugging Face Hub."""

import os
import sys
from pathlib import Path
from typing import Annotated

from mconv import extras
from mconv.cli import choose, located, publishing
from mconv.cli import options as o
from mconv.errors import MconvError

ANY = publishing.PushOptions()


def push(
    folder: Path | None = None,
    repo: str | None = None,
    *,
    dry_run: o.Flag = False,
    how: Annotated[publishing.PushOptions, o.Group] = ANY,
) -> int:
    """Publish a model folder on the Hugging Face Hub, in one commit, once it is proven to be what it was made from.

    The quick checks come first: the folder, the token and its rights, the repository. Then the proof: a passing
    verdict that `mconv verify --record` left counts while the weights are the same; without one, the folder is verified
    against its source now. Exit code 1: they are not the same model. 2: something is missing, or there is nothing to
    verify it against. Nothing is sent before.

    The token comes from HF_TOKEN or from `hf auth login`; HF_ENDPOINT is the address of another Hub.

    Parameters
    ----------
    folder
        A Hugging Face model folder (config.json, safetensors weights, tokenizer), or a PEFT adapter. Default: the newest
        in the current folder that mconv made.
    repo
        ORG/NAME, or NAME for a repository of your own. The push makes it if it does not exist. Default: the folder's
        name under your own, once you confirm it.
    dry_run
        Send nothing: list the files, show the card, check all that a push needs, and compare the tensors with the
        source's. Exit code 0: a push would go ahead.
    """
    extras.need("hub", "huggingface_hub", to="mconv push")
    if folder and repo is None and not folder.exists() and len(folder.parts) == 2:
        raise MconvError(f"{folder} is not a folder here; a repository comes second: `mconv push FOLDER {folder}`")
    folder = folder or choose.newest("push", "Hugging Face folder that mconv made").path
    if not (dry_run and folder.is_dir()):  # a dry run lists an unfit folder with the other findings
        folder = located.checkpoint(folder)
    asked = publishing.PushRequest(folder=folder, repo=repo, how=how)
    return publishing.rehearse(asked) if dry_run else publishing.publish(asked)


def pull(
    repo: str,
    out: Path,
    *,
    size: str | None = None,
    revision: str | None = None,
    overwrite: o.Flag = False,
    json: o.Flag = False,
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
        Download into a folder that holds other files.
    json
        Print one JSON object.
    """
    from mconv.convert.folders.sidecar import LeftOut, note
    from mconv.hub import adapter
    from mconv.hub.fetch import pull as fetch
    from mconv.hub.folder import survey
    from mconv.hub.push import progress

    left: list[LeftOut] = []
    try:
        with progress(shown=not json and sys.stderr.isatty()):
            folder = fetch(
                repo, out, size=size, revision=revision, overwrite=overwrite, endpoint=os.environ.get("HF_ENDPOINT"),
                tell=left.extend,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("what has arrived is kept: the same command completes the download", file=sys.stderr)
        raise
    if behind := note(left):
        print(f"note: {behind}", file=sys.stderr)
    is_adapter = adapter.is_adapter(folder)
    files = sorted(path.name for path in folder.iterdir() if path.is_file()) if is_adapter else survey(folder)[0]
    if json:
        publishing.show({"folder": str(folder), "files": files})
        return
    print(f"{folder}: {len(files)} files, complete" + ", a PEFT adapter" * is_adapter)
    choose.next_command(*(("lora", "merge", folder, "--base", "BASE") if is_adapter else ("hf2meg", folder)))
