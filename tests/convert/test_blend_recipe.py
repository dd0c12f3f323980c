"""mergekit's YAML: what people write is read, what no row claims stops by name, parameters follow mergekit's rules."""

import subprocess
import sys

import pytest
import yaml

from mconv.convert.blend.document import Reference, Token, Tokenizer
from mconv.convert.blend.lineup import bind, lineup
from mconv.convert.blend.methods import METHODS, REQUIRED
from mconv.convert.blend.recipe import parse, read
from mconv.errors import ConfigError, FormatError

LAYERED = """
merge_method: slerp
base_model: org/A@main
slices:
  - sources:
      - {model: org/A@main, layer_range: [0, 3]}
      - {model: B+adapters/x@v2, layer_range: [1, 4]}
    parameters:
      t:
        - {filter: self_attn, value: [0, 0.5, 1]}
        - {filter: layers.2.mlp, value: 0.9}
  - sources:
      - {model: org/A@main, layer_range: [2, 3]}
      - {model: B+adapters/x@v2, layer_range: [3, 4]}
parameters: {t: [0.2, 0.6]}
dtype: bfloat16
out_dtype: torch.float16
tokenizer_source: union
chat_template: chatml
"""
A, B = Reference("org/A", "main"), Reference("B", None, "adapters/x", "v2")


def recipe(text):
    return parse(yaml.safe_load(text))


def test_a_recipe_as_people_write_it():
    found = recipe(LAYERED)
    assert (found.method.name, found.dtype, found.out_dtype) == ("slerp", "bfloat16", "float16")
    assert found.models == (A, B) and str(B) == "B+adapters/x@v2" and str(A) == "org/A@main"
    assert [[one.layers for one in part.inputs] for part in found.slices] == [[(0, 3), (1, 4)], [(2, 3), (3, 4)]]
    assert found.tokenizer == Tokenizer("union") and found.chat_template == "chatml"


def test_a_value_of_a_tensor_by_slice_filter_and_layer():
    """The slice comes before the recipe; a list runs over the layers of the slice; a lone layer is its last."""
    found = recipe(LAYERED)
    plan = lineup(found, {A: 3, B: 4})

    def t(origin, name):
        return bind(found, origin, name, [name, name]).shared["t"]

    attention = [t(one, f"model.layers.{at}.self_attn.q_proj.weight") for at, one in enumerate(plan.layers)]
    assert attention == [0, 0.5, 1, 0.6]
    mlp = [t(one, f"model.layers.{at}.mlp.up_proj.weight") for at, one in enumerate(plan.layers)]
    assert mlp == pytest.approx([0.2, 0.4, 0.9, 0.6])
    assert t(plan.before, "model.embed_tokens.weight") == t(plan.after, "lm_head.weight") == 0.2
    assert [one.layers for one in plan.layers] == [(0, 1), (1, 2), (2, 3), (2, 3)]
    assert plan.before.part == found.slices[0] and plan.after.part == found.slices[1]


TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {weight: {filter: mlp, value: 0.3}, density: [0.2, 0.4, 0.8]}
  - model: b
    parameters:
      weight:
        - {filter: "layers.1.", value: [1, 3]}
        - {filter: "*", value: "1e-1"}
parameters: {weight: 0.5, density: 0.7, normalize: [true, false], lambda: 2, int8_mask: true}
"""


def test_a_value_of_a_model_its_own_first():
    found = recipe(TIES)
    plan = lineup(found, {Reference(name): 3 for name in ("base", "a", "b")})
    names = ["model.layers.1.mlp.up_proj.weight"] * 3
    bound = bind(found, plan.layers[1], names[0], names)
    assert bound.base == 0 and bound.inputs[0] == {}
    assert bound.inputs[1:] == ({"weight": 0.3, "density": 0.4}, {"weight": 2.0, "density": 0.7})
    assert bound.shared == {"normalize": True, "lambda": 2.0, "int8_mask": True, "rescale": False}
    last = bind(
        found, plan.layers[2], "model.layers.2.self_attn.q_proj.weight", ["model.layers.2.self_attn.q_proj.weight"] * 3
    )
    assert last.inputs[1:] == ({"weight": 0.5, "density": 0.8}, {"weight": 0.1, "density": 0.7})
    assert last.shared["normalize"] is False


def test_filters_of_a_model_look_at_its_own_layer():
    found = recipe(
        """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [4, 5], parameters: {weight: [{filter: layers.4., value: 7}, {value: 1}]}}
              - {model: b, layer_range: [0, 1], parameters: {weight: [{filter: layers.4., value: 7}, {value: 1}]}}
        """
    )
    (origin,) = lineup(found, {Reference("a"): 5, Reference("b"): 5}).layers
    names = ["model.layers.4.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert [own["weight"] for own in bind(found, origin, "model.layers.0.mlp.up_proj.weight", names).inputs] == [7, 1]


def test_a_base_that_is_not_among_the_models_is_the_last_of_them():
    found = recipe("{merge_method: ties, base_model: c, models: [{model: a}, {model: b}], parameters: {weight: 1}}")
    assert [str(one.model) for one in found.slices[0].inputs] == ["a", "b", "c"]
    assert bind(found, lineup(found, dict.fromkeys(found.models, 2)).before, "x", ["x"] * 3).base == 2


def test_the_base_of_a_method_without_one_is_a_model_like_the_others():
    found = recipe("{merge_method: linear, base_model: a, models: [{model: a}, {model: b}], parameters: {weight: 1}}")
    assert bind(found, lineup(found, dict.fromkeys(found.models, 2)).before, "x", ["x"] * 2).base is None


def test_tokenizer_with_tokens():
    found = recipe(
        """
        merge_method: linear
        models: [{model: a}]
        tokenizer:
          source: a
          pad_to_multiple_of: 64
          tokens:
            <|im_start|>: {source: b}
            <|im_end|>: {source: {kind: model_token, model: b, token: </s>}, force: true}
            <|pad|>: {source: {kind: zero}}
            <|x|>: {}
        """
    )
    b = Reference("b")
    assert found.tokenizer == Tokenizer(
        Reference("a"),
        {
            "<|im_start|>": Token("model", b), "<|im_end|>": Token("model_token", b, "</s>", force=True),
            "<|pad|>": Token("zero"), "<|x|>": Token(),
        },
        64,
    )  # fmt: skip


PLAIN = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
SLICED = {"merge_method": "passthrough", "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}]}


def changed(recipe, *path, value):
    """Return a recipe with another value at a path."""
    if not path:
        return value
    copy = list(recipe) if isinstance(recipe, list) else dict(recipe)
    inner = recipe[path[0]] if isinstance(recipe, list) else recipe.get(path[0], {})
    copy[path[0]] = changed(inner, *path[1:], value=value)
    return copy


BAD = [
    ([1], "the recipe is [1], not keys with values"),
    ({}, "the recipe has no merge_method"),
    (changed(PLAIN, "merge_method", value="slurp"), "merge_method is 'slurp'; mconv knows linear, slerp"),
    (changed(PLAIN, "merge_methods", value="x"), "unknown key 'merge_methods'; known are merge_method, models"),
    (changed(PLAIN, "modules", value={}), "unknown key 'modules'"),
    (changed(PLAIN, "slices", value=SLICED["slices"]), "either models or slices"),
    (changed(PLAIN, "models", value=[]), "models is [], not a list with at least one entry"),
    (changed(PLAIN, "models", value=None), "either models or slices"),
    (changed(PLAIN, "models", 0, "path", value="x"), "models[0]: unknown key 'path'; known are model, parameters"),
    (changed(PLAIN, "models", 0, "model", value="a+b+c"), "models[0].model is 'a+b+c'; a model is PATH[@REVISION]"),
    (changed(PLAIN, "models", 0, "model", value=3), "models[0].model is 3, not text"),
    (changed(PLAIN, "models", value=[{"model": "a"}, {"model": "a"}]), "models: a is there twice"),
    (
        changed(PLAIN, "models", 0, "parameters", "density", value=1),
        "models[0].parameters: linear has no parameter 'density'; it has normalize, weight",
    ),
    (changed(PLAIN, "models", 0, "parameters", "normalize", value=True), "normalize of linear is one for all models"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value="a"), "models[0].parameters.weight is 'a', not a number"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value=[1, None]), "parameters.weight is None, not a number"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value=float("nan")), "parameters.weight is nan, not a number"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value=[{"value": 1, "filters": "x"}]), "unknown key 'filters'"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value=[{"filter": "x"}]), "parameters.weight has no value"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value=[{"filter": 3, "value": 1}]), "filter is 3"),
    (changed(PLAIN, "models", 0, "parameters", "weight", value={"value": {"value": 1}}), "a condition in a condition"),
    (changed(PLAIN, "parameters", value=[1]), "parameters is [1], not names with values"),
    (changed(PLAIN, "parameters", "normalize", value="maybe"), "parameters.normalize is 'maybe', not true or false"),
    (changed(PLAIN, "dtype", value="int8"), "dtype is 'int8'; it can be bfloat16, float16, float32, float64"),
    (changed(PLAIN, "tokenizer", value={"sauce": "a"}), "tokenizer: unknown key 'sauce'; known are source, tokens"),
    (
        changed(PLAIN, "tokenizer", value={"tokens": {"<s>": {"source": {"kind": "zero", "token": "x"}}}}),
        "kind is zero alone",
    ),
    (
        changed(PLAIN, "tokenizer", value={"tokens": {"<s>": {"source": {"kind": "model_token", "model": "a"}}}}),
        "one of token",
    ),
    (PLAIN | {"tokenizer": {}, "tokenizer_source": "base"}, "either tokenizer or tokenizer_source"),
    (
        changed(SLICED, "slices", 0, "sources", 0, "layer_range", value=[2, 2]),
        "layer_range is [2, 2]; it is [FIRST, LAST + 1]",
    ),
    (changed(SLICED, "slices", 0, "sources", 0, value={"model": "a"}), "slices[0].sources[0] has no layer_range"),
    (changed(SLICED, "slices", 0, "layers", value=3), "slices[0]: unknown key 'layers'; known are sources"),
    (PLAIN | {"merge_method": "ties"}, "ties needs a base_model"),
    (PLAIN | {"merge_method": "nuslerp"}, "models: nuslerp merges 2 models, not 1"),
    (SLICED | {"merge_method": "nearswap", "base_model": "b", "parameters": {"t": 1}}, "the base_model b is not among"),
    (
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": x} for x in "abc"]},
        "merges 1 model besides the base, not 2",
    ),
    (
        {"merge_method": "model_stock", "base_model": "a", "models": [{"model": "b"}]},
        "merges 2 or more models besides the base, not 1",
    ),
    (
        {"merge_method": "ties", "base_model": "a", "models": [{"model": "b"}], "parameters": {"density": 53}},
        "parameters.density is 53; it must be between 0.0 and 1.0",
    ),
    (
        {"merge_method": "karcher", "models": [{"model": "b"}], "parameters": {"max_iter": 2.5}},
        "max_iter is 2.5, not a whole number",
    ),
    (
        {"merge_method": "nearswap", "base_model": "a", "models": [{"model": "b"}], "parameters": {"t": -1}},
        "t is -1; it must be 0.0 or more",
    ),
]


@pytest.mark.parametrize(("document", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_no_row_claims_stops_by_name(document, message):
    with pytest.raises(ConfigError) as caught:
        parse(document)
    assert message in str(caught.value)


def test_the_recipes_that_were_changed_are_good():
    assert parse(PLAIN).method.name == "linear" and parse(SLICED).slices[0].inputs[0].layers == (0, 2)


def test_layers_that_a_model_has_not():
    for depths, message in [((2, 4), r"\[0, 3\] of org/A@main ends after its 2 layers"), ((3, 3), "after its 3 layers")]:
        with pytest.raises(ConfigError, match=message):
            lineup(recipe(LAYERED), dict(zip((A, B), depths, strict=True)))


def test_models_of_different_depth_in_one_slice():
    found = recipe("{merge_method: linear, models: [{model: a}, {model: b}], parameters: {weight: 1}}")
    with pytest.raises(ConfigError, match="as many layers: a 2, b 3"):
        lineup(found, {Reference("a"): 2, Reference("b"): 3})


def test_a_required_parameter_that_is_missing_is_named_with_tensor_and_model():
    found = recipe("{merge_method: linear, models: [{model: a, parameters: {weight: {filter: mlp, value: 1}}}]}")
    with pytest.raises(ConfigError, match=r"x.self_attn: no weight for a; give it under parameters"):
        bind(found, lineup(found, {Reference("a"): 1}).before, "x.self_attn", ["x.self_attn"])


def test_a_whole_number_that_a_list_would_make_a_fraction():
    found = recipe("{merge_method: karcher, models: [{model: a}], parameters: {max_iter: [1, 4]}}")
    plan = lineup(found, {Reference("a"): 4})
    assert bind(found, plan.layers[1], "x", ["x"]).shared["max_iter"] == 2
    plan = lineup(found, {Reference("a"): 3})
    with pytest.raises(ConfigError, match=r"max_iter would be 2\.5 here"):
        bind(found, plan.layers[1], "x", ["x"])


def test_files(tmp_path):
    path = tmp_path / "merge.yaml"
    path.write_text(LAYERED)
    assert read(path) == recipe(LAYERED)
    for text, kind, message in [
        ("merge_method: [", FormatError, "not readable as YAML"),
        ("merge_method: x", ConfigError, f"{path}: merge_method is 'x'"),
        ("a" * 2_000_000, FormatError, "has 2000000 bytes"),
        ("!!python/object:os.system {}", FormatError, "not readable as YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(kind) as caught:
            read(path)
        assert message in str(caught.value)
    with pytest.raises(FormatError, match=r"missing\.yaml"):
        read(tmp_path / "missing.yaml")


def test_a_recipe_is_read_without_torch():
    code = "import sys, mconv.convert.blend.lineup; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_table_of_methods_is_whole():
    for method in METHODS.values():
        names = [one.name for one in method.parameters]
        assert len({*names}) == len(names) and method.paper and method.models[0] <= method.models[1]
        for one in method.parameters:
            assert one.default in (REQUIRED, None) or type(one.default) is one.kind
