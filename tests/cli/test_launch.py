"""`mconv launch`: the guides' own submit files, what is refused before a queue, a chain of jobs, and following them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from rendered import RUN, Noted, job, path_without, written

from mconv.cli import foreign_launch
from mconv.cli.app import run
from mconv.errors import ConfigError
from mconv.train.clusters import followed, images, prepare, read
from mconv.train.clusters.targets import TARGETS
from mconv.train.config import TrainConfig, aliases, make, read_yaml
from mconv.train.launch import chain

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "examples" / "clusters"
GUIDES = {
    "cineca": ("slurm", "cineca/run.yaml", "cineca/cluster.yaml", {}, "tp 1 x pp 1 x dp 4, 1 micro batches"),
    "aws-slurm": ("slurm", "aws/run.yaml", "aws/slurm.yaml", {}, "tp 4 x pp 2 x dp 2, 144 micro batches"),
    "aws-kubernetes": ("kubernetes", "aws/run.yaml", "aws/kubernetes.yaml", {"tp": 8, "pp": 1},
                       "tp 8 x pp 1 x dp 1, 288 micro batches"),
    "swissai-8b": ("slurm", "swissai/llama3-8b.yaml", "swissai/cluster.yaml", {"nodes": 16},
                   "16 x 4 ranks: tp 1 x pp 1 x dp 64"),
    "swissai-70b": ("slurm", "swissai/llama3-70b.yaml", "swissai/cluster.yaml", {}, "tp 4 x pp 8 x dp 4, 256 micro"),
    "snakmodel": ("docker", "snakmodel/run.yaml", "snakmodel/cluster.yaml", {}, "tp 4 x pp 1 x dp 1, 512 micro batches"),
    "epfllm": ("torchrun", "epfllm/run.yaml", "epfllm/cluster.yaml", {}, "tp 4 x pp 1 x dp 4, 250 micro batches"),
}  # fmt: skip
"""Example -> target, the run's file, the cluster's, fields that are set over them, and what the plan finds."""
LOADED = {"load": None, "finetune": None, "preset": "llama2-7b", "init": "random"}
"""Stand-in for a checkpoint that is on a cluster alone."""
SAME = ("run.yaml", "launch.json")
"""Files that are not kept: the run again, and what follows from the others."""
MISSING = "shellcheck and hadolint come with mconv[test]"


def guide(name):
    """Return the cluster, the run's fields and the files of an example."""
    target, config, cluster, given, _ = GUIDES[name]
    values = {**read_yaml(CLUSTERS / config), **{name: value for name, value in given.items() if name != "nodes"}}
    site = read.read_yaml(CLUSTERS / cluster) | {name: value for name, value in given.items() if name == "nodes"}
    wanted = prepare.Wanted(
        target=target, cluster=site, values=values,
        folder=Path("/fsx/launch") if target == "kubernetes" else None,
    )  # fmt: skip
    found = prepare.cluster_of(wanted)
    made = prepare.job_of(wanted, found, iterations=values.get("train_iters"))
    files = {name: text for name, text in TARGETS[target].render(made).files.items() if name not in SAME}
    return found, values, {**files, **(images.render(found).files if target == "kubernetes" else {})}


@pytest.mark.parametrize("name", GUIDES)
def test_the_guides_are_rendered_as_the_examples_say(name):
    """Golden files: MCONV_WRITE=1 writes them anew."""
    files = guide(name)[2]
    folder = CLUSTERS / "rendered" / name
    if os.environ.get("MCONV_WRITE"):
        shutil.rmtree(folder, ignore_errors=True)
        written(folder, files)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files


@pytest.mark.parametrize("name", GUIDES)
def test_the_guides_can_run_on_their_clusters(name, monkeypatch):
    """They are planned as `mconv launch` plans them: layout, memory of the card, every number of nodes."""
    monkeypatch.setattr(prepare, "check_folders", lambda config: None)  # of another machine
    found, values, _ = guide(name)
    values = {**values, **(LOADED if values.get("load") else {}), "mock_data": True, "data": None, "split": None}
    values |= dict.fromkeys(("eval_interval", "eval_iters"))
    plan = prepare.planned(
        found, make({key: one for key, one in values.items() if one is not None}), tokens_per_second=None
    )
    assert GUIDES[name][-1] in next(prepare.notes(found, plan))


def test_every_script_passes_shellcheck():
    if not (program := tool("shellcheck")):
        pytest.skip(MISSING)
    scripts = [path for path in sorted(CLUSTERS.rglob("*")) if path.suffix in (".sh", ".sbatch")]
    done = subprocess.run([program, "--shell=bash", *scripts], capture_output=True, text=True)
    assert len(scripts) > 15 and done.returncode == 0, done.stdout


def test_the_containerfiles_pass_hadolint():
    if not (program := tool("hadolint")):
        pytest.skip(MISSING)
    files = [*CLUSTERS.rglob("Containerfile"), ROOT / "containers" / "Containerfile"]
    done = subprocess.run([program, *files], capture_output=True, text=True)
    assert len(files) == 2 and done.returncode == 0, done.stdout


def rows():
    """The tables of docs/launch.md on the guides' lines: guide, what it is rendered to."""
    page = (ROOT / "docs" / "launch.md").read_text().partition("## From the guides' files")[2]
    for section in page.split("\n### ")[1:]:
        name, _, body = section.partition("\n")
        for line in body.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            if line.startswith("| ") and len(cells) == 3 and cells[2].startswith("`"):
                yield name, cells[2].strip("` |")


def test_the_page_says_what_the_guides_lines_become():
    told = [*rows()]
    assert len(told) > 40 and {name for name, _ in told} == {*GUIDES} - {"swissai-8b"}
    files = {name: "\n".join(path.read_text() for path in (CLUSTERS / "rendered" / name).iterdir()) for name in GUIDES}
    assert [row for row in told if row[1] not in files[row[0]]] == []


def tool(name):
    """Return a program beside this Python, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def closed(schema):
    """Return a schema that allows no key beside those that it names, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return (
        {**found, "additionalProperties": False}
        if isinstance(found.get("properties"), dict) and "type" in found
        else found
    )


SCHEMA = closed(json.loads((ROOT / "tests" / "train" / "pytorchjob_schema.json").read_text()))


def test_a_pytorchjob_keeps_to_the_published_schema():
    _, made = yaml.safe_load_all((CLUSTERS / "rendered" / "aws-kubernetes" / "job.yaml").read_text())
    jsonschema.validate(made, SCHEMA)
    made["spec"]["elasticPolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(made, SCHEMA)


def test_a_command_is_a_batch_job_with_the_same_pod(tmp_path):
    words = ["mconv", "data", "tokenize", "/fsx/a b.jsonl", "--out", "/fsx/a"]
    cluster = {"image": "i", "volumes": ["c:/fsx"], "time": "60", "cpus_per_task": 64}
    _, rendered = job("kubernetes", cluster, {}, command=words, folder=tmp_path)
    files, made = yaml.safe_load_all(rendered.files["job.yaml"])
    pod = made["spec"].pop("template")["spec"]
    facts = SCHEMA["properties"]["spec"]["properties"]["pytorchReplicaSpecs"]["additionalProperties"]
    jsonschema.validate(pod, facts["properties"]["template"]["properties"]["spec"])
    named = {"name": "mconv-data-tokenize", "namespace": "default"}
    assert made == {"apiVersion": "batch/v1", "kind": "Job", "metadata": named,
                    "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 3600}}  # fmt: skip
    assert files["data"]["node.sh"].endswith("exec mconv data tokenize '/fsx/a b.jsonl' --out /fsx/a\n")
    assert pod["restartPolicy"] == "Never" and pod["containers"][0]["resources"]["limits"] == {"cpu": 64}


def test_a_command_for_several_numbers_is_a_job_for_each(tmp_path, monkeypatch):
    """Of Slurm an array, of Kubernetes an indexed Job, whose scripts here run with a number that each gives."""
    monkeypatch.chdir(tmp_path)
    noted, words = Noted(tmp_path), ["aws", "it's {}", "a{}b{}", "$1", ""]
    _, rendered = job("slurm", {"chain": True, "time": "9"}, {}, command=words, folder=tmp_path, array="0-2,7")
    written(tmp_path, rendered.files)
    assert "#SBATCH --array=0,1,2,7\n" in rendered.files["job.sbatch"] and "/%A_%a.out" in rendered.files["job.sbatch"]
    assert noted.run(tmp_path / "job.sbatch", SLURM_ARRAY_TASK_ID="7").returncode == 0
    assert noted.calls("aws") == [["aws", "it's 7", "a7b7", "$1", ""]] and not noted.calls("sbatch")
    _, rendered = job("kubernetes", {"image": "i"}, {}, command=words, folder=tmp_path, array="3,5")
    made = [*yaml.safe_load_all(rendered.files["job.yaml"])][1]["spec"]
    assert (made["completionMode"], made["completions"]) == ("Indexed", 2)
    script = made["template"]["spec"]["containers"][0]["command"][2].replace("$$", "$")
    written(tmp_path, {"pod.sh": script.replace("$0", "node.sh")})
    assert (
        noted.run(tmp_path / "pod.sh", JOB_COMPLETION_INDEX="1").returncode == 0 and noted.calls("aws")[0][1] == "it's 5"
    )
    for target, array, said in (("slurm", "x", "it must be numbers"), ("torchrun", "1", "run the command once for each")):
        with pytest.raises(ConfigError, match=said):
            job(target, {}, {}, command=words, folder=tmp_path, array=array)
    with pytest.raises(ConfigError, match=r"for a --command with \{\}"):
        job("slurm", {}, {}, command=["x"], folder=tmp_path, array="1")


# ---- before the queue ------------------------------------------------------------------------------------------------
REFUSED = {
    "layout": (["--set", "tp=3"], "tp 3"),
    "replicas": (["--set", "global_batch_size=12"], "global_batch_size 12 is not a multiple of micro_batch_size 1 x 8"),
    "heads": (["--set", "hidden_size=4100"], "4100"),
    "field": (["--set", "tpp=3"], "unknown field 'tpp'"),
    "cluster": (["--set", "cluster.gpuz=3"], "no field 'gpuz'"),
    "memory": (["--set", "cluster.gpu=T4"], "of the 13.2 GB that a card of 16 GB leaves; `mconv plan --world-size 8"),
    "time": (["--time", "1", "--set", "cluster.signal_seconds=0", "--tokens-per-second", "1"], "without save all of it"),
    "elastic": (["--set", "cluster.max_nodes=3"], "with 3 nodes: global_batch_size 16"),
    "assignment": (["--set", "tp"], "--set tp: it is NAME=VALUE"),
    "data": (["--set", "mock_data=false", "--set", "data=nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_mconv_train_would_refuse_is_refused_before_the_queue(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more, said = REFUSED[case]
    values = {**RUN, "bf16": True, "global_batch_size": 16, "seq_length": 512}
    values.pop("save")
    Path("run.yaml").write_text(yaml.safe_dump(values))
    Path("cluster.yaml").write_text("cluster: {gpus_per_node: 8, gpu: H100}\n")
    assert run(["launch", "torchrun", "run.yaml", "--render", "out", *more]) == 2
    told = capsys.readouterr()
    assert said in told.err and "Traceback" not in told.err and not Path("out").exists()


def test_files_are_rendered_checked_and_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "seq_length": 512, "bf16": True, "tp": 4}))
    assert run(["launch", "write-cluster", "--set", "cluster.gpus_per_node=8", "--set", "cluster.gpu=H100"]) == 0
    assert run(["launch", "slurm", "run.yaml", "--check"]) == 0 and not Path("run").exists()
    assert "checked job.sbatch, node.sh" in (told := capsys.readouterr().out) and "of each card's 80 GB" in told
    assert run(["launch", "slurm", "run.yaml"]) == 0
    assert "==> job.sbatch" in (told := capsys.readouterr().out) and "nothing is written" in told
    for _ in range(2):  # the same again is no other job
        assert run(["launch", "slurm", "run.yaml", "--render", "run/launch"]) == 0
    assert "next: cd" in capsys.readouterr().out and not [*Path("run/launch").glob(".*")]
    assert run(["launch", "slurm", "run.yaml", "--render", "run/launch", "--nodes", "2"]) == 2
    assert "holds another job.sbatch, node.sh; replace it with --overwrite" in capsys.readouterr().err
    assert run(["launch", "slurm", "run.yaml", "--render", "run/launch", "--nodes", "2", "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"]["run.yaml"] == Path("run/launch/run.yaml").read_text()
    assert run(["launch", "torchrun", "run.yaml", "--submit"]) == 2
    assert "has nothing to submit to" in capsys.readouterr().err


def test_the_time_that_is_left_comes_from_the_run_itself(tmp_path, monkeypatch, capsys):
    """160 steps of 8 x 512 tokens at 4096 tokens a second take 160 s, and a quarter is done; not on other ranks."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "seq_length": 512, "train_iters": 160}))
    Path("cluster.yaml").write_text("cluster: {gpus_per_node: 8, time: '1', tflops: 1.0e9}\n")
    step = {"iteration": 40, "loss": 2.0, "tokens_per_second": 4096}
    written(tmp_path / "run", {"train.jsonl": json.dumps(step) + "\n{", "run.json": '{"starts": [{"ranks": 8}]}'})
    assert run(["launch", "slurm", "run.yaml", "--check"]) == 0
    assert "time: 2 min, which is 4 jobs of 1: submit it again" in capsys.readouterr().out
    (tmp_path / "run" / "run.json").write_text('{"starts": [{"ranks": 4}]}')
    assert run(["launch", "slurm", "run.yaml", "--check"]) == 0
    assert "time: less than 1 s of 00:01:00" in capsys.readouterr().out


def test_options_from_elsewhere_lead_to_fields(capsys):
    """Of sbatch, torchrun and mconv train; each row's field is one."""
    assert {
        *foreign_launch.ELSEWHERE.values()
    } <= read.KINDS.keys() and not foreign_launch.ELSEWHERE.keys() & read.KINDS.keys()
    assert run(["launch", "slurm", "run.yaml", "--gres", "gpu:4", "-N", "2", "--lr", "1", "--frob"]) == 2
    said = capsys.readouterr().err
    assert "--gres; it is a field of the cluster: --set cluster.gres=VALUE" in said and "cluster.nodes=VALUE" in said
    assert "--lr; it is a field of the run: --set lr=VALUE" in said and "--frob; `mconv launch slurm --help`" in said


# ---- a chain ---------------------------------------------------------------------------------------------------------
STEPPED = 'mkdir -p run/debug/5; printf "%s" "{}" > run/debug/5/mark; '
CHAIN = {
    "it goes on": (STEPPED.format("SIGUSR2, at iteration 20") + "exit 0", {}, 0, None),
    "it fails after a step": (STEPPED.format("") + "exit 1", {}, 1, None),
    "it fails at its start": ("exit 3", {}, 3, "took no step"),
    "someone stops it": (STEPPED.format("the exit trigger, at iteration 20") + "exit 0", {}, 0, "by the exit trigger"),
    "it is through": (STEPPED.format("") + "echo 40 > run/latest_checkpointed_iteration.txt; exit 0", {}, 0, "last step"),
    "it is put back": ("exit 3", {"SLURM_RESTART_COUNT": "1"}, 3, "took no step"),
}  # fmt: skip
"""Case -> what srun does, variables, exit code, why the next job is cancelled."""


@pytest.mark.parametrize("case", CHAIN)
def test_a_chain_ends_where_going_on_has_no_use(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noted = Noted(tmp_path)
    does, variables, code, why = CHAIN[case]
    found, rendered = job("slurm", {"chain": True, "time": "60"})
    written(found.folder, rendered.files)
    if variables:
        written(tmp_path / "run" / "debug" / "5", {"next": "77\n"})
    slurm = {"SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "x", **variables}
    done = noted.run(found.folder / "job.sbatch", SRUN=does, **slurm)
    assert done.returncode == code, done.stderr
    queued = noted.calls("sbatch")
    assert queued == (
        [] if variables else [["sbatch", "--parsable", "--dependency=singleton", str(found.folder / "job.sbatch")]]
    )
    assert noted.calls("scancel") == ([["scancel", "77"]] if why else []) and (why or "") in done.stdout
    if case == "it is through":
        assert noted.run(found.folder / "job.sbatch", **slurm).returncode == 0
        assert not noted.calls("sbatch") and not noted.calls("srun")


def test_rank_0_notes_a_step_and_why_the_run_stopped(tmp_path, monkeypatch):
    """What a job's script reads: nothing before a step, then an empty file, then the reason."""
    mark = tmp_path / "mark"
    monkeypatch.setenv("MCONV_JOB_MARK", str(mark))
    monkeypatch.setenv("RANK", "1")
    chain.stepped()
    assert not mark.exists()
    monkeypatch.setenv("RANK", "0")
    chain.stopped(None)
    assert not mark.exists()
    chain.stepped()
    assert mark.read_text() == ""
    chain.stopped("the exit trigger, at iteration 3")
    chain.stepped()
    assert mark.read_text() == "the exit trigger, at iteration 3"


def test_variables_of_the_shell_that_submits_are_in_the_run(tmp_path, monkeypatch, capsys):
    """NUM_LAYERS=... sbatch: the copy of the run has them, whatever the job's own shell sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCONV_TRAIN_NUM_LAYERS", "2")
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "seq_length": 512}))
    assert run(["launch", "slurm", "run.yaml", "--set", "cluster.gpus_per_node=8", "--set", "lr=2e-4", "--json"]) == 0
    values = yaml.safe_load(json.loads(capsys.readouterr().out)["files"]["run.yaml"])
    assert values["num_layers"] == 2 and float(values["lr"]) == 2e-4


# ---- a submitted job -------------------------------------------------------------------------------------------------
def test_a_job_is_submitted_followed_and_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    noted = Noted(tmp_path)
    path_without(monkeypatch, noted)
    Path("run.yaml").write_text(yaml.safe_dump({**RUN, "seq_length": 512, "bf16": True, "tp": 4}))
    Path("cluster.yaml").write_text("cluster: {gpus_per_node: 8}\n")
    assert run(["launch", "slurm", "run.yaml", "--submit"]) == 0
    told = capsys.readouterr().out
    assert told.index("==> job.sbatch") < told.index("submitted job 77") and "mconv launch status" in told
    Path("run/launch/jobs").write_text("77\n78\n")
    Path("run/train.jsonl").write_text('{"iteration": 7, "loss": 2.5}\n{"iteration": 8, "lo')
    monkeypatch.setenv("SQUEUE", "77|RUNNING|1:00|1:00:00|1|node1\n78|PENDING|0:00|1:00:00|1|(Dependency)\n")
    assert run(["launch", "status", "run"]) == 0
    told = capsys.readouterr().out
    assert (
        "job 77: RUNNING, 1:00, node1\njob 78: PENDING, 0:00, (Dependency)\n" in told and "iteration 7, loss 2.5" in told
    )
    noted.file.unlink()
    assert run(["launch", "stop", "run"]) == 0
    assert noted.calls("scancel") == [["scancel", "78"], ["scancel", "--signal=USR2", "77"]]
    assert run(["launch", "stop", "77", "--now"]) == 0 and noted.calls("scancel")[2:] == [["scancel", "77"]]
    monkeypatch.setenv("SQUEUE", "")
    assert run(["launch", "status", "run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert told["jobs"][0] == {"id": "77", "state": "not in the queue any more"}
    assert run(["launch", "stop", "run/launch"]) == 0 and "nothing is left to stop" in capsys.readouterr().out
    Path("run/slurm").mkdir(exist_ok=True)
    assert run(["launch", "logs", "run"]) == 2 and "has no output of run yet" in capsys.readouterr().err
    Path("run/slurm/77.out").write_text("before\n")
    assert followed.logs(followed.follow("run"), follows=False, lines=5)[-1] == str(tmp_path / "run/slurm/77.out")
    Path("run/slurm/78.out").write_text("the end\n")
    assert followed.logs(followed.follow("run"), follows=True, lines=5)[1:] == (
        "-F",
        "--lines=5",
        str(tmp_path / "run/slurm/78.out"),
    )
    assert (
        run(["launch", "logs", "nowhere"]) == 2
        and "neither the id of a Slurm job nor a folder" in capsys.readouterr().err
    )


def test_a_kubernetes_job_is_followed_by_kubectl(tmp_path, monkeypatch):
    found, _ = job("kubernetes", {"image": "i", "volumes": ["c:/v"], "job_name": "name", "namespace": "n"},
                   {**RUN, "save": "/v/run"}, folder=tmp_path)  # fmt: skip
    written(tmp_path, {"launch.json": followed.record(found, "kubernetes")})
    here = followed.follow(str(tmp_path))
    kubectl = ("kubectl", "--namespace", "n")
    assert followed.stopping(here, {}, now=True) == ((*kubectl, "delete", "pytorchjob", "name"),)
    touch = ("exec", "name-worker-0", "--", "touch", "/v/run/triggers/exit")
    assert followed.stopping(here, {}, now=False) == ((*kubectl, *touch),)
    assert followed.logs(here, follows=True, lines=3)[3:] == ("logs", "-f", "--tail=3", "pod/name-worker-0")
    assert followed.shown(here)[1][-1] == "training.kubeflow.org/job-name=name" and here.save is None


def test_nodes_without_a_scheduler_are_stopped_by_the_trigger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, rendered = job("torchrun", {})
    written(found.folder, {**rendered.files, "launch.json": followed.record(found, "torchrun")})
    assert run(["launch", "stop", "run"]) == 2 and "the run has not started" in capsys.readouterr().err
    Path("run/triggers").mkdir()
    assert run(["launch", "stop", "run"]) == 0 and Path("run/triggers/exit").exists()
    with pytest.raises(ConfigError, match="was started by hand"):
        followed.logs(followed.follow("run"), follows=False, lines=1)


# ---- the 70B launcher -------------------------------------------------------------------------------------------------
LAUNCHER_70B = """
transformer-impl use-precision-aware-optimizer main-grads-dtype num-layers hidden-size ffn-hidden-size
num-attention-heads group-query-attention num-query-groups max-position-embeddings position-embedding-type rotary-base
use-rope-scaling rope-scaling-factor make-vocab-size-divisible-by normalization swiglu
untie-embeddings-and-output-weights log-throughput log-progress tensorboard-dir no-log-loss-scale-to-tensorboard
log-memory-to-tensorboard attention-dropout hidden-dropout weight-decay clip-grad adam-beta1 adam-beta2
micro-batch-size global-batch-size no-check-for-nan-in-loss-and-grad train-iters log-interval eval-iters
cross-entropy-loss-fusion disable-bias-linear optimizer dataloader-type manual-gc manual-gc-interval
exit-signal-handler trigger-path seed init-method-std lr min-lr lr-decay-style lr-warmup-iters save save-interval
ckpt-format load async-save bf16 tensor-model-parallel-size sequence-parallel pipeline-model-parallel-size
num-layers-per-virtual-pipeline-stage context-parallel-size use-distributed-optimizer overlap-grad-reduce
overlap-param-gather defer-embedding-wgrad-compute wgrad-deferral-limit overlap-p2p-communication-warmup-flush
tokenizer-type tokenizer-model split seq-length reset-position-ids reset-attention-mask eod-mask-loss num-workers
num-dataset-builder-threads mock-data data-path data-cache-path wandb-save-dir wandb-project wandb-exp-name
"""
"""Flags of submit-llama3-70b.sh, swiss-ai/Megatron-LM at 81d44dbe, but for those of its profiler."""


def test_each_flag_of_the_70b_launcher_is_a_field_or_is_answered():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert not [f for f in LAUNCHER_70B.split() if f.replace("-", "_") not in fields and not aliases.advice(f"--{f}")]
