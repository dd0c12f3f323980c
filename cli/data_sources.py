"""Options that say what is read: files, folders, patterns, datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mconv.errors import MconvError


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """Options of commands that read records."""

    input: Annotated[
        list[Path] | None,
        Parameter(consume_multiple=True, negative=(), help="The sources, as Megatron's tools spell them."),
    ] = None
    split: Annotated[
        str | None, Parameter(help="Split of a folder that datasets saved with several. Of hf://ORG/NAME it is @SPLIT.")
    ] = None
    skip_unknown_files: Annotated[
        bool, Parameter(help="Leave out files of a folder or pattern whose name says no format.", negative=())
    ] = False
    max_expand: Annotated[
        float,
        Parameter(
            help="Stop at a compressed file that unpacks to more than this many times its size (256 MiB are free)."
        ),
    ] = 1000.0

    def files(self, sources: Sequence[Path]) -> list[Path]:
        """Return the files and datasets to read. Raises MconvError, before anything large is imported."""
        from mconv.train.data.reading.formats import check_installed
        from mconv.train.data.reading.inputs import Choice, files

        if sources and self.input:
            raise MconvError("the sources are given twice: by position and by --input")
        choice = Choice(split=self.split, skip_unknown=self.skip_unknown_files)
        found = files([*sources, *(self.input or ())], choice)
        for path in found:
            check_installed(path)
        return found


SOURCES = SourceOptions()
