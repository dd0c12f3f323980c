"""Prepare a corpus: the steps that a configuration asks for, and doing those that are not done."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mconv.convert.folders.staging import Staging
from mconv.train.data.bad_records import POLICIES
from mconv.train.data.dedup.decide import Tell
from mconv.train.data.index import with_ending
from mconv.train.data.mixing import folder, mix
from mconv.train.data.preparing import lines
from mconv.train.data.preparing.config import Preparation, TextSet
from mconv.train.data.preparing.duplicates import deduplicate
from mconv.train.data.preparing.steps import Ledger, Step
from mconv.train.data.reading.inputs import Choice, files
from mconv.train.data.record import facts
from mconv.train.data.tokenize import tokenize
from mconv.train.data.tokenizers.types import load
from mconv.train.data.writing.export import Selection, export

GIGA = 10**9
Progress = Callable[[int], None]
Shown = Callable[[str, int], AbstractContextManager[Progress]]
"""A function of a step's name and the bytes of its inputs: shows the progress that it is told of."""


def _unseen(name: str, size: int) -> AbstractContextManager[Progress]:
    return nullcontext(lambda n: None)


def steps(
    config: Preparation, tokenizer: Path, shown: Shown = _unseen, count: Tell = lambda step, done: None
) -> list[Step]:
    """Return all steps in their order. Raises FormatError where a source or the tokenizer is not there."""
    known = facts(load(tokenizer), **asdict(config.tokenize))
    made = _Steps(config=config, tokenizer=tokenizer, known=known, shown=shown, count=count)
    found = [step for name, one in config.sets.items() for step in made.of(name, one)]
    return [*found, made.mixture()] if config.weights else found


def prepare(config: Preparation, todo: list[Step], *, tell: Callable[[Step, str | None, str | None], None]) -> None:
    """Do the steps that are not done, in their order. `tell` is told of each: why it is done, then what came of it."""
    out = Path(config.top.out)
    out.mkdir(parents=True, exist_ok=True)
    with Staging.of(out / "prepare").alone():
        ledger = Ledger(out)
        for step in todo:
            reason = ledger.why(step)
            tell(step, reason, None)
            if reason:
                tell(step, reason, ledger.do(step))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """Makes the steps of one configuration."""

    config: Preparation
    tokenizer: Path
    known: dict[str, Any]
    """What the record beside the tokens says of the tokenizer."""
    shown: Shown
    count: Tell
    """A function that is told of the counts of deduplication."""

    @property
    def out(self) -> Path:
        return Path(self.config.top.out)

    def of(self, name: str, one: TextSet) -> Iterator[Step]:
        """Yield the steps of a set: each takes what the one before it has made."""
        choice = Choice(split=one.split, skip_unknown=one.skip_unknown_files)
        paths = files([Path(source).expanduser() for source in one.sources], choice)
        work = self.out / "work" / name
        if not lines.are_json_lines(paths):
            yield self.collected(name, one, paths, work / "collected.jsonl")
            paths = [work / "collected.jsonl"]
        if self.config.dedup:
            yield self.deduplicated(name, one, paths, work / "deduplicated.jsonl")
            paths = [work / "deduplicated.jsonl"]
        if self.config.shuffle:
            yield self.shuffled(name, paths, work / "shuffled.jsonl")
            paths = [work / "shuffled.jsonl"]
        yield self.tokenized(name, one, paths)

    def collected(self, name: str, one: TextSet, paths: list[Path], out: Path) -> Step:
        """Return the step that makes JSON lines of files of several formats."""
        policy = self.config.top.on_bad_record

        def run(goes_on: bool) -> str:
            with self.shown(f"collecting {name}", _size(paths)) as progress:
                made = export(
                    paths, [out], select=Selection(keys=[one.key]), bad=POLICIES[policy], overwrite=True,
                    progress=lambda records, size: progress(size),
                )  # fmt: skip
            left = f"; bad records left out: {made.rejects.summary()}" if made.rejects.counts else ""
            return f"{made.records:,} documents of {len(paths)} file{'s' * (len(paths) > 1)}{left}"

        return self._step(f"collect {name}", paths, [out], run, key=one.key, on_bad_record=policy)

    def deduplicated(self, name: str, one: TextSet, paths: list[Path], out: Path) -> Step:
        """Return the step that leaves out duplicates."""
        assert self.config.dedup
        how, policy = self.config.dedup, self.config.top.on_bad_record

        def run(goes_on: bool) -> str:
            return deduplicate(
                paths, out, key=one.key, how=how, workers=self.config.top.workers, on_bad_record=policy, tell=self.count
            )

        return self._step(f"deduplicate {name}", paths, [out], run, key=one.key, on_bad_record=policy, **asdict(how))

    def shuffled(self, name: str, paths: list[Path], out: Path) -> Step:
        """Return the step that puts documents in a random order."""
        assert self.config.shuffle
        how = self.config.shuffle

        def run(goes_on: bool) -> str:
            with self.shown(f"shuffling {name}", _size(paths)) as progress:
                count = lines.shuffle(paths, out, seed=how.seed, buffer=int(how.buffer * GIGA), progress=progress)
            return f"{count:,} documents"

        return self._step(f"shuffle {name}", paths, [out], run, seed=how.seed)

    def tokenized(self, name: str, one: TextSet, paths: list[Path]) -> Step:
        """Return the step that makes tokens. One that was interrupted goes on from its last complete part."""
        prefix, policy = self.out / "tokens" / name, self.config.top.on_bad_record

        def run(goes_on: bool) -> str:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            with self.shown(f"tokenizing {name}", _size(paths)) as progress:
                record = tokenize(
                    paths, prefix, tokenizer=self.tokenizer, key=one.key, on_bad_record=policy, resume=goes_on,
                    overwrite=True, workers=self.config.top.workers, progress=lambda records, size: progress(size),
                    **asdict(self.config.tokenize),
                )  # fmt: skip
            return f"{record.documents:,} documents, {record.tokens:,} tokens"

        outputs = [with_ending(prefix, ending) for ending in (".bin", ".idx", ".mconv.json")]
        return self._step(f"tokenize {name}", paths, outputs, run, key=one.key, on_bad_record=policy, **self.known)

    def mixture(self) -> Step:
        """Return the step that mixes the tokens of all sets."""
        weights, out, exact = self.config.weights, self.out / "mixture", self.config.mix.exact
        prefixes = [self.out / "tokens" / name for name in weights]

        def run(goes_on: bool) -> str:
            made = mix.mixture(prefixes, list(weights.values()), out, exact=exact)
            with self.shown("mixing", folder.written(made, copy=False)) as progress:
                folder.write(made, out, overwrite=True, progress=progress)
            return folder.summary(made, out)

        inputs = [with_ending(prefix, ending) for prefix in prefixes for ending in (".bin", ".idx")]
        return self._step("mix", inputs, [out / folder.FACTS], run, weights=weights, exact=exact)

    def _step(
        self, name: str, inputs: list[Path], outputs: list[Path], run: Callable[[bool], str], **settings: Any
    ) -> Step:
        return Step(name=name, inputs=tuple(inputs), outputs=tuple(outputs), settings=settings, run=run)


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
