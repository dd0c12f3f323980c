"""mergekit's own merges: ours are the same bits, or as near to fp64 as its arithmetic is not.

Where a method takes sums over a whole tensor (norms, dots, l1 norms), mergekit adds them up in fp32 in an order that
depends on its threads; ours are added in fp64. Its numbers are then a few units of last place off, ours less than one.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from blends import merged, run, scaled_ulps, tensors_of, with_masks
from safetensors.torch import load_file

from mconv.convert.blend import reference
from mconv.convert.blend.recipe import read

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "mergekit"
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden merges are not beside this checkout"),
]
EXACT = [
    "linear", "linear-bf16", "passthrough", "task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "arcee_fusion",
    "nearswap",
]  # fmt: skip
SUMS = {"slerp": 4, "nuslerp": 5, "multislerp": 10, "karcher": 5, "model_stock": 3, "sce": 4}
"""Methods with sums over a tensor: how far mergekit's results are from ours, at most, in units of last place.

The unit is that of the largest among the result and the models' elements: a sum of these may cancel.
"""


def recipe_and_files(case):
    recipe = read(GOLDEN / case / "merge.yaml")
    return recipe, tensors_of(recipe, GOLDEN / case), load_file(GOLDEN / case / "expected.safetensors")


@pytest.mark.parametrize("case", EXACT)
def test_merged_is_mergekits_bit_for_bit(case):
    recipe, files, expected = recipe_and_files(case)
    found = run(recipe, files, 2)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(
            tensor.view(torch.uint8), found[name].view(torch.uint8)
        ), name


@pytest.mark.parametrize("case", SUMS)
def test_merged_is_mergekits_but_for_its_rounding_of_sums(case):
    recipe, files, expected = recipe_and_files(case)
    assert run(recipe, files, 2, make=lambda *_: None).keys() == expected.keys()

    def check(method, merge, tensors):
        found, theirs = merged(method, merge, tensors), expected[merge.name]
        exact = reference.evaluate(method, merge, tensors).values.float()
        assert scaled_ulps(found, theirs, tensors) <= SUMS[case], merge.name
        assert scaled_ulps(found, exact, tensors) <= (3 if case == "sce" else 1), merge.name
        return int((found != exact).sum()), int((theirs != exact).sum())

    errors = run(recipe, files, 2, make=check).values()
    ours, their = (sum(count) for count in zip(*errors, strict=True))
    assert ours < their and (case == "sce" or ours <= 2), (ours, their)


# ---- masks that torch's generator drew ---------------------------------------------------------------------------------
def test_dare_ties_with_the_masks_that_mergekit_drew(monkeypatch):
    recipe, files, expected = recipe_and_files("dare_ties")
    bits = load_file(GOLDEN / "dare_ties" / "masks.safetensors")
    masks = {
        name: [
            torch.from_numpy(np.unpackbits(bits[f"{name}@{model}"].numpy(), bitorder="little")[: tensor.numel()]).bool()
            for model in "ab"
        ]
        for name, tensor in expected.items()
    }
    with_masks(monkeypatch, masks)
    found = run(recipe, files, 2)
    for name, tensor in expected.items():
        assert scaled_ulps(found[name], tensor, [files[model][name] for model in recipe.models]) <= 8


@pytest.mark.parametrize("case", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_our_own_masks_keep_as_much_and_add_as_much(case):
    """Compared: the share of the elements that stay the base's, and how far the merge is from the base on the whole."""
    recipe, files, expected = recipe_and_files(case)
    found = run(recipe, files, 2, seed=42)
    base = files[recipe.base]
    large = [name for name, tensor in expected.items() if tensor.ndim == 2]
    for measure in (lambda one: float((one == 0).float().mean()), lambda one: float(one.abs().mean())):
        ours, theirs = (
            measure(torch.cat([(one[name] - base[name]).reshape(-1) for name in large])) for one in (found, expected)
        )
        assert ours == pytest.approx(theirs, rel=0.03)
