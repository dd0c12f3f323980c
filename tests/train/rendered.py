"""Jobs of clusters rendered from plain values, and programs of a cluster that only note how they are called."""

import os
import stat
import subprocess
from pathlib import Path

from mconv.train.clusters import prepare
from mconv.train.clusters.targets import TARGETS

RUN = {"preset": "llama2-7b", "init": "random", "mock_data": True, "lr": 1e-4, "train_iters": 40, "save": "run"}
PROGRAMS = "srun scancel sbatch scontrol module numactl singularity apptainer enroot docker aws nsys squeue sacct kubectl"
NOTE = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf 'END\\0'; } >> "$NOTED"
"""
"""A program that notes its words."""
MORE = {
    "srun": 'while (( $# )) && [[ $1 != bash ]]; do shift; done\n[[ -z ${SRUN-} ]] || eval "$SRUN"\nexec "$@"\n',
    "numactl": 'exec "${@:2}"\n',
    "sbatch": "echo '77;cluster'\n",
    "scontrol": "echo node1; echo node2\n",
    "squeue": 'printf "%s" "${SQUEUE-}"\n',
    "nsys": 'while [[ $1 != python* ]]; do shift; done\nexec "$@"\n',
}
"""What some of them do besides."""


def job(target, cluster, values=None, command=(), folder=None, iterations=40, array=None):
    """Return a job and its files."""
    wanted = prepare.Wanted(
        target=target, cluster={"gpus_per_node": 8, **cluster}, values=RUN if values is None else values,
        command=tuple(command), folder=folder, array=array,
    )  # fmt: skip
    found = prepare.job_of(wanted, prepare.cluster_of(wanted), iterations=iterations)
    return found, TARGETS[target].render(found)


def written(folder, files):
    """Write files to a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


class Noted:
    """A folder of programs that note how they are called."""

    def __init__(self, folder):
        self.bin, self.file = folder / "bin", folder / "noted"
        self.bin.mkdir()
        for name in PROGRAMS.split():
            self.add(self.bin / name, MORE.get(name, ""))

    def add(self, path, more=""):
        """Make a program that notes its words, then does `more`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTE + more)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, script, *words, **variables):
        """Run a script of bash with these programs, and return what it did."""
        self.file.unlink(missing_ok=True)
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "NOTED": str(self.file), "LC_ALL": "C.UTF-8", **variables}
        return subprocess.run(["bash", str(script), *words], env=env, capture_output=True, text=True, timeout=60)

    def calls(self, name=None):
        """Return the words of each call, of one program or all."""
        if not self.file.exists():
            return []
        found = [call.split("\0")[:-1] for call in self.file.read_text().split("END\0")[:-1]]
        return [call for call in found if name in (None, call[0])]


def path_without(monkeypatch, noted):
    """Put the noting programs before all others."""
    monkeypatch.setenv("PATH", f"{noted.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("NOTED", str(noted.file))


def sbatch_words(line):
    """Return the arguments of an #SBATCH line by sbatch's documented rule: a backslash escapes, quotes group, # ends."""
    words, word, quote, letters = [], None, "", iter(line.removeprefix("#SBATCH"))
    for letter in letters:
        if letter == "\\":
            word = (word or "") + next(letters)
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "'\"":
            word, quote = word or "", letter
        elif letter == "#":
            break
        elif letter.isspace() and letter.isascii():
            words, word = (words if word is None else [*words, word]), None
        else:
            word = (word or "") + letter
    return words if word is None else [*words, word]


ROOT = Path(__file__).parents[2]
