"""The report as a page and as JSON: whole, escaped, the same for the same report, and what its schema says."""

import copy
import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest
import torch
from judge import convert
from safetensors.torch import save_file
from tiny import edit_json, make_llama, tensors

import mconv.verify
from mconv.cli.verify import _finite
from mconv.verify import chart, page
from mconv.verify.judge import Options, judge
from mconv.verify.report import as_json

pytestmark = pytest.mark.once

SCHEMA = json.loads((Path(mconv.verify.__file__).parent / "report.schema.json").read_text())
SHORT = {"length": 32}
ALL = ("pass", "fail", "digests", "digests-fail", "nan", "streamed", "two-hf", "bf16", "other-eps", "padded")


def changed(source, folder, **edits):
    """A copy of a model with some tensors edited."""
    made = make_llama(folder)
    held = tensors(source)
    for name, edit in edits.items():
        held[name.replace("__", ".")] = edit(held)
    save_file(held, made / "model.safetensors", metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of every kind, all of them real."""
    tmp = tmp_path_factory.mktemp("reports")
    hf = make_llama(tmp / "hf")
    gate, up = (f"model__layers__1__mlp__{name}_proj__weight" for name in ("gate", "up"))
    swapped = changed(hf, tmp / "swapped", **{
        gate: lambda t: t["model.layers.1.mlp.up_proj.weight"].clone(),
        up: lambda _: tensors(hf)["model.layers.1.mlp.gate_proj.weight"],
    })  # fmt: skip
    down = "model.layers.2.mlp.down_proj.weight"
    nan = changed(hf, tmp / "nan", model__layers__2__mlp__down_proj__weight=lambda t: t[down] * float("nan"))
    eps = make_llama(tmp / "eps")
    edit_json(eps / "config.json", rms_norm_eps=1e-3)
    rough = make_llama(tmp / "rough", dtype=torch.bfloat16)
    right, wrong = convert(hf, tmp / "right"), convert(swapped, tmp / "wrong")
    asked = {
        "pass": (right, {"generate": 2}),
        "fail": (wrong, {"generate": 2}),
        "digests": (right, {"proofs": "digests"}),
        "digests-fail": (wrong, {"proofs": "digests"}),
        "nan": (nan, {"proofs": "logits"}),
        "streamed": (right, {"streamed": True, "proofs": "logits"}),
        "two-hf": (swapped, {}),
        "bf16": (rough, {}),
        "other-eps": (eps, {}),
        "padded": (convert(hf, tmp / "ranks", format="mp_rank", tp=2), {"tp": 1, "pp": 1}),
    }
    found = {}
    for name, (other, options) in asked.items():
        lengths = {} if options.get("proofs") == "digests" else SHORT
        found[name] = judge(hf, other, Options(**lengths, **options))
    assert set(found) == set(ALL)
    return found


@pytest.fixture(scope="module")
def pages(reports):
    return {name: page.render(report) for name, report in reports.items()}


# ---- the schema ------------------------------------------------------------------------------------------------------
def strict(value, inside=False):
    """The schema with every field that it does not name refused: what is in a report must be documented."""
    if isinstance(value, list):
        return [strict(one, inside) for one in value]
    if not isinstance(value, dict):
        return value
    out = {name: one if name == "$defs" else strict(one, True) for name, one in value.items()}
    if inside and (value.get("type") == "object" and "properties" in value):
        out["unevaluatedProperties"] = False
    return out


def undocumented():
    """Of the two parts that share the top of a report only what lies in them is made strict."""
    whole = strict(SCHEMA) | {"unevaluatedProperties": False}
    open_parts = ("digests", "logits", "digests_alone")
    parts = {name: strict(one, name not in open_parts) for name, one in SCHEMA["$defs"].items()}
    for name in open_parts:
        parts[name].pop("unevaluatedProperties", None)
        parts[name]["properties"] = strict(SCHEMA["$defs"][name].get("properties", {}), True)
    return whole | {"$defs": parts}


def told(report):
    """What `--json` prints, read back."""
    return json.loads(json.dumps(_finite(as_json(report)), allow_nan=False))


@pytest.mark.parametrize("name", ALL)
def test_a_report_is_what_the_schema_says_and_nothing_else(reports, name):
    for schema in (SCHEMA, undocumented()):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(told(reports[name]))


def spoil(report, path, value):
    out = copy.deepcopy(report)
    *way, last = path
    place = out
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return out


@pytest.mark.parametrize(
    "name, path, value",
    [
        ("pass", ("schema",), 2),
        ("pass", ("max_abs_error",), None),
        ("pass", ("max_abs_error",), "0.1"),
        ("pass", ("error_by_position",), []),
        ("pass", ("verdicts", "logits"), "perhaps"),
        ("pass", ("generation", "agreement"), 1.5),
        ("fail", ("digests", "differences", 0, "how"), "dtype"),
        ("fail", ("diagnosis", "guesses", 0, "text"), None),
        ("fail", ("diagnosis", "alone"), None),
        ("digests", ("same",), None),
        ("digests", ("environment", "seconds"), "1 s"),
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_not_a_report(reports, name, path, value):
    spoiled = spoil(told(reports[name]), path, value)
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(spoiled))


@pytest.mark.parametrize("path", [("extra",), ("loss", "extra"), ("fail",), ("environment", "extra"), ("padding", "x")])
def test_a_field_that_nothing_documents_is_noticed(reports, path):
    spoiled = spoil(told(reports["pass"]), path, 1)
    assert list(jsonschema.Draft202012Validator(undocumented()).iter_errors(spoiled))


def fields(schema):
    """All names of fields in the schema."""
    if isinstance(schema, list):
        return set().union(*map(fields, schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if "properties" in schema and "if" not in schema.get("properties", {}) else set()
    return own.union(*map(fields, schema.values()))


def test_every_field_has_its_line_in_the_docs():
    text = (Path(__file__).parents[2] / "docs" / "verify-report.md").read_text()
    assert [name for name in sorted(fields(SCHEMA)) if f"`{name}`" not in text] == []


# ---- the page --------------------------------------------------------------------------------------------------------
class Reader(HTMLParser):
    """What a browser would see: text, open tags, and everything that it would fetch or run."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.outside, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.outside += [a for a in attrs if a[0] in ("src", "href", "srcset", "data") or a[0].startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_whole_and_needs_nothing_else(pages, reports, name):
    seen = Reader(pages[name])
    assert seen.open == [] and seen.outside == [] and len(seen.ids) == len(set(seen.ids))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(seen.tags)
    assert (
        "url(" not in pages[name] and "@import" not in pages[name] and "http" not in pages[name].replace("http-equiv", "")
    )
    verdict = "PASS" if reports[name]["passed"] else "FAIL"
    assert f"<h1>{verdict}</h1>" in pages[name] and page.GENERATOR in pages[name][:1024]
    assert page.render(reports[name]) == pages[name]
    assert seen.tags.count("svg") == seen.tags.count("desc")


def test_a_page_says_what_the_report_says(pages, reports):
    failed = reports["fail"]
    for text in (*failed["failures"][:2], failed["diagnosis"]["at"], "gate and up are swapped", "layer.1.mlp_in.weight",
                 failed["candidate"]["loaded_by"], page.number(failed["relative_max"]), failed["rows"][0]):  # fmt: skip
        assert text in pages["fail"], text
    assert 'class="departs"' in pages["fail"] and "Each layer by itself" in pages["fail"]
    assert pages["pass"].count(">within<") == 3 and "Why it fails" not in pages["pass"]
    assert "norm_epsilon" in pages["other-eps"] and "another function" in pages["other-eps"]
    assert "gate and up are swapped" in pages["digests-fail"] and "<svg" not in pages["digests-fail"]


def test_nan_is_seen(pages, reports):
    assert pages["nan"].count(">not finite<") == 3 and ">within<" not in pages["nan"] and 'class="off"' in pages["nan"]
    assert "nan" not in [tag.lower() for tag in Reader(pages["nan"]).tags]
    for shape in ("NaN", "inf"):
        assert f'cy="{shape.lower()}"' not in pages["nan"]
    again = page.render(told(reports["nan"]))  # null stands for NaN there
    assert again.count(">not finite<") == 3


HOSTILE = "<script>alert(1)</script>&\"'--><style>\x1b[31m\u202egpj.\udcff"


def test_names_are_only_text(reports):
    bad = copy.deepcopy(reports["fail"])
    bad["reference"]["name"] = bad["candidate"]["loaded_by"] = bad["digests"]["a"] = HOSTILE
    bad["digests"]["differences"][0].update(
        {
            "tensor": HOSTILE,
            "a": HOSTILE,
            "at": {HOSTILE: 1},
            "pieces": [HOSTILE],
            "of_pieces": 2,
        }
    )
    bad["digests"]["spec"] = {HOSTILE: [HOSTILE, None]}
    bad["failures"], bad["rows"] = [HOSTILE], [HOSTILE]
    bad["diagnosis"] |= {"at": HOSTILE, "lines": [HOSTILE]}
    bad["environment"]["machine"] = HOSTILE
    text = page.render(bad)
    text.encode("utf-8")
    seen = Reader(text)
    assert "script" not in seen.tags and seen.tags.count("style") == 1 and seen.open == [] and seen.outside == []
    assert not {"\x1b", "\u202e"} & set(text) and sum("alert(1)" in part for part in seen.text) > 5


def test_many_layers_and_many_tensors(reports):
    big = copy.deepcopy(reports["fail"])
    names = ["embed", *map(str, range(126)), "final_norm"]
    big["layers"] = [{"layer": name, "error": 1e-7 * 1.1**i} for i, name in enumerate(names)]
    big["digests"]["differences"] *= page.ROWS + 7
    text = page.render(big)
    assert text.count("<circle") >= 128 and "7 more" in text and text.count("layer.1.mlp_in.weight") < page.ROWS + 20


# ---- the picture -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [0.0] * 40,
        [1.0],
        [1e-320, 1e300],
        [math.nan, None, math.inf],
        [1e-7 * 1.1**i for i in range(128)],
        [5e-324],
    ],
    ids=["zero", "zeros", "one", "widest", "not finite", "many", "denormal"],
)
def test_every_point_lies_in_the_picture(values):
    found = chart.chart(
        [str(i) for i in range(len(values))], values, levels={"limit": 1e-4, "none": None, "nan": math.nan}
    )
    assert len(found.points) == len(values) and [level.label for level in found.levels] == ["limit"]
    for point in found.points:
        assert chart.LEFT <= point.x <= chart.RIGHT and 0 < point.y < chart.BOTTOM
    shown = [label.at for label in found.labels]
    assert shown == sorted(shown) and all(b - a >= chart.LABEL - 1 for a, b in pairwise(shown))
    assert 2 <= len(found.ticks) <= chart.TICKS + 1


def test_a_larger_error_is_higher_and_a_gap_is_no_line():
    found = chart.chart(list("abcdef"), [1e-6, 1e-3, math.nan, 0.0, 1e-2, 1e-1], levels={}, marked=1)
    heights = [point.y for point in found.points if point.kind == "dot"]
    assert heights == sorted(heights, reverse=True) and len(found.lines) == 2
    assert [point.kind for point in found.points][2:4] == ["off", "zero"] and found.points[1].marked


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "0"), (1.234e-5, "1.23e-5"), (1e10, "1e10"), (0.5, "0.5"), (math.nan, "NaN"), (None, "NaN"), (math.inf, "∞"),
     (-1.5e-7, "−1.5e-7")],
)  # fmt: skip
def test_numbers(value, text):
    assert page.number(value) == text


def test_a_share_is_all_only_if_it_is():
    assert page.percent(1.0) == "100.00 %" and page.percent(1 - 1e-9) == "99.99 %"
