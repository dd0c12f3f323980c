"""Config keys that no table claims stop, and pass where the user says that they are harmless."""

import json

import pytest
from tiny import edit_json, make_llama

from mconv.cli.app import run
from mconv.convert.checkpoint.open import open_checkpoint
from mconv.convert.folders import manifest
from mconv.convert.folders.ignored import ignored, joined, recorded
from mconv.convert.spelling.params import passed_over, read
from mconv.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A LLaMA whose config.json has a key that nobody has heard of."""
    made = make_llama(tmp_path / "hf")
    edit_json(made / "config.json", novelty=3)
    return made


def test_an_unknown_key_stops_and_passes_by_name(folder, tmp_path, capsys):
    out = tmp_path / "meg"
    assert run(["hf2meg", str(folder), "--out", str(out)]) == 2
    assert "--ignore-config-key novelty" in capsys.readouterr().err
    assert not out.exists()
    assert run(["hf2meg", str(folder), "--out", str(out), "--ignore-config-key", "novelty"]) == 0
    assert manifest.read(out / "release")["ignored"] == {"config_keys": {"novelty": 3}}


def test_what_was_ignored_once_is_kept_along_the_way(folder, tmp_path):
    steps = [
        ["hf2meg", str(folder), "--out", str(tmp_path / "meg"), "--ignore-config-key", "novelty"],
        ["reshard", str(tmp_path / "meg"), "--out", str(tmp_path / "tp2"), "--tp", "2"],
        ["meg2hf", str(tmp_path / "tp2"), "--out", str(tmp_path / "back")],
        ["hf2meg", str(tmp_path / "back"), "--out", str(tmp_path / "again")],
        ["verify", str(folder), str(tmp_path / "again"), "--digests", "--ignore-config-key", "novelty"],
    ]
    assert [run(step) for step in steps] == [0] * len(steps)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["novelty"] == 3
    assert manifest.read(tmp_path / "again" / "release")["ignored"] == {"config_keys": {"novelty": 3}}


def test_a_claimed_key_cannot_be_ignored(folder, tmp_path, capsys):
    edit_json(folder / "config.json", hidden_act="gelu", novelty=None)
    asked = ["hf2meg", str(folder), "--out", str(tmp_path / "meg"), "--ignore-config-key"]
    assert run([*asked, "hidden_act"]) == 2
    edit_json(folder / "config.json", hidden_act="silu")
    assert run([*asked, "hidden_act"]) == 2
    assert "table claims that key" in capsys.readouterr().err


def test_names_are_values():
    names = ignored(args=["--moe-x", "y_z"], config_keys=["a"])
    assert names.to_dict() == {"args": ["moe_x", "y_z"], "config_keys": ["a"]}
    assert names | names == names
    assert recorded({"ignored": {"args": {"b": 1}}}) == ignored(args=["b"])
    assert joined({"args": {"a": 1}}, {"args": {"a": 2, "b": 3}}, {"config_keys": {}}) == {"args": {"a": 2, "b": 3}}


def test_a_claimed_key_that_is_refused_says_that_no_flag_helps(folder, tmp_path, capsys):
    edit_json(folder / "config.json", hidden_act="gelu")
    asked = ["hf2meg", str(folder), "--out", str(tmp_path / "meg"), "--ignore-config-key", "novelty"]
    assert run([*asked, "--ignore-config-key", "hidden_act"]) == 2
    said = capsys.readouterr().err
    assert f"{folder}/config.json: hidden_act is 'gelu'" in said and "does not let it pass" in said


def test_the_manifest_lets_pass_only_what_it_recorded(folder):
    """A key by the same name with another value is another question."""
    (folder / manifest.NAME).write_text(json.dumps({"ignored": {"config_keys": {"novelty": 3}}}))
    assert open_checkpoint(folder).ignored == {"config_keys": {"novelty": 3}}
    edit_json(folder / "config.json", novelty=4)
    with pytest.raises(ConfigError, match="does not know novelty=4"):
        open_checkpoint(folder)


def test_a_setting_of_rope_stays_in_a_config_that_is_written_anew(tmp_path):
    made = make_llama(tmp_path / "hf", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    edit_json(made / "config.json", rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0, "novelty": 5})
    out = ["--ignore-config-key", "rope_scaling.novelty"]
    assert run(["hf2meg", str(made), "--out", str(tmp_path / "meg"), "--dtype", "bf16", *out]) == 0
    assert run(["meg2hf", str(tmp_path / "meg"), "--out", str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rope_scaling"]["novelty"] == 5
    assert open_checkpoint(tmp_path / "back").ignored == {"config_keys": {"rope_scaling.novelty": 5}}


def test_a_key_is_shown_as_it_can_be_typed(folder):
    """A config comes from elsewhere: what its keys have in them is not pasted into a shell."""
    edit_json(folder / "config.json", **{"a; b": 1, "c\n" * 90: 2})
    with pytest.raises(ConfigError, match="--ignore-config-key 'a; b'") as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_a_key_of_params_json_passes_by_name_too(tmp_path):
    params = {"dim": 48, "n_layers": 1, "n_heads": 8, "norm_eps": 1e-5, "novelty": 3}
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(ConfigError, match=r"mconv does not know novelty=3.*--ignore-config-key novelty"):
        read(tmp_path)
    assert read(tmp_path, ["novelty"]).hidden_size == 48
    assert passed_over(tmp_path, ["novelty", "not_there"]) == {"novelty": 3}
    with pytest.raises(ConfigError, match="--ignore-config-key n_layers, but the table claims that key"):
        read(tmp_path, ["n_layers"])


@pytest.mark.parametrize("value", [{}, [], "", "1", 1.5, True])
def test_a_number_of_params_json_is_a_number(tmp_path, value):
    params = {"dim": 48, "n_layers": value, "n_heads": 8, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params))
    with pytest.raises(ConfigError, match=r"n_layers is .*, not int"):
        read(tmp_path)
