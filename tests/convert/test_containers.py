"""Both container forms of a torch_dist folder are read by every command; one that no table knows is named and refused."""

import enum
import io
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from forms import edit_index, put_inside
from safetensors.torch import load_file
from tiny import make_llama, same, tensors
from transformers import AutoModelForCausalLM

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import FormatError

pytestmark = pytest.mark.once

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
WRITTEN_BY_0_19 = {
    "megatron-core-hybrid/llama-gqa-untied-bf16": "gpt",  # Megatron-LM
    "megatron-bridge/llama32-tied-rope-llama3-bf16": "megatron-0.6.2-padded",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One small model as a Hugging Face folder and, without a manifest, as torch_dist in both container forms."""
    root = tmp_path_factory.mktemp("containers")
    make_llama(root / "hf", num_hidden_layers=2)
    rewrite(plan.make(open_checkpoint(root / "hf"), root / "older", format="torch_dist", tp=2), step="test")
    (root / "older/release/mconv.json").unlink()
    shutil.copytree(root / "older", root / "newer")
    put_inside(root / "newer/release")
    return root


@pytest.fixture
def copy(made, tmp_path):
    """A folder that a test may spoil, and its root."""
    return lambda name: Path(shutil.copytree(made / name, tmp_path / name)) / "release"


def test_both_forms_are_the_same_checkpoint(made):
    older, newer = open_checkpoint(made / "older"), open_checkpoint(made / "newer")
    assert not (made / "newer/release/common.pt").exists()
    assert (older.spec, older.layout, older.common) == (newer.spec, newer.layout, newer.common)
    assert {s.key for s in older.stored} == {s.key for s in newer.stored}


def test_every_command_reads_the_newer_form(made, tmp_path, capsys):
    root, hf = str(made / "newer"), str(made / "hf")
    assert run(["inspect", root]) == 0 and "torch_dist" in capsys.readouterr().out
    assert run(["meg2hf", root, "--out", str(tmp_path / "hf")]) == 0
    assert same(tensors(tmp_path / "hf"), tensors(made / "hf"))
    assert run(["reshard", root, "--out", str(tmp_path / "m"), "--tp", "1", "--format", "mp_rank"]) == 0
    assert run(["verify", hf, root, "--digests"]) == 0
    assert run(["verify", hf, root, "--logits", "--length", "64"]) == 0
    assert "(megatron-core, tp" in capsys.readouterr().out


@pytest.mark.parametrize("case", WRITTEN_BY_0_19)
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout")
def test_what_0_19_wrote_goes_through_every_command(case, tmp_path, capsys):
    """Its own programs wrote it: the export is their source bit for bit, and computes the logits that it computed."""
    root, source = str(GOLDEN / case / WRITTEN_BY_0_19[case]), GOLDEN / case / "hf"
    config = ["--config", str(source / "config.json")]
    assert run(["inspect", root]) == 0 and "mcore" in capsys.readouterr().out
    assert run(["meg2hf", root, "--out", str(tmp_path / "hf"), *config]) == 0
    assert same(tensors(tmp_path / "hf"), tensors(source))
    expected = load_file(GOLDEN / case / "expected.safetensors")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32, attn_implementation="eager")
        scores = model(expected["input_ids"], attention_mask=torch.ones_like(expected["input_ids"])).logits
    assert (scores - expected["logits"]).abs().max() < 1e-5
    assert run(["reshard", root, "--out", str(tmp_path / "m"), "--tp", "2", "--format", "mp_rank", *config]) == 0
    assert run(["verify", str(source), str(tmp_path / "m"), "--digests"]) == 0
    assert run(["verify", str(source), root, "--logits", "--length", "64"]) == 0
    assert "(megatron-core, tp" in capsys.readouterr().out
    train = ["train", "--load", root, "--mock-data", "--train-iters", "1", "--lr", "1e-30", "--seq-length", "16"]
    assert run([*train, "--global-batch-size", "1", "--save", str(tmp_path / "run")]) == 0
    assert run(["verify", str(source), str(tmp_path / "run"), "--digests"]) == 0


def versions(**changes):
    """Change keys of metadata.json."""

    def spoil(folder):
        values = json.loads((folder / "metadata.json").read_text()) | changes
        (folder / "metadata.json").write_text(json.dumps(values))

    return spoil


def index(**changes):
    """Change fields of torch's index."""
    return lambda folder: edit_index(folder, lambda found: [setattr(found, n, value) for n, value in changes.items()])


def squeezed(folder):
    """Say of the chunks that they are compressed."""

    def change(found):
        for place in found.storage_data.values():
            place.transform_descriptors = ["zstd"]

    edit_index(folder, change)


WRONG = {
    "a key": (versions(tensor_backend="zarr4"), r"metadata\.json: 'tensor_backend' is a key of no container"),
    "a version": (versions(sharded_backend_version=2), r"metadata\.json: sharded_backend_version is 2; mconv reads 1\."),
    "a backend": (versions(sharded_backend="zarr"), "sharded_backend is 'zarr'; mconv reads 'torch_dist'"),
    "another common": (versions(common_backend="msgpack"), "common_backend is 'msgpack'; mconv reads 'torch'"),
    "no backend": (lambda f: (f / "metadata.json").write_text("{}"), r"metadata\.json has no sharded_backend"),
    "torch's version": (index(version="2.0.0"), r"\.metadata: version '2\.0\.0' of torch's index; mconv reads 1\.0\.0"),
    "compressed": (squeezed, r"\.metadata: the chunks were stored through \['zstd'\]"),
    "nowhere": (lambda f: (f / "common.pt").unlink(), r"common\.pt is missing, and no common_state/shard_0_1 is in"),
    "another name": (
        lambda f: put_inside(f, name="common_state/shard_0_2"), r"common state is common_state/shard_0_2; mconv knows"),
    "not a list": (
        lambda f: put_inside(f, pack=lambda common: common), "common_state/shard_0_1 is dict, not the list of one"),
    "a list of two": (lambda f: put_inside(f, pack=lambda common: [common, common]), "not the list of one dictionary"),
    "a list of text": (lambda f: put_inside(f, pack=lambda common: ["x"]), "common state is str, not a dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_container_of_another_form_is_one_sentence(copy, capsys, name):
    spoil, says = WRONG[name]
    folder = copy("older")
    spoil(folder)
    with pytest.raises(FormatError, match=says) as caught:
        open_checkpoint(folder.parent)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert run(["inspect", str(folder.parent)]) == 2 and "Traceback" not in capsys.readouterr().err


# ---- pickles that megatron-core's own loader would run ---------------------------------------------------------------
class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def judged(folder, made):
    return run(["verify", str(made / "hf"), str(folder.parent), "--logits", "--length", "32"])


def test_args_of_a_class_that_the_installed_version_does_not_have(copy, made, monkeypatch):
    """megatron-core's loader stops at it; its own description of the tensors and torch's reader do not need it."""
    module = types.ModuleType("megatron.core.transformer.newer")
    module.Novel = enum.Enum("Novel", {"ONE": 1}, module=module.__name__)
    folder = copy("older")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        common = torch.load(folder / "common.pt", weights_only=False)
        common["args"].attention_backend = module.Novel.ONE
        torch.save(common, folder / "common.pt")
    from mconv.train.model import trusted

    with pytest.raises(FormatError, match="of classes that the installed megatron-core does not have"):
        trusted.check_all(folder)
    assert judged(folder, made) == 0


def test_no_pickle_among_the_chunks_is_run(copy, made, tmp_path):
    """megatron-core's loader would hand extra states to `torch.load` without `weights_only`."""
    folder, buffer = copy("older"), io.BytesIO()
    torch.save([Evil(tmp_path / "ran")], buffer)
    (folder / "__9_0.distcp").write_bytes(buffer.getvalue())

    def change(found):
        for key, place in found.storage_data.items():
            if "_extra_state" in key.fqn:
                place.relative_path, place.offset, place.length = "__9_0.distcp", 0, buffer.tell()

    edit_index(folder, change)
    from mconv.train.model import trusted

    assert trusted.reads_common(folder) and not trusted.reads_all(folder)
    assert judged(folder, made) == 0 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module", ["torch.distributed.checkpoint.format_utils", "megatron.core.utils"])
def test_the_index_names_its_own_classes_alone(copy, module):
    """torch and megatron-core read it with plain pickle: a function of theirs would be called."""
    folder = copy("older")
    (folder / ".metadata").write_bytes(f"c{module}\ntorch_save_to_dcp\n(tR.".encode())
    with pytest.raises(FormatError, match=f"names {module}.torch_save_to_dcp, which mconv does not load"):
        open_checkpoint(folder.parent)
