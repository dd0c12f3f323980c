"""Blends through the whole engine: what comes out is what merging the Hugging Face tensors one by one gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from blends import merged as merge_slabs
from blends import run as run_recipe
from blends import scaled_ulps, tensors_of
from interrupts import stop_after
from safetensors.torch import load_file, save_file
from test_blend_golden import EXACT, GOLDEN, SUMS
from tiny import make_llama, make_model, same, tensors

from mconv.cli.app import run
from mconv.convert.blend import models as blended
from mconv.convert.blend import recipe, source
from mconv.convert.blend.request import Place, Request
from mconv.convert.blend.short import document
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite
from mconv.convert.sources import read

GOLDENS = sorted(path.parent.name for path in GOLDEN.glob("*/merge.yaml"))
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 64}
CASES = {
    "linear": {"weights": "0.7,0.5,0.2"},
    "ties": {"weights": "0.6,0.4", "base": "base", "parameters": {"density": 0.4}},
    "della": {"weights": "0.6,0.4", "base": "base", "parameters": {"density": 0.5}},
    "nuslerp": {"weights": "0.6,0.4", "base": "base", "parameters": {"nuslerp_flatten": "false"}},
}


def request_of(folders, method, **options):
    """Return the request of a blend of folders by their names."""
    return Request(
        document=document([folder.name for folder in folders], method, **options),
        places={folder.name: Place(folder) for folder in folders},
    )


def blend(request, out, **options):
    """Write a blend and return its tensors, exported to Hugging Face if need be."""
    rewrite(plan.make(blended.model_of(request), out, **{"format": "hf", **options}), step="blend")
    return tensors(out)


def one_by_one(request, folders):
    """Return the blend of whole Hugging Face tensors, each by itself."""
    files = {one: tensors(folders[str(one)]) for one in request.recipe.models}
    made = blended.model_of(request).source
    return {
        tensor.member.key: merge_slabs(
            request.recipe.method.name, made.merge(tensor), [files[name][tensor.member.key] for name, _ in tensor.inputs]
        )
        for group in made.tensors_of.values()
        for tensor in group
    }


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three models of one architecture: folder by name."""
    root = tmp_path_factory.mktemp("three")
    return {name: make_llama(root / name, **SMALL, seed=seed) for seed, name in enumerate(("base", "a", "b"))}


@pytest.fixture(autouse=True)
def short_slabs(monkeypatch):
    """Cut tensors of a few thousand elements into many slabs."""
    monkeypatch.setattr(read, "SLAB_BYTES", 2048)
    monkeypatch.setattr(source, "RUN", 300)


# ---- mergekit's ------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden merges are not beside this checkout")
@pytest.mark.parametrize("case", GOLDENS)
def test_golden_merges_by_the_command_line(case, tmp_path, monkeypatch):
    """To Hugging Face, and to Megatron at tp 2 and back: mergekit's numbers, or ours where it rounds more."""
    monkeypatch.chdir(GOLDEN / case)
    out, meg, back = tmp_path / "hf", tmp_path / "meg", tmp_path / "back"
    assert run(["blend", "merge.yaml", "--out", str(out), "--seed", "42"]) == 0
    megatron = ["--format", "torch_dist", "--tp", "2"]
    assert run(["blend", "merge.yaml", "--out", str(meg), "--seed", "42", *megatron]) == 0
    assert run(["meg2hf", str(meg), "--out", str(back)]) == 0
    found, expected = tensors(out), load_file(GOLDEN / case / "expected.safetensors")
    assert same(found, tensors(back)) and found.keys() == expected.keys()
    if case in EXACT:
        assert same(found, expected)
    told = recipe.read(GOLDEN / case / "merge.yaml")
    files = tensors_of(told, GOLDEN / case)
    assert same(found, run_recipe(told, files, 2, seed=42))
    for name in expected if case in SUMS else ():
        assert scaled_ulps(found[name], expected[name], [one[name] for one in files.values()]) <= SUMS[case], name
    assert run(["verify", str(out)]) == 0 and run(["verify", str(meg)]) == 0


# ---- fused and unfused -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "model, method",
    [
        *(("llama-gqa", method) for method in CASES),
        *((model, "della") for model in ("falcon-40b", "qwen3-biases", "gpt2-tied")),
    ],
)
def test_statistics_are_of_hugging_face_tensors(model, method, tmp_path):
    depth = {"n_layer" if "gpt2" in model else "num_hidden_layers": 1}
    names = enumerate(("base", "a", "b"))
    folders = {name: make_model(model, tmp_path / name, seed=seed, **depth) for seed, name in names}
    request = request_of(list(folders.values()), method, **CASES[method])
    wanted = one_by_one(request, folders)
    assert same(blend(request, tmp_path / "out"), wanted)
    rewrite(plan.make(blended.model_of(request), tmp_path / "meg", format="mp_rank", tp=2), step="blend")
    assert run(["meg2hf", str(tmp_path / "meg"), "--out", str(tmp_path / "back")]) == 0
    assert same(tensors(tmp_path / "back"), wanted)


def test_models_of_any_format_and_layout(three, tmp_path):
    """Fused q, k, v and gate, up, other orders of rows, stacked layers: the same bits as of Hugging Face folders."""
    made = {"base": ["--tp", "2"], "a": ["--format", "mp_rank", "--pp", "2"],
            "b": ["--format", "mp_rank", "--dialect", "megatron-llm", "--tp", "4"]}  # fmt: skip
    mixed = {name: tmp_path / name for name in made}
    for name, options in made.items():
        assert run(["hf2meg", str(three[name]), "--out", str(mixed[name]), *options]) == 0
    request = request_of(list(three.values()), "della", **CASES["della"])
    wanted = one_by_one(request, three)
    assert same(blend(request_of(list(mixed.values()), "della", **CASES["della"]), tmp_path / "out"), wanted)


def test_statistics_are_taken_once_for_each_tensor(three, tmp_path, monkeypatch):
    made = []
    kernel = source.Blend.kernel
    monkeypatch.setattr(
        source.Blend, "kernel", lambda self, one, *of: made.append(one.member.key) or kernel(self, one, *of)
    )
    found = blend(request_of(list(three.values()), "ties", **CASES["ties"]), tmp_path / "out", format="hf")
    assert sorted(made) == sorted(found)


def test_a_plan_counts_the_memory_of_all_models(three, tmp_path):
    folders = list(three.values())
    made = [blended.model_of(request_of(folders[:count], "linear")) for count in (2, 3)]
    two, more = (plan.make(model, tmp_path / "out", format="hf") for model in made)
    one = plan.make(open_checkpoint(three["a"]), tmp_path / "out", format="hf")
    assert one.peak_bytes < two.peak_bytes < more.peak_bytes


@pytest.mark.parametrize("method", ["linear", "ties", "della"])
def test_statistics_count_as_progress(three, tmp_path, method):
    """Each byte of the result counts twice: while its statistics are taken, and when it is written."""
    made = plan.make(
        blended.model_of(request_of(list(three.values()), method, **CASES[method])), tmp_path / "out", format="hf"
    )
    told = []
    rewrite(made, step="blend", progress=told.append)
    assert sum(told) == 2 * made.nbytes and min(told) >= 0 and len(told) > 60


def test_layers_of_several_models(three, tmp_path, monkeypatch):
    """Slices: repeated layers, and layers that come from elsewhere."""
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: passthrough\nslices:\n"
        f"  - sources: [{{model: {three['a']}, layer_range: [0, 2]}}]\n"
        f"  - sources: [{{model: {three['b']}, layer_range: [1, 2]}}]\n"
        f"  - sources: [{{model: {three['b']}, layer_range: [1, 2]}}]\n"
    )
    assert run(["blend", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 0
    found, a, b = tensors(tmp_path / "out"), tensors(three["a"]), tensors(three["b"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    for layer, (model, own) in enumerate([(a, 0), (a, 1), (b, 1), (b, 1)]):
        for name in (name for name in model if f".layers.{own}." in name):
            assert torch.equal(found[name.replace(f".layers.{own}.", f".layers.{layer}.")], model[name])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"])
    assert run(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("dtype, kind", [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)])
def test_the_result_in_another_dtype(three, dtype, kind, tmp_path):
    folders = [str(three["a"]), str(three["b"])]
    assert run(["blend", *folders, "--dtype", dtype, "--out", str(tmp_path / "out")]) == 0
    models = [tensors(three[name]) for name in "ab"]
    for name, found in tensors(tmp_path / "out").items():
        assert torch.equal(found, ((models[0][name] + models[1][name]) / 2).to(kind)), name
    assert run(["verify", str(tmp_path / "out")]) == 0


# ---- a run's own checkpoints -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A root with three iterations, and their models."""
    root = tmp_path_factory.mktemp("run")
    models = {n: make_llama(root / f"hf{n}", **SMALL, seed=n) for n in (10, 20, 30)}
    for n, folder in models.items():
        assert (
            run(["hf2meg", str(folder), "--out", str(root / "run"), "--tp", "2", "--iteration", str(n), "--overwrite"])
            == 0
        )
    return root / "run", {n: tensors(folder) for n, folder in models.items()}


@pytest.mark.parametrize(
    "options, weights",
    [
        (["--last", "2"], {20: 1, 30: 1}),
        (["--iterations", "10,30", "--weights", "0.25,0.5"], {10: 0.25, 30: 0.5}),
        (["--iterations", "all", "--weights", "linear"], {10: 1, 20: 2, 30: 3}),
        (["--last", "3", "--weights", "exponential"], {10: 1, 20: 2, 30: 4}),
    ],
)
def test_iterations_of_a_run(a_run, options, weights, tmp_path):
    folder, models = a_run
    assert run(["blend", str(folder), *options, "--out", str(tmp_path / "out")]) == 0
    for name, found in tensors(tmp_path / "out").items():
        wanted = sum(models[n][name].double() * w for n, w in weights.items()) / sum(weights.values())
        assert torch.allclose(found.double(), wanted, rtol=1e-6, atol=1e-7), name
    kept = json.loads((tmp_path / "out" / "mconv.json").read_text())["blend"]
    listed = {one["model"]: one["parameters"]["weight"] for one in kept["recipe"]["models"]}
    assert listed == {f"run/iter_{n:07d}": float(w) for n, w in weights.items()}


# ---- interrupted, changed, refused -----------------------------------------------------------------------------------
def test_an_interrupted_blend_is_continued(three, tmp_path, monkeypatch):
    """To the same bytes and the same manifest as one that was not: the digests of what was read before are there, too."""
    request = request_of(list(three.values()), "ties", **CASES["ties"])
    blend(request, tmp_path / "whole" / "out")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 60)
        blend(request, tmp_path / "out")
    assert list(tmp_path.glob(".mconv-partial-*")) and not (tmp_path / "out").exists()
    blend(request, tmp_path / "out", resume=True)
    kept = [json.loads((folder / "out" / "mconv.json").read_text())["blend"] for folder in (tmp_path, tmp_path / "whole")]
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "whole" / "out")) and kept[0] == kept[1]


def test_a_model_that_changes_while_it_is_read(three, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(three["a"], tmp_path / "a")
    kernel = source.Blend.kernel

    def touching(self, one, *of):
        if one.member.key.endswith("1.mlp.up_proj.weight"):
            (copy / "model.safetensors").touch()
        return kernel(self, one, *of)

    monkeypatch.setattr(source.Blend, "kernel", touching)
    assert run(["blend", str(copy), str(three["b"]), "--out", str(tmp_path / "out")]) == 2
    assert "model.safetensors has changed while it was read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_a_checkpoint_leaves_open_is_said_by_options_and_kept_for_the_judge(three, tmp_path, capsys):
    """A checkpoint of padded vocabulary whose args say no true size, beside a Hugging Face folder."""
    vague, out = tmp_path / "vague", tmp_path / "out"
    assert run(["hf2meg", str(three["a"]), "--out", str(vague), "--format", "mp_rank"]) == 0
    (vague / "release" / "mconv.json").unlink()
    shutil.rmtree(vague / "release" / "hf")
    (file,) = vague.rglob("*.pt")
    held = torch.load(file, weights_only=False)
    size, held["args"].vocab_size = held["args"].vocab_size, None
    torch.save(held, file)
    argv = ["blend", str(vague), str(three["b"]), "--out", str(out)]
    assert run(argv) == 2 and "--vocab-size" in capsys.readouterr().err
    assert run([*argv, "--vocab-size", str(size)]) == 0
    wanted = blend(request_of([three["a"], three["b"]], "linear"), tmp_path / "wanted")
    assert same(tensors(out), wanted) and run(["verify", str(out)]) == 0
    assert run(["blend", *map(str, three.values()), "--vocab-size", "9", "--out", str(tmp_path / "no")]) == 2
    assert "--vocab-size is for Megatron checkpoints, and none of the models is one" in capsys.readouterr().err


def different(three, tmp_path, **config):
    return make_llama(tmp_path / "other", **{**SMALL, **config})


ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}


@pytest.mark.parametrize(
    "config, said",
    [
        ({"vocab_size": 160}, ["vocabulary is 151 in", "and 160 in", "mconv resize"]),
        ({"hidden_size": 32, "num_attention_heads": 8}, ["hidden_size is 48", "and 32"]),
        (ROPE, ["rope differs: base is 10000.0 and 500000.0", "--allow-different rope"]),
        ({"rms_norm_eps": 1e-6}, ["norm epsilon is 1e-05", "and 1e-06", "--allow-different norm-epsilon"]),
        ({"max_position_embeddings": 128}, ["context length is 64", "--allow-different context"]),
        ({"num_hidden_layers": 3}, ["a 2, other 3"]),
        ({"tie_word_embeddings": True}, ["tied embeddings"]),
    ],
)
def test_models_that_differ(three, config, said, tmp_path, capsys):
    other = different(three, tmp_path, **config)
    assert run(["blend", str(three["a"]), str(other), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert all(words in err for words in said), err
    assert not (tmp_path / "out").exists()


def test_what_may_differ_is_taken_from_the_first(three, tmp_path):
    other = different(three, tmp_path, **ROPE)
    argv = ["blend", str(three["a"]), str(other), "--allow-different", "rope", "--out", str(tmp_path / "out")]
    assert run(argv) == 0 and run(["verify", str(tmp_path / "out")]) == 0
    theta = [
        json.loads((folder / "config.json").read_text())["rope_parameters"] for folder in (three["a"], tmp_path / "out")
    ]
    assert theta[0] == theta[1]


@pytest.mark.parametrize(
    "argv, said",
    [
        ("A", "is one model"),
        ("A A", "is there twice"),
        ("A nowhere", "nowhere"),
        ("A B --method nothing", "is not one of linear"),
        ("A B --method ties", "name it with --base"),
        ("A B --base BASE --method ties", "needs --weights: 2"),
        ("A B --weights 1", "1 for 2 models"),
        ("A B --weights x,y", "numbers with commas"),
        ("A B --weights 1,-1", "sum to nothing"),
        ("A B --weights 0,0 --set normalize=false", "sum to nothing"),
        ("A B --method slerp", "needs --t"),
        ("A B --method slerp --t 0.5 --weights 1,2", "slerp has no weights"),
        ("A B --set nothing", "NAME=VALUE was expected"),
        ("A B --set nothing=1", "linear has no parameter 'nothing'"),
        ("A B --last 2", "name that run alone"),
        ("A B --out A", "a model of the blend"),
        ("A B --out A/inner --overwrite", "a model of the blend"),
        ("RECIPE --t 0.4", "put --t into it"),
        ("UNION", "that lists its tokens"),
        ("TEMPLATE", "is neither `auto` nor a template"),
        ("REVISION", "a revision is not looked up"),
        ("KEY", "unknown key"),
        ("A ADAPTER", "is an adapter, not a model"),
    ],
)
def test_what_is_refused(three, argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = f"models:\n  - model: {three['a']}\n  - model: {three['b']}\nmerge_method: karcher\n"
    written = {
        "RECIPE": "",
        "UNION": "tokenizer_source: union\n",
        "TEMPLATE": "chat_template: chatml\n",
        "KEY": "key: 1\n",
    }
    for name, more in written.items():
        Path(f"{name}.yaml").write_text(whole + more)
    Path("REVISION.yaml").write_text(whole.replace(str(three["b"]), "org/name@main"))
    Path("ADAPTER").mkdir()
    Path("ADAPTER/adapter_config.json").write_text("{}")
    named = {"A": str(three["a"]), "B": str(three["b"]), "BASE": str(three["base"])}
    named |= {path.stem: path.name for path in Path().glob("*.yaml")}
    words = [named.get(word, word.replace("A/", f"{three['a']}/")) for word in argv.split()]
    before = sorted(three["a"].iterdir())
    assert run(["blend", *words, *([] if "--out" in words else ["--out", "out"])]) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists() and sorted(three["a"].iterdir()) == before


# ---- judged by its recipe --------------------------------------------------------------------------------------------
def test_a_model_that_has_changed_since_is_no_judge(three, tmp_path, capsys):
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in three.items()}
    blend(request_of(list(copies.values()), "ties", **CASES["ties"]), tmp_path / "out")
    changed = tensors(copies["a"])
    changed["model.norm.weight"] = changed["model.norm.weight"] + 1
    save_file(changed, copies["a"] / "model.safetensors", metadata={"format": "pt"})
    assert run(["verify", str(tmp_path / "out")]) == 2
    assert "1 tensors (final_norm.weight) have changed since" in capsys.readouterr().err
    shutil.rmtree(copies["b"])
    assert run(["verify", str(tmp_path / "out")]) == 2 and "is not there any more" in capsys.readouterr().err


def test_some_tensors_are_looked_at(three, tmp_path, capsys):
    blend(request_of(list(three.values()), "ties", **CASES["ties"]), tmp_path / "out")
    assert run(["verify", str(tmp_path / "out"), "--sample", "4"]) == 0
    assert "4 of 21 tensors" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "out"), "--sample", "4", "--record"]) == 2
    assert "which a sample is not" in capsys.readouterr().err
    assert run(["verify", str(tmp_path / "out"), "--record"]) == 0
    assert json.loads((tmp_path / "out" / "mconv.json").read_text())["verified"][0]["digests"] == "pass"
    assert run(["verify", str(three["a"]), str(three["b"]), "--sample", "4"]) == 2
    assert run(["verify", str(tmp_path / "out"), "--logits"]) == 2
