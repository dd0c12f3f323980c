"""Faults that are planted in a blend: `mconv verify` exits with 1 and names the tensor and the kind of fault."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import save_file
from test_blended import CASES, SMALL, blend, one_by_one, request_of
from tiny import make_llama, tensors

import mconv
from mconv.cli.app import run
from mconv.verify.recipes import blend as judged

pytestmark = pytest.mark.once
UP, GATE, QUERY, KEY = (
    f"model.layers.1.{name}_proj.weight" for name in ("mlp.up", "mlp.gate", "self_attn.q", "self_attn.k")
)
SCHEMA = json.loads((Path(mconv.__file__).parent / "verify" / "report.schema.json").read_text())
HEAD = 6
"""Width of a head of the tiny models."""


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    return {name: make_llama(root / name, **SMALL, seed=seed) for seed, name in enumerate(("base", "a", "b"))}


@pytest.fixture(scope="module")
def blends(three, tmp_path_factory):
    """Return a function that gives a blend's request, its tensors and its folder, by the method."""
    made = {}

    def find(method, **options):
        if method not in made:
            out = tmp_path_factory.mktemp("blends") / method
            request = request_of(list(three.values()), method, **(options or CASES[method]))
            made[method] = request, blend(request, out), out
        return made[method]

    return find


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Judge some rows at a time where the method allows it."""
    monkeypatch.setattr(judged, "SLAB", 200)


def other(three, name, tensor, values, request):
    """Return a tensor of the blend as it would be with another one in a model."""
    folder = three[name].parent / "other"
    shutil.copytree(three[name], folder)
    save_file({**tensors(folder), tensor: values}, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        return one_by_one(request, {**three, name: folder})[tensor]
    finally:
        shutil.rmtree(folder)


def swapped_heads(values, a=0, b=1):
    parts = list(values.split(HEAD))
    parts[a], parts[b] = parts[b], parts[a]
    return torch.cat(parts)


def weights_swapped(three, found, request):
    return UP, one_by_one(request_of(list(three.values()), "ties", **{**CASES["ties"], "weights": "0.4,0.6"}), three)[UP]


def base_forgotten(three, found, request):
    return UP, found[UP] - tensors(three["base"])[UP]


def slab(three, found, request):
    return UP, torch.cat([found[GATE][:5], found[UP][5:]])


def rows(three, found, request):
    return UP, found[UP].index_fill(0, torch.tensor([7]), 0.25)


def mask_shifted(three, found, request):
    base, a = (tensors(three[name])[UP] for name in ("base", "a"))
    return UP, torch.where((found[UP] != base).roll(1, dims=1), base + 0.6 * (a - base), base)


def gate_and_up(three, found, request):
    """Of one model, up taken for gate."""
    return GATE, other(three, "a", GATE, tensors(three["a"])[UP], request)


def heads(three, found, request):
    return QUERY, swapped_heads(found[QUERY])


def heads_of_one(three, found, request):
    return QUERY, other(three, "a", QUERY, swapped_heads(tensors(three["a"])[QUERY], 1, 3), request)


def scale(three, found, request):
    return KEY, found[KEY] * 1.01


def alone(three, found, request):
    return UP, tensors(three["b"])[UP]


def another(three, found, request):
    return UP, found[GATE].clone()


FAULTS = [
    ("ties", weights_swapped, "weights", "it is made with the parameters of a and b exchanged"),
    ("ties", base_forgotten, "base", "the base was not added"),
    ("ties", slab, "slab", f"rows 0-4: those of {GATE} stand there"),
    ("ties", rows, "slab", "row 7 alone is wrong"),
    ("ties", mask_shifted, "mask", "the mask is shifted by 1 element"),
    ("ties", gate_and_up, "input", f"of a, {UP} was taken"),
    ("linear", gate_and_up, "input", f"of a, {UP} was taken"),
    ("linear", heads, "heads", "heads 0 and 1 are exchanged"),
    ("linear", heads_of_one, "heads", "of a, heads 1 and 3 are exchanged"),
    ("della", heads, "heads", "heads 0 and 1 are exchanged"),
    ("ties", scale, "scale", "it is 1.01 times what the recipe makes"),
    ("linear", alone, "model", "it is that of b alone"),
    ("linear", another, "tensor", f"it is what the recipe makes of {GATE}"),
]


def check(out, capsys, name, kind, why):
    capsys.readouterr()
    assert run(["verify", str(out), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    (wrong,) = report["recipe"]["wrong"]
    assert (wrong["name"], wrong["kind"]) == (name, kind) and why in wrong["why"], wrong
    assert report["verdicts"]["digests"] == "fail" and report["diagnosis"]["guesses"][0]["tensor"] == name


@pytest.mark.parametrize("method, fault, kind, why", FAULTS)
def test_a_planted_fault_is_named(three, blends, method, fault, kind, why, capsys):
    request, found, out = blends(method)
    name, values = fault(three, found, request)
    save_file({**found, name: values.contiguous()}, out / "model.safetensors", metadata={"format": "pt"})
    check(out, capsys, name, kind, why)


def test_a_blend_without_a_fault_passes(blends, capsys):
    for method in ("ties", "linear", "della"):
        _, found, out = blends(method)
        save_file(found, out / "model.safetensors", metadata={"format": "pt"})
        assert run(["verify", str(out)]) == 0


def test_the_parameters_of_another_layer_are_named(three, tmp_path, capsys):
    """A gradient over the layers, whose place is that of another layer for one tensor."""
    text = f"models:\n  - model: {three['a']}\n  - model: {three['b']}\nmerge_method: slerp\nbase_model: {three['a']}\n"
    (tmp_path / "ramp.yaml").write_text(f"{text}parameters:\n  t: [0.2, 0.8]\n")
    (tmp_path / "flat.yaml").write_text(f"{text}parameters:\n  t: 0.2\n")
    for name in ("ramp", "flat"):
        assert run(["blend", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]) == 0
    found = tensors(tmp_path / "ramp") | {UP: tensors(tmp_path / "flat")[UP]}
    save_file(found, tmp_path / "ramp" / "model.safetensors", metadata={"format": "pt"})
    check(tmp_path / "ramp", capsys, UP, "gradient", "it is made with the parameters of layer 0")
