"""Merge methods: slab by slab they make what the reference makes, whole and in fp64, and no cut into slabs shows."""

import dataclasses

import pytest
import torch
from blend_cases import CASES, DEPTH, make_models
from blends import merged, run, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mconv.convert.blend import reference
from mconv.convert.blend.arithmetic import RULES, working_dtype
from mconv.convert.blend.draws import draws, key_of
from mconv.convert.blend.methods import METHODS
from mconv.convert.blend.recipe import read
from mconv.convert.blend.slabs import Merge
from mconv.errors import MconvError

SOME = r"embed|model\.norm|layers\.1\.(mlp|input)"
CUT = [
    *(f"{method}-float32" for method in METHODS), "ties-other-bfloat16", "breadcrumbs-other-bfloat16",
    "della-three-bfloat16", "nuslerp-rows-float32", "nuslerp-columns-float32", "model_stock-rows-bfloat16",
    "sce-top-bfloat16", "multislerp-base-float32", "arcee_fusion-bfloat16", "linear-bfloat16",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    (folder / "case").mkdir()
    return folder / "case"


def recipe_of(models, case):
    (models / "merge.yaml").write_text(CASES[case])
    return read(models / "merge.yaml")


def merges(models, case):
    """Return the method, and the merge and inputs of some tensors."""
    recipe = recipe_of(models, case)
    files = tensors_of(recipe, models)
    found = run(recipe, files, DEPTH, seed=3, make=lambda _, merge, tensors: (merge, tensors), only=SOME)
    return recipe.method.name, found


def test_every_method_has_a_rule_and_a_reference():
    assert RULES.keys() == reference.RULES.keys() == METHODS.keys() == {case_method(text) for text in CASES.values()}


def case_method(text):
    return text.split("\n")[0].removeprefix("merge_method: ")


@pytest.mark.parametrize("case", CASES)
def test_merged_is_what_the_reference_makes(models, case):
    method, found = merges(models, case)
    for name, (merge, tensors) in found.items():
        made = merged(method, merge, tensors)
        expected = reference.evaluate(method, merge, tensors)
        assert made.dtype == merge.dtype
        assert not expected.wrong(made).any(), name
        assert expected.slack.isinf().sum() <= 0.001 * made.numel() + 1, name


def sizes_for(merge, method, data):
    """Return sizes of slabs, whole rows where the method needs them."""
    unit = merge.row if METHODS[method].rows else 1
    most = merge.numel // unit
    sizes = data.draw(st.lists(st.integers(max(1, most // 9), most), min_size=1, max_size=4))
    return [unit * size for size in sizes]


@settings(max_examples=3, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("case", CUT)
def test_no_cut_into_slabs_shows(models, case, data):
    """Neither does the order in which slabs are asked for."""
    method, found = merges(models, case)
    merge, tensors = found[data.draw(st.sampled_from(sorted(found)))]
    whole = merged(method, merge, tensors, [merge.numel])
    order = reversed if data.draw(st.booleans()) else iter
    cut = merged(method, merge, tensors, sizes_for(merge, method, data), order)
    assert torch.equal(whole, cut)


def test_sums_do_not_depend_on_slabs_beyond_one_block():
    """Tensors of several blocks of the sums, whose last one is not full."""
    draw = torch.Generator().manual_seed(0)
    shape = (700, 300)
    tensors = [torch.randn(shape, generator=draw) for _ in range(3)]
    own = {"weight": 0.4, "density": 0.3, "epsilon": 0.1, "gamma": 0.1}
    for method in ("slerp", "nuslerp", "ties", "dare_linear", "della", "karcher", "sce", "model_stock"):
        shared = {one.name: 0.3 if one.name in ("t", "select_topk") else one.default for one in METHODS[method].shared}
        two = METHODS[method].models == (1, 1)
        base = None if METHODS[method].base == "unused" else 0
        merge = Merge(
            name="x", shape=shape, dtype=torch.float32, shared={**shared, "rescale": True}, inputs=(own,) * (3 - two),
            base=base,
        )  # fmt: skip
        given_ = tensors[: 3 - two]
        whole = merged(method, merge, given_, [merge.numel])
        assert torch.equal(whole, merged(method, merge, given_, [300, 65400, 65700])), method
        assert not reference.evaluate(method, merge, given_).wrong(whole).any(), method


# ---- what must be seen ------------------------------------------------------------------------------------------------
def swapped(merge, tensors):
    first, second = merge.others[:2]
    inputs = list(merge.inputs)
    inputs[first], inputs[second] = inputs[second], inputs[first]
    return dataclasses.replace(merge, inputs=tuple(inputs)), tensors


def other_base(merge, tensors):
    return merge, [tensors[merge.others[0]] if at == merge.base else one for at, one in enumerate(tensors)]


def without_last_model(merge, tensors):
    return merge, [*tensors[:-1], tensors[0]]


def half_as_much(merge, tensors):
    return dataclasses.replace(merge, shared={**merge.shared, "t": merge.shared["t"] / 2}), tensors


def other_seed(merge, tensors):
    return dataclasses.replace(merge, seed=4), tensors


FAULTS = [
    *((method, swapped) for method in ("linear", "nuslerp-rows", "multislerp", "task_arithmetic", "ties", "breadcrumbs")),
    *(
        (method, other_base)
        for method in ("slerp", "ties", "dare_ties", "model_stock", "sce", "arcee_fusion", "nearswap")
    ),
    *((method, without_last_model) for method in ("karcher", "linear", "model_stock-rows", "sce-top", "della")),
    *((method, half_as_much) for method in ("slerp", "nearswap")),
    *((method, other_seed) for method in ("dare_ties", "dare_linear", "della", "della_linear")),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("method", "fault"), FAULTS, ids=lambda one: getattr(one, "__name__", one))
def test_a_fault_in_a_merge_is_seen(models, method, fault, dtype):
    name, found = merges(models, f"{method}-{dtype}")
    merge, tensors = found["model.layers.1.mlp.down_proj.weight"]
    expected = reference.evaluate(name, merge, tensors)
    assert expected.wrong(merged(name, *fault(merge, tensors))).any()


@pytest.mark.parametrize("case", ["linear-float32", "ties-bfloat16", "karcher-float32"])
def test_a_slab_of_another_tensor_is_seen(models, case):
    method, found = merges(models, case)
    (merge, tensors), (_, others) = (found[f"model.layers.1.mlp.{leaf}_proj.weight"] for leaf in ("up", "gate"))
    made, wrong = merged(method, merge, tensors), merged(method, merge, others)
    made[7:9] = wrong[7:9]
    seen = reference.evaluate(method, merge, tensors).wrong(made)
    assert seen[7:9].float().mean() > 0.9 and not seen[:7].any() and not seen[9:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_stored_narrower_may_be_off_by_its_rounding(models, dtype):
    method, found = merges(models, "ties-float32")
    merge, tensors = found["model.layers.1.mlp.up_proj.weight"]
    stored = merged(method, merge, tensors).to(dtype)
    expected = reference.evaluate(method, merge, tensors)
    assert expected.wrong(stored).any() and not expected.stored_as(dtype).wrong(stored).any()
    assert expected.stored_as(dtype).wrong(stored * 1.01).float().mean() > 0.9


def test_the_arithmetic_is_in_the_type_that_is_named_or_holds_all():
    assert working_dtype("bfloat16", [torch.float32]) == torch.bfloat16
    assert working_dtype(None, [torch.bfloat16] * 2) == torch.bfloat16
    assert working_dtype(None, [torch.bfloat16, torch.float16]) == torch.float32


# ---- random masks -----------------------------------------------------------------------------------------------------
def test_draws_are_the_same_from_any_element_on():
    key = key_of(5, 1, "x")
    whole = draws(key, 0, 1000)
    for start in (0, 1, 7, 8, 9, 63, 500, 999):
        for count in (0, 1, 2, 3, 1000 - start):
            assert (draws(key, start, min(count, 1000 - start)) == whole[start : start + count]).all()
    assert abs(whole.mean() / 2**32 - 0.5) < 0.03
    keys = {key_of(seed, model, name) for seed in (0, 1) for model in (0, 1, 10) for name in ("x", "1x")}
    assert len(keys) == 12


def test_draws_stay_what_they_are():
    """Masks of a recipe that was merged before can be made again."""
    assert [*draws(0, 0, 4)] == [149215387, 49592932, 2628306354, 1037445899]
    assert key_of(0, 0, "x") == 61685864153957392214660515571180154614


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("method", ["dare_linear", "della_linear"])
def test_a_share_of_elements_is_kept_and_the_norm_restored(method, density):
    draw = torch.Generator().manual_seed(0)
    base, other = (torch.randn(200, 500, generator=draw) for _ in range(2))
    merge = Merge(
        name="x", shape=(200, 500), dtype=torch.float32, base=0, seed=1,
        shared={"normalize": False, "rescale": True, "lambda": 1.0},
        inputs=({}, {"weight": 1.0, "density": density, "epsilon": 0.05}),
    )  # fmt: skip
    mixed = merged(method, merge, [base, other], [5000]) - base
    assert abs(float((mixed != 0).float().mean()) - density) < 0.01
    if density:
        assert float(mixed.double().abs().sum() / (other - base).double().abs().sum()) == pytest.approx(1, abs=1e-5)


def test_large_elements_are_kept_more_often_by_della():
    base, other = torch.zeros(500, 100), torch.arange(1.0, 101).expand(500, 100).contiguous()
    merge = Merge(
        name="x", shape=(500, 100), dtype=torch.float32, base=0, seed=1,
        shared={"normalize": False, "rescale": False, "lambda": 1.0},
        inputs=({}, {"weight": 1.0, "density": 0.5, "epsilon": 0.4}),
    )  # fmt: skip
    kept = (merged("della_linear", merge, [base, other], [5000]) != 0).float().mean(dim=0)
    assert kept[:10].mean() < 0.2 and abs(kept[45:55].mean() - 0.5) < 0.05 and kept[-10:].mean() > 0.8


# ---- bad input ---------------------------------------------------------------------------------------------------------
def merge_of(method, *inputs, base=None, **shared):
    shared = {one.name: one.default for one in METHODS[method].shared} | shared
    return Merge(name="x", shape=(4,), dtype=torch.float32, shared=shared, inputs=inputs, base=base)


@pytest.mark.parametrize(
    ("method", "inputs", "tensors", "message"),
    [
        ("linear", ({"weight": 0.5}, {"weight": -0.5}), [1, 2], r"x: the weights \[0.5, -0.5\] add up to 0"),
        ("multislerp", ({"weight": 1}, {"weight": -1}), [1, 2], "add up to 0"),
        ("multislerp", ({"weight": 2}, {"weight": 1}, {"weight": 1}), [1, -1, -1], "cancel out"),
        ("della", ({}, {"weight": 1, "density": 0.1, "epsilon": 0.15}), [1, 2], "density 0.1 and epsilon 0.15"),
    ],
)
def test_what_has_no_result_stops_with_the_tensors_name(method, inputs, tensors, message):
    base = 0 if not inputs[0] else None
    with pytest.raises(MconvError, match=message):
        merged(method, merge_of(method, *inputs, base=base), [torch.full((4,), float(one)) for one in tensors])


def test_a_base_alone_is_what_is_merged():
    base = torch.randn(4)
    for method in ("ties", "sce", "task_arithmetic", "dare_ties", "breadcrumbs"):
        assert torch.equal(merged(method, merge_of(method, {}, base=0), [base]), base)


def test_zeros_stay_zeros():
    zeros = [torch.zeros(4)] * 3
    own = {"weight": 1.0, "density": 0.5, "epsilon": 0.1, "gamma": 0.1}
    for method in METHODS:
        count = min(3, METHODS[method].models[1] + (METHODS[method].base == "required"))
        base = 0 if METHODS[method].base == "required" else None
        merge = merge_of(method, *(dict(own, scale=2.0),) * count, base=base, t=0.5)
        if method == "multislerp":
            continue  # it has no direction to return
        assert torch.equal(merged(method, merge, zeros[:count]), zeros[0]), method
