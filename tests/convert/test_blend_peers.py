"""mergekit as a peer: it runs every method on new cases, and ours are the same bits but for what is said here.

It is run where MCONV_MERGEKIT names a Python that has mergekit 0.1.5 (`pip install mergekit==0.1.5`).
"""

import os
import shutil
import subprocess
from pathlib import Path

import mergekit_peer
import pytest
import torch
from blend_cases import CASES, DEPTH, make_models
from blends import merged, run, scaled_ulps, tensors_of, with_masks
from safetensors.torch import load_file

from mconv.convert.blend.deltas import variance
from mconv.convert.blend.order import keys, largest
from mconv.convert.blend.recipe import read
from mconv.convert.blend.slabs import Slab

PYTHON = os.environ.get("MCONV_MERGEKIT")
GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "mergekit"
DRAWN = ("dare_linear", "dare_ties", "della", "della_linear")
pytestmark = pytest.mark.skipif(not PYTHON, reason="MCONV_MERGEKIT names no Python with mergekit")
SUMS = {
    "slerp": 4, "nuslerp": 5, "multislerp": 10, "karcher": 6, "model_stock": 6, "sce": 4, "ties-other": 12,
    "breadcrumbs-other": 12, "breadcrumbs_ties-other": 12, "dare": 10, "della": 10,
}  # fmt: skip
"""Cases with sums over a tensor, which mergekit rounds and we do not: units of last place, as in `test_blend_golden.py`.

In bf16 it rounds every step of `nuslerp`, `multislerp`, `karcher` and `model_stock` to 8 bits; we round the result.
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    make_models(folder)
    for case, recipe in CASES.items():
        (folder / case).mkdir()
        (folder / case / "merge.yaml").write_text(recipe)
    cases = [folder / case for case in CASES]
    if GOLDEN.is_dir():
        shutil.copytree(GOLDEN / "inputs", folder / "inputs")
        for case in DRAWN:
            shutil.copytree(GOLDEN / case, folder / "golden" / case)
        shutil.copytree(GOLDEN / "inputs", folder / "golden" / "inputs")
        cases += [folder / "golden" / case for case in DRAWN]
    subprocess.run([PYTHON, mergekit_peer.__file__, *map(str, cases)], check=True)
    return folder


def out_of(folder):
    return {name: tensor for file in (folder / "out").glob("*.safetensors") for name, tensor in load_file(file).items()}


def ends(method, merge, tensors):
    """Return the series that a method cuts, and the counts of its largest elements at which it does."""
    slab = Slab(0, tuple(tensor.reshape(-1).to(merge.dtype) for tensor in tensors))
    sizes, shared = [one.abs() for one in merge.differences(slab)], merge.shared
    if method == "sce" and shared["select_topk"] < 1:
        spread = variance(merge.differences(slab))
        return [spread], [[int(int((spread != 0).sum()) * shared["select_topk"])]]
    if method not in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        return [], []
    kept = [max(1, int(density * merge.numel)) for density in merge.each("density")]
    if method == "ties":
        return sizes, [[count] for count in kept]
    tops = [min(int(one * merge.numel), merge.numel - of) for one, of in zip(merge.each("gamma"), kept, strict=True)]
    return sizes, [[top + count, top] for top, count in zip(tops, kept, strict=True)]


def tied(method, merge, tensors):
    """Return the elements that equal others on the other side of a cut: mergekit's choice is an unstable sort's."""
    found = torch.zeros(merge.numel, dtype=torch.bool)
    for values, counts in zip(*ends(method, merge, tensors), strict=True):
        slabs = lambda: [Slab(0, (values,))]  # noqa: B023, E731
        (cuts,) = largest(slabs, lambda slab: slab.tensors, [[max(1, one) for one in counts]], merge.dtype)
        for cut in cuts:
            if cut.taken < cut.equal:
                found |= torch.from_numpy(keys(values) == cut.key)
    return found.reshape(merge.shape)


def limit(case):
    name = case.rpartition("-")[0]
    far = next((far for start, far in SUMS.items() if name.startswith(start)), 0)
    return min(far, 5) if case.endswith("bfloat16") else far


@pytest.mark.parametrize("case", CASES)
def test_merged_is_mergekits(peer, monkeypatch, case):
    recipe, theirs = read(peer / case / "merge.yaml"), out_of(peer / case)
    with_masks_of(monkeypatch, peer / case)

    def compare(method, merge, tensors):
        found = merged(method, merge, tensors)
        same = tied(method, merge, tensors)
        wanted = theirs[merge.name].to(merge.dtype)  # it leaves some merges of bf16 in fp32
        return scaled_ulps(torch.where(same, wanted, found), wanted, tensors), int(same.sum()), merge.numel

    found = run(recipe, tensors_of(recipe, peer / case), DEPTH, make=compare)
    assert found.keys() == theirs.keys()
    far, left_out, of = zip(*found.values(), strict=True)
    assert max(far) <= limit(case), found
    assert sum(left_out) <= (0.3 if case.endswith("bfloat16") else 0.003) * sum(of)


def with_masks_of(monkeypatch, folder):
    if masks := torch.load(folder / "masks.pt"):
        with_masks(monkeypatch, masks)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden merges are not beside this checkout")
@pytest.mark.parametrize("case", DRAWN)
def test_golden_random_merges_with_the_masks_that_are_drawn_again(peer, monkeypatch, case):
    folder = peer / "golden" / case
    recipe, theirs = read(folder / "merge.yaml"), load_file(GOLDEN / case / "expected.safetensors")
    if not all(torch.equal(tensor, theirs[name]) for name, tensor in out_of(folder).items()):
        pytest.skip("this torch draws other masks")
    with_masks_of(monkeypatch, folder)
    files = tensors_of(recipe, folder)
    found = run(recipe, files, 2, make=lambda *of: scaled_ulps(merged(*of), theirs[of[1].name], of[2]))
    assert max(found.values()) <= 10, found
