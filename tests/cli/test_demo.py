"""The demo's own parts; the whole of it is `make demo`."""

import json

import pytest

from mconv.cli import demo, demo_parts, demo_report
from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.errors import CheckFailed


def test_the_model_is_a_llama_with_gqa_and_a_tokenizer_that_gives_the_text_back(tmp_path):
    texts = demo_parts.sources()
    assert sum(map(len, texts)) > 1_000_000
    count = demo_parts.make_model(tmp_path / "hf", texts[:20])
    found = open_checkpoint(tmp_path / "hf")
    assert found.parameters == count > 2_000_000 and found.spec.queries_per_group == 2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    sample = "def f(x):\n    return x + 1  # naïve\n"
    assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample and len(tokenizer) == demo_parts.VOCAB


def test_a_folder_that_is_no_demo_is_never_replaced(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "not the folder of a demo" in capsys.readouterr().err and (tmp_path / "thesis.txt").exists()


def test_any_failing_step_fails_the_demo(tmp_path):
    state = demo.Demo(demo._prepare(tmp_path / "d", overwrite=False), [], 0.0)
    with pytest.raises(CheckFailed, match=r"step 'inspect' failed(.|\n)*no-such(.|\n)*exit code 2"):
        state.mconv("inspect", "inspect no-such-folder", demo._first_line)
    assert CheckFailed.exit_code == 1 and state.steps == []


def test_the_proofs_can_fail(tmp_path):
    state = demo.Demo(demo._prepare(tmp_path / "d", overwrite=False), [], 0.0)
    for name, text in (("a", "{}"), ("b", '{"x": 1}')):
        (state.folder / name).mkdir()
        (state.folder / name / "config.json").write_text(text)
    with pytest.raises(CheckFailed, match="differ"):
        demo._same_files(state, "a", "b")
    (state.folder / "trained").mkdir()
    lines = [json.dumps({"iteration": i, "loss": 7.0 - 0.01 * i}) for i in range(10)]
    (state.folder / "trained" / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(CheckFailed, match="did not clearly fall"):
        demo._fallen(state, [])
    with pytest.raises(CheckFailed, match="nothing was verified"):
        demo._published("https://hub/demo/tiny-python-llama  commit 1234")
    assert demo._judged("  ok  proof  verified against a before", "verified against") == "verified against a before"
    with pytest.raises(CheckFailed, match="nothing was verified"):
        demo._judged("  NO  proof  not verified against a", "verified against")


def test_the_report_is_one_page(tmp_path):
    steps = [demo_report.StepResult("verify", "mconv verify <a> b", 1.0, "same")]
    demo_report.write(tmp_path, steps, parameters=10, losses=[7.0, 6.0, 5.5], seconds=12.0)
    page = (tmp_path / "report.html").read_text()
    assert "mconv verify &lt;a&gt; b" in page and page.count("polyline") == 1 and "http" not in page
