"""Element types, elements as numbers, pickles: what stands in for torch where nothing is computed, held to torch."""

import argparse
import io
import pickle
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mconv.convert.formats import numbers, pack
from mconv.convert.formats.dtype import BFLOAT16, BY_NAME, FLOAT32, in_torch, of_torch
from mconv.convert.formats.tensors import Located
from mconv.convert.formats.unpickle import STORAGES
from mconv.convert.spelling import derived
from mconv.spec import ModelSpec, Rope

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", BY_NAME)
def test_an_element_type_is_what_torch_says(name):
    ours, theirs = BY_NAME[name], getattr(torch, name)
    assert in_torch(ours) is theirs and of_torch(theirs) == ours
    assert (ours.itemsize, ours.is_floating_point) == (theirs.itemsize, theirs.is_floating_point)
    assert (str(ours), repr(ours)) == (name, str(theirs))


def test_storages_have_torchs_dtypes():
    theirs = torch.storage._dtype_to_storage_type_map()
    assert {theirs[in_torch(dtype)]: dtype for dtype in STORAGES.values()} == STORAGES


@pytest.mark.parametrize("dtype", sorted(numbers.KNOWN, key=str), ids=str)
def test_elements_are_read_as_torch_reads_them(dtype, tmp_path):
    file = tmp_path / "data"
    raw = torch.randint(0, 256, (64, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    if dtype.name == "bool":
        raw %= 2
    file.write_bytes(b"###" + raw.numpy().tobytes())
    where = Located(file, 3, dtype, (raw.numel() // dtype.itemsize,))
    wanted = where.load()
    got = numbers.read(where, 7, start=5)
    assert torch.equal(torch.tensor(got, dtype=in_torch(dtype)).nan_to_num(), wanted[5:12].nan_to_num())
    assert [x != x for x in got] == [bool(x != x) for x in wanted[5:12]]


class Slot:
    def __init__(self, dtype: torch.dtype, key: str, numel: int) -> None:
        self.pid = (
            "storage",
            next(getattr(torch, n) for n, d in STORAGES.items() if in_torch(d) is dtype),
            key,
            "cpu",
            numel,
        )


class Real:
    """A tensor to be, as torch's own names in the hands of Python's C pickler make it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> None:
        self.shape, self.slot = shape, Slot(dtype, key, prod(shape))

    def __reduce__(self):
        stride = tuple(prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        hooks = torch.nn.Module()._backward_hooks.__class__()  # collections.OrderedDict
        return torch._utils._rebuild_tensor_v2, (self.slot, 0, self.shape, stride, False, hooks)


class CPickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Slot) else None


def tree(promise, half, single):
    args = argparse.Namespace(a=1, params_dtype=half, also=half, main=single, nested={"x": [1, 2.5, None, "s", (True,)]})
    model = {f"layers.{i}.weight": promise((4, i), half, str(i)) for i in range(300)}
    return {"args": args, "model": model, "one": promise((), single, "one"), "extra": None}


def test_a_pickle_without_torch_is_the_pickle_with_it():
    out = io.BytesIO()
    CPickler(out, protocol=2).dump(tree(Real, torch.bfloat16, torch.float32))
    assert pack._pickled(tree(pack.Promise, BFLOAT16, FLOAT32)) == (out.getvalue(), {})


ROPES = [Rope(), Rope(base=5e5), Rope(kind="linear", factor=4.0), Rope(kind="llama3", base=5e5, factor=8.0)]


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: f"{rope.kind}-{rope.base:g}")
@pytest.mark.parametrize("change", [0.0, 0.5], ids=["right", "wrong"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_buffers_are_told_from_wrong_ones(rope, change, dtype, tmp_path):
    """Frequencies, cosines and sines as transformers keeps them, in the dtypes in which folders have them."""
    from mconv.train.model.rope import inverse_frequencies

    spec = ModelSpec(
        family="llama", num_layers=1, hidden_size=64, ffn_hidden_size=8, num_attention_heads=2, num_query_groups=2,
        kv_channels=32, vocab_size=8, max_position_embeddings=16, norm_epsilon=1e-5, rope=rope,
    )  # fmt: skip
    frequencies = inverse_frequencies(rope, kv_channels=32) * (1 + change)
    angles = torch.outer(torch.arange(16.0), frequencies).repeat(1, 2)[None, None]
    stored = {"inv_freq": frequencies, "cos_cached": angles.cos(), "sin_cached": angles.sin()}
    for name, tensor in stored.items():
        (tmp_path / name).write_bytes(tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
        where = Located(tmp_path / name, 0, of_torch(dtype), tuple(tensor.shape))
        row = derived.buffer_of(f"rotary_emb.{name}", where, derived.ROTARY_BUFFERS)
        assert row is not None and row.check(spec, where) == (not change), name


@given(base=st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False), n=st.integers(1, 64))
def test_no_base_overflows(base, n):
    assert derived.rotary(base, n)[0] == 1.0
