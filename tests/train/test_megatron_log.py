"""Megatron's lines: read exactly from the logs that Megatron-LM printed, and written as the seeds' people know them."""

import json
import math
from pathlib import Path

import pytest

from mconv.train.logs import megatron_log as logs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden" / "megatron-lm"
NAMED = sorted(SHARED.glob("train-logs/*.log"))
needs_golden = pytest.mark.skipif(not NAMED, reason="the logs of Megatron-LM are not here")
TAIL = " | number of skipped iterations:   {} | number of nan iterations:   0 |"
SEEDS = [
    *(f"   1:  iteration       {i}/73242187 | consumed samples:           {2 * i} | elapsed time per iteration (ms): {ms}"
      f" | learning rate: {lr} | global batch size:     2 | lm loss: {loss} | loss scale: 4294967296.0 | grad norm: 0.000"
      + TAIL.format(0)
      for i, ms, lr, loss in ((25, "87.0", "1.638E-08", "1.086954E+01"), (26, "86.5", "1.704E-08", "1.086217E+01"),
                              (27, "88.4", "1.769E-08", "1.087129E+01"))),
    *(f"   iteration        {i}/  508626 | consumed samples:          {288 * i} | elapsed time per iteration (ms): {ms}"
      f" | learning rate: 0.000E+00 | global batch size:   288 | loss scale: {scale}.0" + TAIL.format(1)
      for i, ms, scale in ((1, "255940.5", 1 << 32), (2, "243438.3", 1 << 31), (3, "243344.4", 1 << 30))),
]  # fmt: skip
"""The six lines that the guides print (A19): a rank in front or not, rates in an older Megatron's digits, no time."""


def same(ours, theirs):
    return ours == theirs or (theirs == "nan" and math.isnan(ours))


@needs_golden
@pytest.mark.parametrize("file", NAMED, ids=lambda path: path.stem)
def test_every_number_of_a_golden_log(file):
    golden, log = json.loads(file.with_suffix(".json").read_text()), logs.read(file.read_text().splitlines())
    assert len(log.iterations) == len(golden["iterations"]) > 0
    for line, expected in zip(log.iterations, golden["iterations"], strict=True):
        named = {"time": str(line.time), "iteration": line.iteration, "train_iters": line.train_iters, **line.values}
        assert set(named) == set(expected)
        assert all(same(named[name], value) for name, value in expected.items()), (named, expected)
    validations = [{"iteration": v.iteration, "set": v.on, **v.values} for v in log.validations]
    assert validations == golden["validation"]
    assert log.arguments["seq_length"] == "64" and log.starts == [0]


@needs_golden
@pytest.mark.parametrize("file", NAMED, ids=lambda path: path.stem)
def test_what_is_read_is_written_again(file):
    for text in file.read_text().splitlines():
        if line := logs.iteration_line(text):
            assert logs.write(line) == text[: text.rindex("|") + 1]


@pytest.mark.parametrize("text", SEEDS, ids=["25", "26", "27", "1", "2", "3"])
def test_the_guides_lines_make_the_round_trip(text):
    line = logs.iteration_line(text)
    written = logs.write(line, formats={logs.RATE: ".3E"})
    assert text.endswith(written) and text.removesuffix(written).strip() in ("1:", "")
    assert logs.iteration_line(written) == line
    assert (line.values.get(logs.LOSS) is None) == bool(line.values[logs.SKIPPED])


@needs_golden
def test_the_second_line_is_given_its_own_window():
    """Resumed at 10 with lines at 11, 12 and 14: the second covers 11 and 12. The unbroken run tells what 12 was."""
    log = logs.read((SHARED / "train-logs" / "resume.log").read_text().splitlines())
    own = [line.values[logs.LOSS] for line in logs.own_windows(log)]
    printed = [line.values[logs.LOSS] for line in log.iterations]
    assert (own[0], own[2]) == (printed[0], printed[2]) and own[1] == pytest.approx(2 * printed[1] - printed[0])
    skips = logs.own_windows(logs.read((SHARED / "train-logs" / "fp16-skips.log").read_text().splitlines()))
    assert [line.values[logs.SKIPPED] for line in skips[:4]] == [1, 1, 1, 1]  # printed: 1, 2, 1, 1
    text = (SHARED / "train-logs" / "plain.log").read_text()
    ours = logs.read(text.replace("using world size:", "").splitlines())
    assert logs.own_windows(ours) == ours.iterations  # no log of Megatron-LM's: lines are what they say


def test_text_of_other_ranks_and_clocks_does_not_hurt():
    fields = "| lm loss: 1.500000E+00 | eta: 1:02:03 | grad norm: 2.000 |"
    whole = " [2026-01-02 03:04:05.000006] iteration        4/      10 " + fields
    line = logs.iteration_line(whole + "Number of parameters: 7 | of them: 3 |")
    assert line.values == {"lm loss": 1.5, "grad norm": 2.0, "Number of parameters": 7.0, "of them": 3.0}
    assert logs.iteration_line(whole + "[rank 1] no field | 3 | of").values == {"lm loss": 1.5, "grad norm": 2.0}
    assert logs.iteration_line("iteration 4 of 10") is None
