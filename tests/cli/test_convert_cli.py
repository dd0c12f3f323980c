"""The conversion commands as a user types them: exit codes, one message, what is printed, what is written."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import edit_json, make_llama, same, tensors

from mconv.cli.app import COMMANDS, run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.engine import plan
from mconv.convert.engine.rewrite import rewrite

CONVERT = [name for name, (target, _) in COMMANDS.items() if "cli.convert" in target]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_llama(root / "hf", num_hidden_layers=2)
    for format in ("torch_dist", "mp_rank"):
        rewrite(plan.make(open_checkpoint(root / "hf"), root / format, format=format, tp=2, pp=2), step="test")
    return root


@pytest.fixture
def mconv(made, tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder, where HF, TD and MP stand for the checkpoints."""
    monkeypatch.chdir(tmp_path)
    names = {"HF": made / "hf", "TD": made / "torch_dist", "MP": made / "mp_rank"}

    def call(line):
        code = run([str(names.get(word, word)) for word in line.split()])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


WRONG = [
    ("inspect", "PATH is missing"),
    ("inspect nowhere", "nowhere"),
    ("inspect HF --frob", "--frob"),
    ("inspect MP --iteration 9", "iter_0000009"),
    ("inspect MP --iteration x", "x"),
    ("nonsense", "nonsense"),
    ("hf2meg", "give a model"),
    ("hf2meg HF --out o --tp 3", "tp can be 1, 2, 4"),
    ("hf2meg HF --out o --tp 0", "tp 0"),
    ("hf2meg HF --out o --tp two", "two"),
    ("hf2meg HF --out o --pp 3", "pp 3"),
    ("hf2meg HF --out o --vpp 2", "vpp 2"),
    ("hf2meg HF --out o --dtype int8", "int8"),
    ("hf2meg HF --out o --format zarr", "zarr"),
    ("hf2meg HF --out o --make-vocab-size-divisible-by 0", "multiple"),
    ("hf2meg HF --out o --size 7", "--size 7"),
    ("hf2meg MP --out o", "mconv reshard"),
    ("reshard", "this folder holds no Megatron checkpoint; give a path"),
    ("reshard HF --out o", "mconv hf2meg"),
    ("reshard MP --out o --tp -1", "tp -1"),
    ("reshard MP --out o --tp 0", "tp 0"),
    ("merge HF --out o", "mconv hf2meg"),
    ("meg2hf HF --out o", "mconv hf2meg"),
    ("meg2hf MP --out o --max-shard-size 0", "--max-shard-size"),
    ("meg2hf MP --out o --max-shard-size nan", "shard"),
    ("meg2hf MP --out o --max-shard-size inf", "shard"),
    ("meg2hf MP --out o --tokenizer nowhere", "nowhere"),
    ("meg2hf MP --out MP", "source"),
    ("hf2meg HF --out o --size abc", "abc"),
    ("hf2meg lama2 --size 7", "did you mean llama2"),
    ("hf2meg llama2 --out o", "needs a size; known sizes: 7, 13, 70"),
    ("hf2meg llama2 --size 7 --from HF --out o", "it should have 6.74"),
    ("hf2meg llama2 --size 8 --from HF --out o", "has no size '8'"),
    ("hf2meg mistral --offline --cache-dir nowhere", "hf download mistralai/Mistral-7B-v0.1"),
    ("hf2meg --from mistral --size 7 --offline --cache-dir nowhere", "hf download mistralai/Mistral-7B-v0.1"),
    (f"hf2meg HF --out {'x' * 300}", "xxx"),
]


@pytest.mark.parametrize("line, says", WRONG, ids=lambda v: v[:60])
def test_a_mistake_is_one_message_and_exit_code_2(mconv, tmp_path, line, says):
    code, out, err = mconv(line)
    assert code == 2 and says in out + err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line", ["hf2meg HF --out o --tp 4", "reshard TD --out o --tp 1", "merge MP --out o", "meg2hf TD --out o"]
)
def test_a_dry_run_writes_nothing_and_the_run_does_what_it_said(mconv, tmp_path, line):
    code, out, _ = mconv(f"{line} --dry-run")
    assert code == 0 and "nothing was written" in out and len(out.splitlines()) < 22 and not list(tmp_path.iterdir())
    listed = mconv(f"{line} --dry-run --tensors")[1]
    count = len(listed.splitlines()) - len(out.splitlines())
    said = json.loads(mconv(f"{line} --dry-run --json --tensors")[1])
    assert count == said["tensors"] == len(said["target_tensors"]) and not said["written"]
    code, done, err = mconv(line)
    assert code == 0 and f"{count} tensors" in done
    made = {str(p.relative_to(tmp_path / "o")): p.stat().st_size for p in (tmp_path / "o").rglob("*") if p.is_file()}
    assert made.keys() == said["files"].keys(), "the target tree is the one that was shown"
    for name, size in said["files"].items():
        assert size is None or size <= made[name] < size + 80_000, name
    code, _, err = mconv(line)
    assert code == 2 and "--overwrite" in err
    assert mconv(f"{line} --overwrite")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["o"]


def test_a_dry_run_on_a_small_disk_shows_the_plan_and_says_no(mconv, tmp_path, monkeypatch):
    monkeypatch.setattr("mconv.convert.engine.plan.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    for line in ("hf2meg HF --out o --dry-run", "hf2meg HF --out o"):
        code, out, err = mconv(line)
        assert code == 2 and "0.0 GB free" in err and not list(tmp_path.iterdir())
        assert ("release/" in out) == ("--dry-run" in line)


def test_a_model_of_the_cache_is_called_by_its_name(mconv, made, tmp_path, monkeypatch):
    """The Hub's cache has a folder by a commit's hash; what is made is called by the repository."""
    shutil.copytree(made / "hf", cached := tmp_path / "cache/models--acme--tiny/snapshots/0123abcd")
    (tmp_path / "cache/models--acme--tiny/refs").mkdir()
    (tmp_path / "cache/models--acme--tiny/refs/main").write_text(cached.name)
    code, out, err = mconv("hf2meg acme/tiny --offline --cache-dir cache")
    assert (code, err) == (0, "") and out.startswith("tiny-megatron: torch_dist")
    assert json.loads(mconv("inspect tiny-megatron --json")[1])["history"][0]["detail"]["from"] == "acme/tiny"


def test_many_files_are_one_line(mconv, tmp_path):
    make_llama(tmp_path / "m", num_hidden_layers=2, num_key_value_heads=8)
    out = mconv("hf2meg m --out o --tp 8 --pp 2 --format mp_rank --dry-run")[1].splitlines()
    assert sum("mp_rank_" in row and "model_optim_rng.pt" in row for row in out) == 6
    assert any("... 10 more" in row for row in out) and len(out) < 24


def test_the_result_as_json(mconv):
    code, out, err = mconv("hf2meg HF --out o --tp 2 --json")
    made = json.loads(out)
    assert (code, err, made["written"], made["layout"]) == (0, "", True, {"tp": 2, "pp": 1, "vpp": 1})
    assert made["flags"].startswith("Megatron-LM: --load o")


def test_the_whole_way_gives_back_every_bit(mconv, made, tmp_path):
    for line in ("hf2meg HF --out a --tp 2 --pp 2", "reshard a --out b --tp 4 --pp 1 --format mp_rank",
                 "merge b --out c", "meg2hf c --out d"):  # fmt: skip
        assert mconv(line)[0] == 0
    assert same(tensors(tmp_path / "d"), tensors(made / "hf"))
    history = json.loads(mconv("inspect d --json")[1])["history"]
    assert [step["step"] for step in history] == ["hf2meg", "reshard", "merge", "meg2hf"]


@pytest.mark.parametrize(
    "word, format, layout, padded",
    [
        ("HF", "hf", None, 151),
        ("TD", "torch_dist", {"tp": 2, "pp": 2, "vpp": 1}, 256),
        ("MP", "mp_rank", {"tp": 2, "pp": 2, "vpp": 1}, 256),
    ],
)
def test_inspect_says_the_right_numbers(mconv, made, word, format, layout, padded):
    code, out, err = mconv(f"inspect {word} --json --tensors")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert (facts["format"], facts["layout"], facts["vocab"]) == (format, layout, {"true": 151, "padded": padded})
    assert facts["parameters"] == sum(t.numel() for t in tensors(made / "hf").values())
    copies = 2 * 2 * 48 + 48 if format == "mp_rank" else 0  # tp ranks repeat the norms
    assert facts["bytes"] == 4 * (facts["parameters"] + 2 * (padded - 151) * 48 + copies)
    assert facts["dtype"] == "float32" and facts["spec"]["num_layers"] == 2
    assert len(facts["tensors"]) == facts["stored_tensors"]
    text = mconv(f"inspect {word}")[1]
    assert format in text and f"{facts['parameters']:,}" in text


def test_the_flags_that_megatron_would_not_restore_are_printed(mconv, tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
    make_llama(tmp_path / "m", num_hidden_layers=1, rms_norm_eps=1e-6, rope_parameters=rope)
    code, out, err = mconv("hf2meg m --out o --tp 2")
    assert code == 0 and "--norm-epsilon 1e-06" in out and "--use-rope-scaling" in out
    assert "--tensor-model-parallel-size 2" in out and "32" in err


@pytest.mark.parametrize("name", CONVERT)
def test_help_names_every_option(mconv, name):
    code, out, _ = mconv(f"{name} --help")
    assert code == 0 and "--json" in out if name == "inspect" else "--dry-run" in out and "--out" in out


def test_a_config_key_that_nobody_claims(mconv, tmp_path):
    make_llama(tmp_path / "m", num_hidden_layers=1)
    edit_json(tmp_path / "m/config.json", frobnicate=3)
    code, out, err = mconv("hf2meg m --out o")
    assert code == 2 and "frobnicate=3" in err and len(err.splitlines()) == 1 and not out
    assert not (tmp_path / "o").exists()


LIGHT = """
import sys
from mconv.cli.app import run
codes = []
for line in sys.argv[1:]:
    try:
        codes.append(run(line.split()))
    except ImportError:  # a command that is not there yet
        codes.append("absent")
heavy = {"torch", "numpy", "transformers", "safetensors", "megatron", "huggingface_hub"} & set(sys.modules)
print("CODES", codes, "HEAVY", sorted(heavy))
"""


def test_help_and_misuse_import_nothing_heavy(tmp_path):
    lines = [*(f"{name} --help" for name in CONVERT), "inspect", "hf2meg --frob", "reshard", "--version"]
    done = subprocess.run([sys.executable, "-c", LIGHT, *lines], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"CODES {[0] * len(CONVERT) + [2, 2, 2, 0]} HEAVY []", done.stderr[-500:]


PLANS = """\
hf2meg HF --out q --tp 2 --dry-run
hf2meg HF --out q --format mp_rank --tp 2 --dry-run --json --tensors
hf2meg HF --out q --emit megatron-bridge --dtype bf16 --dry-run
hf2meg OLD --out q --dry-run
meg2hf TD --out q --dry-run
meg2hf MP --out q --max-shard-size 0.0001 --dry-run
reshard TD --out q --tp 1 --dry-run
reshard MP --out q --format torch_dist --dry-run
merge TD --out q --dry-run
blend HF TD --out q --format mp_rank --dry-run
inspect HF
inspect OLD --tensors
inspect TD --json
inspect MP --tp 2
plan --load HF --mock-data --seq-length 8 --global-batch-size 1
"""
MISTAKES = """\
hf2meg HF --out q --tp 3
hf2meg HF --out HF
hf2meg absent
meg2hf HF
meg2hf TD --out q --dtype fp64
reshard MP --out q --pp 7
merge absent
verify HF absent
lora merge HF
lora export HF
blend HF absent
"""


def test_plans_inspection_and_mistakes_import_no_torch(made, tmp_path):
    """A plan is names, shapes and byte counts, of whatever format; torch would take longer than all of it."""
    shutil.copytree(made / "hf", tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(tensors(made / "hf"), tmp_path / "old" / "pytorch_model.bin")
    named = {"HF": made / "hf", "OLD": tmp_path / "old", "TD": made / "torch_dist", "MP": made / "mp_rank"}
    plans, mistakes = ([" ".join(str(named.get(word, word)) for word in line.split()) for line in text.splitlines()]
                       for text in (PLANS, MISTAKES))  # fmt: skip
    done = subprocess.run([sys.executable, "-c", LIGHT, *plans, *mistakes], capture_output=True, text=True, cwd=tmp_path)
    codes = [0] * len(plans) + [2] * len(mistakes)
    assert done.stdout.splitlines()[-1] == f"CODES {codes} HEAVY []", done.stderr[-2000:]


def test_the_process_exits_as_it_should(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mconv", "inspect", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("mconv: ") and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_flags_can_be_pasted_whatever_the_folder_is_called(mconv):
    code, out, _ = mconv("hf2meg HF --out my$model --dry-run")
    assert code == 0 and "--load 'my$model' " in out
