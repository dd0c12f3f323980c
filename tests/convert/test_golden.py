"""Checkpoints that Megatron-LM itself wrote: exported, they are the Hugging Face folder that they were made from."""

from pathlib import Path

import pytest
from tiny import same, tensors

from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.errors import ConfigError

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "megatron-lm"
CASES = {
    "td-tp2pp2-llama3": "torch_dist", "td-tp1-tied-eps6": "torch_dist", "td-tp2-mha-bf16": "torch_dist",
    "td-dp2-distopt": "torch_dist", "td-dp2-distopt-reshardable": "torch_dist", "td-tp1-gqa-pad": "torch_dist",
    "legacy-tp2pp2-mha-pad": "mp_rank", "legacy-tp1-gqa-bf16": "mp_rank", "legacy-tp2pp2-vpp2-bf16": "mp_rank",
    "legacy-tp1-adam": "mp_rank", "legacy-dp2-distopt": "mp_rank",
}  # fmt: skip
TRUE_VOCAB = {"td-tp1-gqa-pad": 300}
"""Cases whose true vocabulary is nowhere in the checkpoint."""
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not beside this checkout"),
]


@pytest.mark.parametrize("case", CASES)
def test_export_is_bit_for_bit_what_megatron_was_given(tmp_path, case):
    found = open_checkpoint(GOLDEN / case / "ckpt", vocab_size=TRUE_VOCAB.get(case))
    source = open_checkpoint(GOLDEN / case / "hf")
    assert found.format == CASES[case] and found.spec == source.spec and found.manifest is None
    rewrite(plan.make(found, tmp_path / "out", format="hf"), step="meg2hf")
    assert same(tensors(tmp_path / "out"), tensors(GOLDEN / case / "hf"))
    assert open_checkpoint(tmp_path / "out").spec == source.spec


@pytest.mark.parametrize("case", CASES)
def test_import_stores_the_same_pieces_as_megatron(tmp_path, case):
    """At the layout of the case: each of Megatron's tensors equals ours, in the rows that are not padding."""
    theirs = open_checkpoint(GOLDEN / case / "ckpt", vocab_size=TRUE_VOCAB.get(case))
    layout = theirs.layout
    options = {"tp": layout.tp, "pp": layout.pp, "vpp": layout.vpp, "vocab_multiple": layout.padded_vocab // layout.tp}
    source = open_checkpoint(GOLDEN / case / "hf")
    rewrite(plan.make(source, tmp_path / "m", format=CASES[case], **options), step="hf2meg")
    ours = open_checkpoint(tmp_path / "m")
    assert ours.layout == layout
    names = {s.key for s in theirs.stored}
    shared = [s for s in ours.stored if s.key in names]
    assert len(shared) == len(names) == len(ours.stored)
    for stored in shared:
        a, b = theirs.located[stored.key].load(), ours.located[stored.key].load()
        for block in stored.piece.blocks:
            at = (..., *(slice(*r) for r in block.at))
            assert same({"": a[at].contiguous()}, {"": b[at].contiguous()}), stored.key


def test_a_vocabulary_that_is_nowhere_in_the_file_is_asked_for():
    with pytest.raises(ConfigError, match="--vocab-size"):
        open_checkpoint(GOLDEN / "td-tp1-gqa-pad" / "ckpt")


@pytest.mark.parametrize("case", ["td-tp1-mixtral", "legacy-ep2-mixtral"])
def test_a_mixture_of_experts_is_refused_by_name(case):
    with pytest.raises(ConfigError, match="num_experts is 4"):
        open_checkpoint(GOLDEN / case / "ckpt")
