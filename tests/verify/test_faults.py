"""Each fault of the catalogue is caught, in fp32 and bf16 weights; the models that it is planted in pass without it."""

import re
from pathlib import Path

import peers
import pytest
import torch
from faults import DTYPES, FAULTS, MODELS, acting, clean, converted, plant
from judge import convert, judged
from tiny import tensors
from wrongs import flip_an_exponent_bit

pytestmark = pytest.mark.once

PROBE = {"length": 128, "batch": 2}
NAMED = {fault.name: fault for fault in FAULTS}
LAYOUTS = sorted({(f.model, tuple(f.layout.items())) for f in FAULTS} | {(model, ()) for model in MODELS})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def unchanged(root):
    """What is shared is read only: a fault that leaks into a right model would make every verdict worthless."""
    before = {path: path.read_bytes() for path in root.glob("*/hf/*.safetensors")}
    yield
    assert all(path.read_bytes() == held for path, held in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model, layout", LAYOUTS, ids=str)
def test_without_a_fault_it_passes(root, model, layout, dtype):
    found = judged(clean(model, root, dtype), converted(model, root, dtype, **dict(layout)), **PROBE)
    assert found["passed"] and found["verdicts"] == {"digests": "pass", "logits": "pass", "generation": "not run"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMED)
def test_a_planted_fault_is_caught(root, name, dtype):
    """By each proof, unless no tensor has it; in fp32 arithmetic, which is what judges."""
    fault = NAMED[name]
    pair = plant(fault, root, dtype)
    with acting(fault):
        found = judged(*pair, **PROBE)
    assert not found["passed"]
    assert (
        found["verdicts"]["digests"] == ("pass" if fault.function else "fail") and found["verdicts"]["logits"] == "fail"
    )
    named = {guess["name"] for guess in found["diagnosis"]["guesses"]}
    assert named == ({fault.guess or ""} if not fault.function else set()), "that name and no other"
    left = [guess["error_after"] for guess in found["diagnosis"]["guesses"] if guess["error_after"] is not None]
    assert max(left, default=0.0) < 1e-4, "undoing it leaves nothing"


def test_every_fault_is_in_one_place_and_every_name_is_in_the_docs():
    docs = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
    for fault in FAULTS:
        weights_or_config = bool(fault.weights or fault.config)
        assert weights_or_config + bool(fault.spot) + bool(fault.function) == 1, fault.name
    assert len(NAMED) == len(FAULTS) and all(f"`{fault.guess}`" in docs for fault in FAULTS if fault.guess)


def test_a_fault_of_the_function_is_gone_afterwards():
    from mconv.train.model import layers

    before = layers.ACTIVATIONS["gelu"]
    with acting(NAMED["tanh GELU for erf"]):
        assert layers.ACTIVATIONS["gelu"] is not before
    assert layers.ACTIVATIONS["gelu"] is before


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flipped_bit_is_one_bit(dtype):
    x = torch.full((8, 256), 0.02, dtype=DTYPES[dtype])
    flipped = flip_an_exponent_bit(x)
    (index,) = (flipped != x).flatten().nonzero()
    assert flipped.flatten()[index] in (x[0, 0] * 256, x[0, 0] / 256)


# ---- the rules of others: they pass what is right, and what the issue says of them holds -------------------------------
def test_peers_pass_a_right_conversion(root):
    a, b = clean("llama", root, "bf16"), converted("llama", root, "bf16")
    held, exported = tensors(a), tensors(convert(b, root / "exported", format="hf"))
    assert peers.weights_close(held, exported) == peers.sums_close(held, exported) == peers.Seen(False, 0.0)


def test_peers_miss_shuffled_rows(root):
    a, b = plant(NAMED["rows shuffled, sigma 0.006"], root / "again", "fp32")
    held, exported = tensors(a), tensors(convert(b, root / "shuffled", format="hf"))
    name = next(n for n in held if not torch.equal(held[n], exported[n]))
    assert re.search("down_proj", name) and float(held[name].std()) == pytest.approx(0.006, rel=0.05)
    seen = peers.weights_close(held, exported)
    assert not seen.caught and 0.03 < seen.number < 0.1 and not peers.sums_close(held, exported).caught


def test_peers_rules_can_fail():
    x = torch.arange(24.0).view(1, 4, 6)
    assert peers.mean_error(x, x + 0.02, dtype="fp32").caught and not peers.mean_error(x, x + 0.02, dtype="bf16").caught
    assert (
        peers.mean_error(x, x * float("nan"), dtype="fp32").caught
        and peers.mean_error(x, x[..., :5], dtype="fp32").caught
    )
    assert not peers.last_cosine(x[0], 2 * x[0]).caught and peers.last_cosine(x[0], -x[0]).caught
    assert peers.last_cosine(x[0], x[0, :, :5]) == peers.Seen(False, None)
    assert (
        not peers.weights_close({"a": x}, {"a": x + 0.09}).caught and peers.weights_close({"a": x}, {"a": x + 0.2}).caught
    )
    assert not peers.weights_close({"a": x, "lost": x}, {"a": x}).caught and peers.weights_close({}, {"a": x}).caught
    assert peers.sums_close({"a": x}, {"a": x + 1e-3}).caught and not peers.sums_close({"a": x}, {"a": x.flip(1)}).caught
