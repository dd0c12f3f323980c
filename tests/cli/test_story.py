"""The whole story on a tiny model, typed as a user types it: what a person reads at each step, and the exit codes."""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import jobs
import pytest
import torch
from safetensors.torch import load_file
from terminal import on_terminal
from transformers import AutoModelForCausalLM

from mconv.cli.app import run

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm" / "td-dp2-distopt" / "ckpt"
TEMPLATE = "{% for m in messages %}{{ '<s>' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"
CHAT = "--data chat --data-type instruction --lr 1e-3 --seq-length 32 --global-batch-size 4"
SLOW = [
    "importing torch and megatron-core", "building the model and reading its weights from tiny-megatron",
    "preparing the data", "taking the first step",
]  # fmt: skip
STORY = {
    "convert": "mconv hf2meg tiny",
    "verify": "mconv verify",
    "tokenize": "mconv data instruct chats.jsonl --prefix chat --tokenizer tiny-megatron",
    "other type": "mconv train --data chat --lr 1e-3 --train-iters 2 --seq-length 32",
    "plan": "mconv plan --load tiny-megatron --seq-length 32 --train-iters 3",
    "train": f"mconv train {CHAT} --train-iters 3",
    "again": f"mconv train {CHAT} --train-iters 3",
    "ask": f"mconv train --load tiny-run --save other {CHAT} --train-iters 6",
    "finetune": f"mconv train --load tiny-run --finetune --fp32 {CHAT} --train-iters 1",
    "inspect the run": "mconv inspect tiny-run",
    "inspect the data": "mconv inspect chat",
    "export": "mconv meg2hf",
    "before and after": "mconv verify tiny tiny-run-iter_3-hf",
    "another size": "mconv verify tiny wide",
    "push": "mconv push tiny-run-iter_3-hf nobody/tiny",
}


class Answer:
    """The exit code of a command, and its standard output and error as a person reads them, in turn."""

    def __init__(self, line):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.code = run(shlex.split(line)[1:])
        self.text = said.getvalue()

    def reads(self, code, *parts):
        """Assert the exit code, and that the parts are read in this order."""
        pattern = ".*".join(re.escape(part) for part in parts)
        assert (self.code, bool(re.search(pattern, self.text, re.S))) == (code, True), self.text


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A working folder with a model in bf16 and conversations; the answers to the story's commands, typed in it."""
    folder, before = tmp_path_factory.mktemp("story"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        os.chdir(folder)
        _prepare()
        yield {name: Answer(line) for name, line in STORY.items()}
        os.chdir(before)


def _prepare():
    """Write the model `tiny` in bf16 with its tokenizer, a wider one, and chats.jsonl into the current folder."""
    jobs.hf_folder(Path("fp32"), jobs.SMALL)
    AutoModelForCausalLM.from_pretrained("fp32", dtype=torch.bfloat16).save_pretrained("tiny")
    jobs.hf_folder(Path("wide"), jobs.variant(num_layers=2, hidden_size=64))
    jobs.tokenizer_folder(Path("tiny"), jobs.texts())
    Path("tiny/chat_template.jinja").write_text(TEMPLATE)
    roles = (("user", slice(0, 40)), ("assistant", slice(40, 80)))
    chats = [[{"role": role, "content": text[part]} for role, part in roles] for text in jobs.texts() if len(text) > 80]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in chats))


def test_a_conversion_is_proven_and_each_step_names_the_next(walk):
    walk["convert"].reads(0, "bfloat16", "next: mconv verify tiny-megatron")
    walk["verify"].reads(0, "PASS", "recorded tp 1 x pp 1, proven there", "loss on text", "loss on ids",
                         "random token ids", "next: mconv train --load tiny-megatron")  # fmt: skip
    walk["tokenize"].reads(0, "82 conversations", "next: mconv train --data chat --data-type instruction")
    walk["other type"].reads(2, "chat.bin: no such file", "chat-text.bin", "--data-type instruction")


def test_nobody_trains_in_another_precision_by_accident(walk):
    walk["plan"].reads(0, "bf16")
    walk["train"].reads(0, "precision: bf16", "--fp32", "saved tiny-run/iter_0000003", "next: mconv meg2hf")
    walk["finetune"].reads(0, "precision: fp32")
    assert json.loads(Path("tiny-run-iter_3-hf/config.json").read_text())["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file("tiny-run-iter_3-hf/model.safetensors").values()} == {torch.bfloat16}


def test_the_arguments_that_are_not_the_defaults_are_listed(walk):
    listed = walk["train"].text.partition(" arguments -")[2].partition("end of arguments")[0]
    names = set(re.findall(r"^  (\w+) \.", listed, re.M))
    assert {"lr", "global_batch_size", "data", "train_iters", "bf16"} <= names
    assert not names & {"fp16", "fp32", "adam_beta1", "rope_scaling_factor", "tp", "tensorboard_dir", "weight_decay"}


def test_a_run_goes_on_only_as_it_was_asked_to(walk):
    walk["again"].reads(0, "tiny-run is already at iteration 3 of 3: nothing to train", "raise --train-iters", "next:")
    assert "arguments" not in walk["again"].text and "saved" not in walk["again"].text
    walk["ask"].reads(2, "tiny-run", "--resume", "--finetune")
    assert not Path("other").exists()
    walk["finetune"].reads(0, "no --save", "iteration        1/       1")


def test_what_a_run_is_and_what_it_changed(walk):
    walk["inspect the run"].reads(0, "optimizer")
    walk["inspect the data"].reads(0, "82")
    for name in ("inspect the run", "inspect the data"):
        assert not re.search(r"\b(None|True|False)\b", walk[name].text), walk[name].text
    walk["export"].reads(0, "tiny-run-iter_3-hf: hf", "next: mconv push tiny-run-iter_3-hf")
    walk["before and after"].reads(1, "changed", "KL", "loss")
    assert "bit is flipped" not in walk["before and after"].text
    walk["another size"].reads(1, "FAIL", "hidden size", "32", "64")
    walk["push"].reads(2, "no Hugging Face login was found", "HF_TOKEN")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
def test_a_run_of_megatron_lm_is_resumed_with_its_own_settings(walk):
    resumed = Answer(f"mconv train --load {GOLDEN} --resume --mock-data --split 1,1,1 --train-iters 4 --weight-decay 0.2")
    resumed.reads(0, "taken from the run", "precision: bf16", "iteration        4/       4")
    assert "weight_decay 0.1 -> 0.2" in resumed.text and "0.001" in resumed.text, resumed.text
    assert re.search(r"iteration +4/.*global batch size: +4 ", resumed.text)


def test_a_disk_without_room_is_told_before_the_first_step(walk):
    Path("disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", "disk"], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        refused = Answer(f"mconv train --load tiny-megatron --save disk/run {CHAT} --train-iters 3")
        refused.reads(2, "no room for a checkpoint", "--allow-full-disk")
        assert not list(Path("disk").iterdir()) and "iteration        1/" not in refused.text
    finally:
        subprocess.run(["umount", "-l", "disk"], check=True)


def test_a_run_on_a_terminal_answers_ctrl_c_at_once(walk):
    """Lines before what takes long, log lines above the bar; then Ctrl-C, and the same command once there is no data."""
    command = f"train --load tiny-megatron --save long-run {CHAT} --train-iters"
    code, lines = on_terminal([*command.split(), "100000"], after=b"iteration        2/")
    text = "\n".join(lines)
    assert code == 0, text
    places = [text.index(line) for line in [*SLOW, "iteration        1/"]]
    assert places == sorted(places), "each line comes before what takes long"
    kept = [line for line in lines if re.match(r" \[20\d\d-.* iteration +\d+/  100000 \|.*lm loss", line)]
    bars = [line for line in lines if re.match(r" *\d+/100000 [━╸╺]", line)]
    assert len(kept) >= 2 and bars and lines.index(kept[0]) < lines.index(bars[-1]), "lines stay, the bar is below"
    [said] = [re.search(r"(finishing step|saving iteration) (\d+), then \w+; Ctrl-C again stops now and loses it", text)]
    stopped = int(re.search(r"stopped by SIGINT, at iteration (\d+)", text)[1])
    assert int(said[2]) == stopped and f"saved long-run/iter_{stopped:07d}" in text
    assert text.index(said[0]) < text.index("stopped by SIGINT")

    Path("chat-text.bin").rename("gone")  # a run that is over reads no data, and judges nothing
    again = Answer(f"mconv {command} {stopped} --verify-first")
    Path("gone").rename("chat-text.bin")
    again.reads(0, f"long-run is already at iteration {stopped} of {stopped}: nothing to train", "raise --train-iters",
                "next: mconv meg2hf long-run")  # fmt: skip
    assert not re.search(r"saved|verif|argument|building", again.text), again.text
