"""Checkpoints that Megatron-LLM itself wrote: exported they are their source, and made anew they are what it wrote."""

import json
from pathlib import Path

import pytest
import torch
from tiny import same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.families import FAMILIES
from mconv.errors import ConfigError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-llm"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout"),
]
FOLDERS = [
    ("codellama-mha", "megatron"), ("llama-mha", "megatron"), ("llama-label32000", "megatron"),
    ("llama2-gqa", "megatron"), ("llama2-gqa", "megatron-tp2pp1"), ("llama2-gqa", "megatron-tp1pp2"),
    ("llama2-gqa", "megatron-tp2pp2"), ("llama2-gqa-bf16", "megatron"), ("llama2-gqa-bf16", "megatron-tp2pp2"),
    ("mistral-gqa", "megatron"), ("mistral-window16", "megatron"), ("falcon7-mqa", "megatron"),
    ("falcon40-gqa", "megatron"), ("falcon40-gqa", "megatron-tp2pp1"), ("falcon40-gqa", "megatron-tp1pp2"),
    ("falcon40-gqa", "megatron-tp2pp2"),
]  # fmt: skip


def case_of(name):
    return json.loads((GOLDEN / name / "case.json").read_text())


def opened(case, folder, **options):
    """A golden checkpoint, told its true vocabulary only where it does not know it."""
    known = folder == "megatron"
    vocab = None if known else case_of(case)["true_vocab_size"]
    return open_checkpoint(GOLDEN / case / folder, vocab_size=vocab, **options)


@pytest.mark.parametrize("case, folder", FOLDERS)
def test_export_is_bit_for_bit_the_source(tmp_path, case, folder):
    found, source = opened(case, folder), open_checkpoint(GOLDEN / case / "hf")
    assert found.dialect == "megatron-llm" and found.manifest is None
    assert found.spec.to_dict() == source.spec.to_dict()
    rewrite(plan.make(found, tmp_path / "out", format="hf"), step="meg2hf")
    assert same(tensors(tmp_path / "out"), tensors(GOLDEN / case / "hf"))
    assert open_checkpoint(tmp_path / "out").spec == source.spec


@pytest.mark.parametrize("case, folder", FOLDERS)
def test_import_is_bit_for_bit_what_megatron_llm_wrote(tmp_path, case, folder):
    """Every rank's every tensor, padding rows (copies of the last one) included."""
    theirs = opened(case, folder)
    layout = theirs.layout
    rows = layout.padded_vocab // layout.tp
    options = {"tp": layout.tp, "pp": layout.pp, "vocab_multiple": rows, "dialect": "megatron-llm"}
    source = open_checkpoint(GOLDEN / case / "hf")
    rewrite(plan.make(source, tmp_path / "m", format="mp_rank", vocab_padding="last-row", **options), step="hf2meg")
    names = rank_files(GOLDEN / case / folder)
    made = rank_files(tmp_path / "m")
    assert made.keys() == names.keys()
    for rank, want in names.items():
        assert same({k: v.contiguous() for k, v in want.items()}, made[rank]), rank


def rank_files(root):
    """rank folder -> {name: tensor}, by torch.load alone, importer's and trained naming made one."""
    return {path.parent.name: dict(named(load(path)["model"])) for path in sorted(root.rglob("model_optim_rng.pt"))}


def load(path):
    from mconv.convert.formats import archive

    return archive.read(path)  # its args name classes of a package that is not here; tensors come mapped


def named(tree, before=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from named(value, f"{before}{key}.")
        else:
            name = f"{before}{key}".replace("model.transformer.", "model.encoder.").replace(
                "self_attention.", "attention."
            )
            yield name, value.load()


@pytest.mark.parametrize("folder", ["megatron-tp2pp1", "megatron-tp1pp2", "megatron-tp2pp2", "megatron"])
def test_reshard_between_any_two_folders(tmp_path, folder):
    case = "llama2-gqa"
    source, target = opened(case, folder), opened(case, "megatron-tp2pp1")
    options = {"tp": 2, "vocab_multiple": 256, "vocab_padding": "last-row", "dialect": "megatron-llm"}
    rewrite(plan.make(source, tmp_path / "m", format="mp_rank", **options), step="reshard")
    made, want = rank_files(tmp_path / "m"), rank_files(target.path)
    assert made.keys() == want.keys() and all(same(made[r], want[r]) for r in want)


def test_both_iterations_of_a_training_run(tmp_path):
    root = GOLDEN / "llama2-trained" / "megatron-trained"
    with pytest.raises(ConfigError, match=r"--vocab-size.*512|512.*--vocab-size"):
        open_checkpoint(root)
    rewrite(plan.make(open_checkpoint(root, vocab_size=389), tmp_path / "4", format="hf"), step="meg2hf")
    theirs = tensors(GOLDEN / "llama2-trained" / "hf-export")
    made = tensors(tmp_path / "4")
    assert same(made, {k: (v[:389].contiguous() if v.shape[0] == 512 else v) for k, v in theirs.items() if k in made})
    assert not {k for k in theirs.keys() - made.keys() if not k.endswith("rotary_emb.inv_freq")}
    second = plan.make(open_checkpoint(root, iteration=2, vocab_size=389), tmp_path / "2", format="hf")
    rewrite(second, step="meg2hf")
    compare_logits(tmp_path / "2", GOLDEN / "llama2-trained" / "expected-iter_0000002.safetensors")
    compare_logits(tmp_path / "4", GOLDEN / "llama2-trained" / "expected.safetensors")


@pytest.mark.parametrize("case, folder", FOLDERS)
def test_the_exported_model_has_the_logits_that_were_kept(tmp_path, case, folder):
    """Config and weights together, without the source's config.json."""
    rewrite(plan.make(opened(case, folder), tmp_path / "out", format="hf"), step="meg2hf")
    compare_logits(tmp_path / "out", GOLDEN / case / "expected.safetensors")


def compare_logits(folder, expected):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    want = load_file(expected)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found = model(want["input_ids"]).logits[..., : want["logits"].shape[-1]]
    assert (found - want["logits"]).abs().max() < 1e-5


def test_a_resharded_file_whose_args_are_not_the_models_is_refused_and_settled_by_a_config(tmp_path):
    """Resharding resets epsilon and rope base to the defaults of its flags: a Code Llama then looks like Llama 2."""
    source = open_checkpoint(GOLDEN / "codellama-mha" / "hf")
    options = {"format": "mp_rank", "dialect": "megatron-llm", "pp": 2}
    rewrite(plan.make(source, tmp_path / "m", **options), step="hf2meg")
    forget(tmp_path / "m", model_name="codellama", rope_theta=1e4)
    with pytest.raises(ConfigError, match=r"rope_theta 10000\.0 \(a codellama has 1e\+06\).*--config"):
        open_checkpoint(tmp_path / "m", vocab_size=320)
    config = GOLDEN / "codellama-mha" / "hf" / "config.json"
    found = open_checkpoint(tmp_path / "m", config=config)
    assert found.spec == source.spec
    other = GOLDEN / "llama2-gqa" / "hf"
    with pytest.raises(ConfigError, match=r"num_layers: 4 in .*, 2 in its args"):
        open_checkpoint(tmp_path / "m", vocab_size=320, config=other)


def test_what_a_resharded_files_args_cannot_say_is_said(tmp_path):
    """Resharding resets the rope factor, and 1 is what most models have: no refusal, but a note."""
    [note] = opened("llama2-gqa", "megatron-tp2pp2").notes
    assert "rope scaling factor" in note and "--config" in note
    assert opened("llama2-gqa", "megatron").notes == ()
    assert opened("llama2-gqa", "megatron-tp2pp2", config=GOLDEN / "llama2-gqa" / "hf").notes == ()


def forget(root, **changes):
    """Rewrite the args of every rank as a process would that was started with other flags; drop our manifest."""
    for path in root.rglob("model_optim_rng.pt"):
        state = torch.load(path, weights_only=False)
        del state["args"].true_vocab_size
        vars(state["args"]).update(changes)
        torch.save(state, path)
    for path in [*root.rglob("mconv.json")]:
        path.unlink()


def test_families_of_all_cases_are_supported():
    assert {"llama", "mistral", "falcon"} <= FAMILIES.keys()
