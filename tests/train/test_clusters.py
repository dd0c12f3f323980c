"""Jobs for clusters: every value stays literal, and each field does what it says."""

import subprocess
from pathlib import Path

import pytest
import yaml
from rendered import RUN, Noted, job, sbatch_words, written

from mconv.errors import ConfigError
from mconv.train.clusters import images, quoting, read
from mconv.train.clusters.limits import seconds
from mconv.train.clusters.targets import TARGETS

pytestmark = pytest.mark.once
FORMS = {
    "space": "a b", "quote": "it's", "double": 'a "b" c', "substitution": "$(touch pwned)", "backtick": "`touch pwned`",
    "variable": "${HOME}", "command": "x; touch pwned #", "unicode": "ü 日本 \u2028 \u00a0", "percent": "%j {{ x }}",
    "backslash": "a\\b", "newline": "a\ntouch pwned\n",
}  # fmt: skip
"""Texts that bash, sbatch or YAML would take for something else."""
TOGETHER = "; ".join(text for name, text in FORMS.items() if name not in ("newline", "backslash"))
NASTY = [pytest.param(text, id=name) for name, text in FORMS.items()]


@pytest.fixture
def noted(tmp_path):
    return Noted(tmp_path)


def planted(text, root):
    """A cluster and a run with the text in every field that a shell sees."""
    folder = f"{root}/{text}"
    cluster = {
        "chdir": f"{folder}/chdir", "venv": f"{folder}/venv", "python": f"{folder}/python", "modules": [f"m {text}"],
        "env": {"PLAIN": text, "SECOND": f"{text}{text}"}, "numactl": f"--opt={text}", "network_interface": text,
        "nccl_debug": "INFO", "hosts": [f"host{text}"], "job_name": f"name {text}",
    }  # fmt: skip
    return cluster, {**RUN, "save": f"{folder}/save"}


def prepared(cluster, noted):
    """Make what the planted fields name."""
    Path(cluster["chdir"]).mkdir(parents=True)
    noted.add(Path(cluster["python"]), 'env -0 > "$NOTED.env"\n')
    activate = Path(cluster["venv"]) / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ACTIVATED=1\n")


def check_call(noted, cluster, values, *, debug):
    """Hold that torch's agent was started with every value as it was given."""
    [call] = noted.calls("python")
    assert call[1:4] == ["-m", "torch.distributed.run", "--nnodes=1"]
    assert call[-4:] == ["--no-python", "bash", f"{values['save']}/launch/rank.sh", debug]
    assert [*noted.calls("numactl")[0][1:3]] == [cluster["numactl"], cluster["python"]]
    assert noted.calls("module") == [["module", "load", cluster["modules"][0]]]
    pairs = dict(line.partition("=")[::2] for line in noted.file.with_suffix(".env").read_text().split("\0") if line)
    assert {name: pairs[name] for name in cluster["env"]} == cluster["env"] and pairs["ACTIVATED"] == "1"
    assert pairs["NCCL_SOCKET_IFNAME"] == cluster["network_interface"] and pairs["PWD"] == cluster["chdir"]


@pytest.mark.parametrize("text", NASTY)
def test_values_are_literal_on_nodes(text, noted, tmp_path):
    """The rendered scripts run, with programs that note their words."""
    cluster, values = planted(text, tmp_path)
    prepared(cluster, noted)
    found, rendered = job("torchrun", cluster, values)
    written(found.folder, rendered.files)
    done = noted.run(found.folder / "start.sh")
    assert done.returncode == 0, done.stderr
    check_call(noted, cluster, values, debug=f"{values['save']}/debug/{cluster['job_name']}")
    assert f"--rdzv-endpoint={cluster['hosts'][0]}:29500" in noted.calls("python")[0]
    assert read.load.load((found.folder / "run.yaml").read_text())["save"] == values["save"]
    assert not [*tmp_path.rglob("pwned")] and not Path("pwned").exists()


@pytest.mark.parametrize("text", NASTY)
def test_values_are_literal_in_a_slurm_job(text, noted, tmp_path):
    """Its lines of sbatch are read by sbatch's rule, its body runs; what a line cannot hold is refused by name."""
    cluster, values = planted(text, tmp_path)
    named = dict.fromkeys(
        ("account", "partition", "qos", "reservation", "constraint", "nodelist", "exclude", "mem", "gres")
    )
    cluster |= {name: f"{name} {text}" for name in named} | {"sbatch_options": [f"--licenses={text}"]}
    if text in (FORMS["newline"], FORMS["backslash"]):
        with pytest.raises(ConfigError, match="line break" if "\n" in text else "backslash"):
            job("slurm", cluster, values)
        return
    prepared(cluster, noted)
    found, rendered = job("slurm", cluster, values)
    written(found.folder, rendered.files)
    lines = [line for line in rendered.files["job.sbatch"].split("\n") if line.startswith("#SBATCH")]
    words = [word for line in lines for word in sbatch_words(line)]
    assert {f"--{name}={name} {text}" for name in named} <= {*words} and len(words) == len(lines)
    folder = f"{values['save']}/slurm".replace("%", "%%")
    assert {f"--licenses={text}", f"--chdir={cluster['chdir']}", f"--output={folder}/%j.out"} <= {*words}
    done = noted.run(found.folder / "job.sbatch", SLURM_JOB_ID="5", SLURM_JOB_NODELIST="node[1-2]")
    assert done.returncode == 0, done.stderr
    check_call(noted, cluster, values, debug=f"{values['save']}/debug/5")
    assert "--rdzv-endpoint=node1:20005" in noted.calls("python")[0] and "--rdzv-id=5" in noted.calls("python")[0]
    assert noted.run(found.folder / "submit.sh").stdout == "submitted job 77\n"
    assert (found.folder / "jobs").read_text() == "77\n" and Path(values["save"], "slurm").is_dir()
    assert not [*tmp_path.rglob("pwned")]


CONTAINERS = {
    "docker": (("docker", {}), ["--gpus=all"]), "singularity": (("singularity", {}), ["exec", "--nv"]),
    "apptainer": (("apptainer", {}), ["exec", "--nv"]), "enroot": (("enroot", {}), ["start"]),
    "pyxis": (("slurm", {"container": "pyxis"}), ["--no-container-mount-home"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTAINERS)
def test_values_are_literal_in_a_container(kind, noted, tmp_path):
    (target, more), words = CONTAINERS[kind]
    text, bind = TOGETHER, f"{tmp_path}/{TOGETHER}"
    cluster = {**more, "image": f"image {text}", "image_file": f"file {text}", "binds": [f"{bind}:/w {text}"],
               "workdir": f"/w {text}", "env": {"A": text}, "chdir": str(tmp_path)}  # fmt: skip
    values = {**RUN, "save": "run"}
    if kind == "enroot":
        with pytest.raises(ConfigError, match="takes no spaces in a mount"):
            job(target, cluster, values)
        cluster |= {"binds": [f"{tmp_path}/x:/w"], "workdir": "/w"}
    found, rendered = job(target, cluster, values)
    written(found.folder, rendered.files)
    done = noted.run(found.folder / ("job.sbatch" if target == "slurm" else "start.sh"), SLURM_JOB_ID="5",
                     SLURM_JOB_NODELIST="x", SRUN="exit 0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    [call] = noted.calls("srun" if kind == "pyxis" else kind)
    image = cluster["image" if kind == "docker" else "image_file"]
    assert ({image, f"--container-image={image}"} & {*call}) and {*words} <= {*call}
    inside = cluster["workdir"]
    assert f"{inside}/run/launch/node.sh" in call and f"{inside}/run/debug/" in call[-1]
    assert [word for word in call if word.endswith(cluster["binds"][0])]
    assert not [*tmp_path.rglob("pwned")]


@pytest.mark.parametrize("text", NASTY)
def test_values_are_literal_in_kubernetes(text, tmp_path):
    cluster = {
        "image": f"i {text}", "volumes": [f"claim:/v {text}"], "namespace": f"n {text}", "instance_type": f"t {text}",
        "service_account": f"s {text}", "secret_env": {"KEY": f"wandb/k {text}"}, "job_name": "name",
        "env": {"PLAIN": text}, "nccl_debug": "INFO",
    }  # fmt: skip
    _, rendered = job("kubernetes", cluster, {**RUN, "save": f"/v {text}/save"}, folder=tmp_path)
    files, made = yaml.safe_load_all(rendered.files["job.yaml"])
    pod = made["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == f"i {text}" and pod["serviceAccountName"] == f"s {text}"
    assert made["metadata"]["namespace"] == files["metadata"]["namespace"] == f"n {text}"
    assert container["volumeMounts"][-1]["mountPath"] == f"/v {text}"
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "wandb", "key": f"k {text}"}
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": f"t {text}"}
    assert container["command"][-1].replace("$$", "$") == f"/v {text}/save/debug/name"  # $$ is what Kubernetes unescapes
    assert "$(" not in container["command"][-1].replace("$$", "")
    script = files["data"]["node.sh"].partition("mkdir")[0] + 'printf %s "$PLAIN"'
    run = subprocess.run(["bash", "-c", script, "x", *"abc"],
                         capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert run.stdout == text and not (tmp_path / "pwned").exists(), run.stderr
    assert read.load.load(files["data"]["run.yaml"])["save"] == f"/v {text}/save"


@pytest.mark.parametrize(
    "text", [TOGETHER, FORMS["newline"], FORMS["backslash"]], ids=["together", "newline", "backslash"]
)
def test_values_are_literal_in_the_image_script(text, noted, tmp_path):
    cluster = {
        "gpus_per_node": 1,
        "image": f"i{text}",
        "image_file": f"{tmp_path}/f{text}/x.sqsh",
        "registry": f"r{text}",
    }
    rendered = images.render(read.make(cluster))
    folder = written(tmp_path / "image", rendered.files)
    for words in (["build", f"dir {text}"], ["push"], ["import"]):
        (tmp_path / f"f{text}").mkdir(exist_ok=True, parents=True)
        Path(f"{cluster['image_file']}.part").touch()  # enroot would
        done = noted.run(folder / "image.sh", *words)
        assert done.returncode == 0, done.stderr
        call = noted.calls()[-1]
        assert any(word.endswith(f"i{text}") for word in call), call
    assert f"{cluster['image_file']}.part" in noted.calls("enroot")[0]
    assert not [*tmp_path.rglob("pwned")]
    with pytest.raises(ConfigError, match="base_image"):
        images.render(read.make({**cluster, "base_image": f"i {text}"}))


# ---- fields ----------------------------------------------------------------------------------------------------------
PLANNING = {"gpu", "gpu_memory", "tflops"}
"""Fields that only the plan reads: test_launch.py."""
OTHER = {
    "bool": True,
    "int": 3,
    "float": 3.0,
    "list[str]": ["--other=1"],
    "dict[str, str]": {"OTHER": "a/b"},
    "str": "other",
}
GIVEN = {
    "time": "2:00:00", "binds": ["/v:/v", "/a:/a"], "volumes": ["v:/v", "b:/b"], "port": 4000, "nccl_debug": "WARN",
    "chain": True, "container": "pyxis", "image_pull_policy": "Always", "shm_size": "1g", "instance_type": "p5.48xlarge",
    "min_nodes": 1, "max_nodes": 4, "efa_installer": "1.2.3", "aws_ofi_nccl": "1.2", "hosts": ["a", "b"],
    "chdir": "/other", "workdir": "/v/x", "base_image": "other:1", "registry": "other", "efa_per_node": 2,
}  # fmt: skip
"""Values other than a field's default, where a kind's own does not do."""
BASE = {
    "nodes": 2, "hosts": ["x", "y"], "time": "1:00:00", "image": "i", "image_file": "f", "volumes": ["v:/v"],
    "binds": ["/v:/v"], "efa_installer": "1.0", "workdir": "/v/w", "job_name": "name",
}  # fmt: skip


def texts(cluster):
    """All that is rendered of a cluster, for every target."""
    values, found = {**RUN, "save": "/v/run", "profile": "2", "profile_with": "nsys"}, set()
    for target in TARGETS:
        for container in ("none", "pyxis") if target == "slurm" else ("none",):
            given = {"container": container, **cluster}
            found |= {*job(target, given, values, folder=Path("/v/launch"))[1].files.values()}
    for container in ("none", "singularity"):
        found |= {*images.render(read.make({"gpus_per_node": 8, "container": container, **cluster})).files.values()}
    return found


@pytest.fixture(scope="module")
def base():
    return texts(BASE)


@pytest.mark.parametrize("name", sorted(read.KINDS.keys() - PLANNING))
def test_every_field_has_an_effect(name, base):
    kind = str(read.KINDS[name]).removeprefix("<class '").removesuffix("'>").removesuffix(" | None")
    assert texts({**BASE, name: GIVEN[name] if name in GIVEN else OTHER[kind]}) != base


WRONG = {
    "nodes: two": ("nodes is 'two'; it must be a whole number", {"nodes": "two"}),
    "typo": ("no field 'partion'; did you mean 'partition'?", {"partion": "x"}),
    "time": ("time is 'soon'; it must be minutes, HH:MM:SS", {"time": "soon"}),
    "signal": ("signal_seconds 300 is no less than time 5", {"time": "5", "signal_seconds": 300}),
    "chain": ("chain needs time", {"chain": True}),
    "gpus": ("gpus_per_node is not set", {"gpus_per_node": None}),
    "cpus": ("ranks_per_node is not set", {"gpus_per_node": 0}),
    "card": ("gpu is 'H9', whose memory is not known", {"gpu": "H9"}),
    "image": ("container is pyxis, which starts image_file", {"container": "pyxis"}),
    "bind": ("binds has 'x'; each is HOST:CONTAINER", {"binds": ["x"], "image": "i"}),
    "volume": ("volumes has 'x'; each is CLAIM:FOLDER", {"volumes": "x"}),
    "variable": ("env has '1X', which is no name of a variable", {"env": {"1X": "a"}}),
    "secret": ("env sets WANDB_API_KEY, a secret in a file that runs share", {"env": {"WANDB_API_KEY": "a"}}),
    "elastic": ("nodes 1 is not between min_nodes 2 and max_nodes None", {"min_nodes": 2}),
    "option": ("sbatch_options has 'x'; each is an option", {"sbatch_options": "x"}),
    "plugin": ("aws_ofi_nccl is built against the EFA installer's", {"aws_ofi_nccl": "1.1"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_refused_by_name(case):
    said, given = WRONG[case]
    with pytest.raises(ConfigError) as error:
        read.make({"gpus_per_node": 8, **given})
    assert said in str(error.value)


def test_a_written_file_reads_back_and_helps_with_every_field(tmp_path):
    given = {
        "nodes": 2,
        "gpus_per_node": 8,
        "env": {"A": "x: 1}", "B": "it's"},
        "binds": ["/a b:/c"],
        "mem": "0",
        "image": "i",
    }
    (tmp_path / "cluster.yaml").write_text(read.text(given))
    assert read.read_yaml(tmp_path / "cluster.yaml") == given
    assert read.make(given) and {*read.help_of()} == {*read.KINDS}
    (tmp_path / "flat.yaml").write_text("nodes: 2\n")
    with pytest.raises(ConfigError, match="has one key"):
        read.read_yaml(tmp_path / "flat.yaml")


def test_an_unset_variable_stops_the_rendering(tmp_path):
    found, _ = job("slurm", {}, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"submit\.sh cannot be rendered: 'output' is undefined"):
        quoting.render("submit.sh", {"job": found, "files": []})


def test_limits_are_slurms():
    """The forms of sbatch's manual: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on."""
    told = {"30": 1800, "1:30": 90, "01:00:00": 3600, "2-3": 183600, "1-0:30": 88200, "1-01:01:01": 90061, "x": None}
    assert {text: seconds(text) for text in told} == told
