"""Other programs' option names lead to ours, and what a command line gets wrong is answered in one line each."""

import errno
import os
import re

import pytest

from mconv.cli import app, foreign
from mconv.cli.field_names import as_typed
from mconv.train.config import aliases

pytestmark = pytest.mark.once

COMMANDS = [*foreign.TABLES, "train", "plan", "bench"]


def parameters(command):
    """Return the options of a command, and its parameters given by position, in capitals."""
    found = app.app
    for word in command.split():
        found = found[word]
    known = [one for one in found.assemble_argument_collection() if one.parse]
    names = {name for one in known for name in one.names if name != "*"}
    return names, {name.lstrip("-").upper() for name in names}


def rows(command):
    of_training = {**aliases.RENAMED, **aliases.NEEDLESS}.keys() - {"out"}  # in YAML; --out is --save
    return foreign.TABLES.get(command) or of_training


@pytest.mark.parametrize("command", COMMANDS)
def test_each_row_names_what_the_command_has(command):
    """An option or parameter of the command itself, or of another one that is named with it; none shadows an own one."""
    options, positions = parameters(command)
    for name in rows(command):
        text = foreign.advice(command, f"--{name}")
        assert text and f"--{name.replace('_', '-')}" not in options, name
        for other, flags in re.findall(r"`mconv ((?:data |lora )?\w+)([^`]*)`", text):
            assert set(re.findall(r"--[\w-]+", flags)) <= parameters(other)[0], text
        own = re.sub(r"`[^`]*`", "", text)
        assert set(re.findall(r"--[a-z][\w-]+", own)) <= options, f"{name}{text}"
        if "given by position" in text and command != "verify":
            assert set(text.rpartition(f"mconv {command} ")[2].split()) <= positions, text
        assert foreign.advice(command, f"--{name.replace('_', '-')}") == text, "underscores and dashes are one"


WRONG = {
    "hf2meg m --target-tensor-parallel-size 2 --loader llama_mistral --save_dir out": [
        "hf2meg has no option --target-tensor-parallel-size; here it is --tp",
        "hf2meg has no option --loader: the input's format is recognised automatically",
        "hf2meg has no option --save_dir; here it is --out",
    ],
    "reshard --load_dir a --true_vocab_size 32000": [
        "reshard has no option --load_dir; it is given by position: mconv reshard CHECKPOINT",
        "reshard has no option --true_vocab_size; here it is --vocab-size",
    ],
    "push --repo-id a/b": ["push has no option --repo-id; it is given by position: mconv push FOLDER REPO"],
    "data tokenize --output-path x": ["data tokenize has no option --output-path; here it is --out"],
    "plan --preset llama2-7b --pp 4 --num-layers-per-virtual-pipeline-stage 2": [
        "plan has no option --num-layers-per-virtual-pipeline-stage: it counts layers, and --vpp counts chunks: 32 "
        "layers on --pp 4 with 2 in a chunk are --vpp 4",
    ],
    "train --load x --save-retain-interval=50": [
        "train has no option --save-retain-interval: N is --keep-every N with --keep-last 1: the newest checkpoint "
        "stays, too",
    ],
    "train --no-bf16 --params_dtype=float32": [
        "train has no option --no-bf16; to turn it off: --bf16=false",
        "train has no option --params_dtype: it is one of --bf16, --fp16 and --fp32; without one, a run uses the dtype "
        "of its weights",
    ],
    "train --learning-rate 1": ["train has no option --learning-rate; here it is --lr"],
    "hf2meg m --tpp 2": ["hf2meg has no option --tpp; did you mean --tp?"],
    "hf2meg m -tp 2": ["hf2meg has no option -tp; did you mean --tp?"],
    "hf2meg m --xyzzy": ["hf2meg has no option --xyzzy; `mconv hf2meg --help` shows how it is used"],
    "hf2meg m --tp 1.5": ["hf2meg: --tp is '1.5'; it must be a whole number"],
    "hf2meg m --tp": ["hf2meg: --tp needs a value: a whole number"],
    "hf2meg m --format zarr": ["hf2meg: --format is 'zarr'; it must be one of torch_dist, mp_rank"],
    "hf2meg m --tp 1 --tp 2": ["hf2meg: --tp is given twice"],
    "train --save a --out b": ["train: --out and --save are one option; give it once"],
    "hf2meg a b": ["hf2meg: 'b' is more than it takes; `mconv hf2meg --help` shows how it is used"],
    "hf2mg x": ["there is no command 'hf2mg'; did you mean hf2meg?"],
    "plan --num-nodes 2": [
        "plan has no option --num-nodes: a command starts the ranks of one machine, --nproc-per-node of them; torchrun "
        "or srun starts more machines, and `mconv plan --world-size` counts the GPUs of all"
    ],
    "upload x": ["there is no command 'upload'; did you mean push?"],
    "export x": ["there is no command 'export'; did you mean meg2hf or lora export?"],
    "convert x": ["there is no command 'convert'; did you mean hf2meg or meg2hf?"],
}


@pytest.mark.parametrize("line", WRONG)
def test_each_thing_that_is_wrong_with_a_command_line_is_a_line(line, capsys):
    assert app.run(line.split()) == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"mconv: {text}" for text in WRONG[line]] and not said.out


def test_a_full_disk_without_a_name_is_said_in_words(monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(app, "app", full)
    assert app.run(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("mconv: no room left on the disk that this command writes to: No space")


def test_underscores_are_taken_in_our_own_names(capsys):
    assert app.run(["hf2meg", "no-such-folder", "--vocab_padding", "zeros"]) == 2
    assert "no-such-folder" in capsys.readouterr().err


SPELLED = {
    "seq_length 4096 is more than the model's 64": "--seq-length 4096 is more than the model's 64",
    "lr is not set: give lr": "--lr is not set: give --lr",
    "a:\n  - data is not set\n  - the data of x": "a:\n  - --data is not set\n  - the data of x",
    "config.json: hidden_size is 3": "config.json: hidden_size is 3",
    "run/seq_length.txt: seq_length: 3, --seq-length": "run/seq_length.txt: seq_length: 3, --seq-length",
    "run: torch_dist tp 1 x pp 1, tp 2 is": "run: torch_dist tp 1 x pp 1, --tp 2 is",
    "save needs load; adam_beta1 is 1": "--save needs --load; MCONV_TRAIN_ADAM_BETA1 is 1",
}


@pytest.mark.parametrize("message", SPELLED)
def test_messages_name_fields_as_they_were_typed(message, monkeypatch):
    monkeypatch.setenv("MCONV_TRAIN_ADAM_BETA1", "1")
    assert as_typed(message, ["train", "--lr=1"]) == SPELLED[message]
    if "MCONV" not in SPELLED[message]:
        assert as_typed(message, ["train", "run.yaml"]) == message


def test_a_field_given_as_a_flag_is_one_beside_a_file_too():
    typed = as_typed("hidden_size is 3; ffn_hidden_size is 4", ["train", "c.yaml", "--hidden_size", "3"])
    assert typed == "--hidden-size is 3; ffn_hidden_size is 4"
