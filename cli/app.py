"""The command table. A command's module is imported only when it runs, so help imports neither torch nor megatron."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, get_args

from cyclopts import App, CycloptsError, Parameter, Token, convert

import mconv
from mconv.cli.help_format import PlainHelp
from mconv.cli.terminal import typed
from mconv.errors import MconvError


def _exactly(kind: Any, tokens: Sequence[Token]) -> Any:
    """Return the value of an option. Raises ValueError for 1.5 as a whole number, which cyclopts would round."""
    kinds = get_args(kind) or (kind,)
    if int in kinds and float not in kinds and any("." in token.value for token in tokens):
        raise ValueError("not a whole number")
    return convert(kind, tokens)


def _default(value: Any) -> str | None:
    """Return a default as help shows it; None for a switch that is off and an option that is not set."""
    return None if value is None or value is False else str(value)


app = App(
    name="mconv",
    version=mconv.__version__,
    default_parameter=Parameter(converter=_exactly, show_default=_default),
    help="Convert language models between Hugging Face and Megatron, verify, train and publish them.",
    help_on_error=False,
    help_format="plaintext",
    help_formatter=PlainHelp(),
    suppress_keyboard_interrupt=False,  # `run` answers it
)
data = App(name="data", help="Tokenize, mix, merge and measure training data.")
app.command(data)
lora = App(name="lora", help="Export, merge or extract a LoRA adapter.")
app.command(lora)
launch = App(name="launch", help="Start a run on a cluster, or follow it.")
app.command(launch)

COMMANDS = {
    "hf2meg": ("mconv.cli.convert:hf2meg", "Convert a Hugging Face model to Megatron."),
    "reshard": ("mconv.cli.convert:reshard", "Rewrite a Megatron checkpoint for another layout or in another format."),
    "merge": ("mconv.cli.convert:merge", "Merge all ranks of a Megatron checkpoint into one (tp 1, pp 1)."),
    "meg2hf": ("mconv.cli.convert:meg2hf", "Convert a Megatron checkpoint to Hugging Face."),
    "blend": ("mconv.cli.blend:blend", "Merge models tensor by tensor, by mergekit's methods and recipes."),
    "layers": ("mconv.cli.surgery:layers", "Leave out, repeat or reorder the layers of a model; tie or untie its head."),
    "resize": ("mconv.cli.surgery:resize", "Give a model another vocabulary."),
    "inspect": ("mconv.cli.inspect:inspect", "Show what a checkpoint or a dataset is."),
    "verify": (
        "mconv.cli.verify:verify",
        "Decide whether two checkpoints are the same model.\n\nExit code 0: yes. 1: no. 2: not judged. It compares the "
        "tensors, bit for bit, and then what the models compute: a Hugging Face folder runs in transformers, a Megatron "
        "checkpoint in megatron-core's own GPTModel on tp x pp real ranks. If they differ, it says where and why.",
    ),
    "diff": (
        "mconv.cli.diff:diff",
        "How far apart are two checkpoints?\n\nOf any formats and layouts: mean and largest difference, relative norm, "
        "cosine and share of changed elements of each tensor and layer, a heat map of layers x modules. Exit code 0: "
        "measured, whatever the difference; 2: it could not be. Whether two are the same model is what verify decides.",
    ),
    "status": (
        "mconv.cli.status:status",
        "List the checkpoints and runs in a folder, and which was made from which.\n\nA tree, read from manifests and "
        "trackers: the step that made each, its layout, dtype and size, what it was verified against, where it was "
        "pushed.",
    ),
    "plan": (
        "mconv.cli.train_plan:plan",
        "Memory, parameters, steps and time of a training run, before it starts.\n\nCONFIG, variables and flags are "
        "those of mconv train. Nothing is started and no weights are read. Data, learning rate and the length of the run "
        "may be left out. Exit code 0: planned; 1: it does not fit into --gpu-memory; 2: it could not run.",
    ),
    "train": (
        "mconv.cli.train:train",
        "Train on megatron-core.\n\nEach option is also a line of CONFIG, a YAML file (seq_length: 4096), and a variable "
        "(MCONV_TRAIN_SEQ_LENGTH=4096): a flag wins over a variable, a variable over the file. Under torchrun or srun "
        "the command joins the ranks that are already there; otherwise it starts them on this machine. Exit code 0: "
        "trained, or saved and stopped early; 1: a check or a guard failed; 2: the run could not start or continue.",
    ),
    "bench": (
        "mconv.cli.bench:bench",
        "Measure a run at every layout that fits this machine.\n\nCONFIG, variables and flags are those of mconv train; "
        "tp, pp and micro batches vary, unless a flag gives them. Each trial is a few steps on ranks of its own; nothing "
        "is saved. What mconv plan says will not fit is not run. Exit code 0: measured; 1: nothing fits; 2: it could not "
        "begin.",
    ),
    "doctor": ("mconv.cli.doctor:doctor", "Check what this machine offers to a training run."),
    "plot": ("mconv.cli.plot:plot", "Plot loss, learning rate, gradient norm and throughput of runs, Megatron-LM's too."),
    "push": (
        "mconv.cli.hub:push",
        "Publish a model on the Hugging Face Hub.\n\nThe quick checks come first: the folder, the token and its rights, "
        "the repository. Then the folder is proven to be what it was made from. Nothing is sent before. The "
        "token comes from HF_TOKEN or from `hf auth login`, never from the command line. Exit code 0: published, or a "
        "dry run found that it could be; 1: not the same model; 2: something is missing.",
    ),
    "pull": ("mconv.cli.hub:pull", "Download a model from the Hugging Face Hub."),
    "demo": ("mconv.cli.demo:demo", "Run every step once, offline, on a small model."),
}
OF_A_RUN = ("train", "plan", "bench")
"""Commands whose options are a run's fields."""
TARGETS = {
    "slurm": "as a Slurm job", "kubernetes": "as a PyTorchJob of Kubeflow",
    **{name: f"by {name}, on nodes without a scheduler" for name in
       ("torchrun", "docker", "singularity", "apptainer", "enroot")},
}  # fmt: skip
"""Where `mconv launch` starts a run, with how."""
LAUNCH = {
    **{name: (f"launch:{name}", f"Start a run, or a command, {where}.") for name, where in TARGETS.items()},
    "image": ("launch_image:image", "Make the image that a cluster's containers start from."),
    "write-cluster": ("launch:write_cluster", "Write a cluster's file, to fill in."),
    "status": ("launch_jobs:status", "Show a job: its place in the queue, and where its run stands."),
    "stop": ("launch_jobs:stop", "Stop a job, and those that wait to follow it."),
    "logs": ("launch_jobs:logs", "Print the end of a job's output."),
}
DATA = {
    "tokenize": ("data:tokenize", "Tokenize text into the .bin and .idx that Megatron reads."),
    "dedup": ("data_dedup:dedup", "Remove duplicate documents, equal and similar ones."),
    "instruct": ("data:instruct", "Tokenize conversations, with the role of each token."),
    "mix": ("data_mix:mix", "Mix token data by weights, without repetition."),
    "merge": ("data_mix:merge", "Merge prefixes of token data into one."),
    "prepare": ("data_prepare:prepare", "From raw files to tokens in one go, as a file says."),
    "shuffle": ("data_prepare:shuffle", "Shuffle the lines of files of any size."),
    "dumps": ("data_dumps:dumps", "Divide a corpus into dumps, and tokenize each by a job."),
    "bench": ("data_bench:bench", "Measure how many workers tokenize an input fastest here."),
    "stats": ("data_stats:stats", "Measure token data: lengths, ends, vocabulary."),
    "export": ("data_export:export", "Write records in another format."),
    "discover": ("data_stats:discover", "Print the prefixes in folders, with weights."),
}
LORA = {
    "export": ("lora:export", "Export the adapter of a LoRA run in PEFT's format."),
    "merge": ("lora:merge", "Merge an adapter and its base into one model."),
    "extract": ("extract:extract", "Make an adapter of what a finetune has changed."),
}
for name, (target, summary) in COMMANDS.items():
    app.command(target, name=name, help=summary)
for group, commands in ((data, DATA), (lora, LORA), (launch, LAUNCH)):
    for name, (target, summary) in commands.items():
        group.command(f"mconv.cli.{target}", name=name, help=summary)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 checked and wrong, 2 impossible or misused, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def _worded(message: str, argv: list[str]) -> str:
    """Return a message that names a run's fields as the user typed them."""
    if not argv or argv[0] not in OF_A_RUN:
        return message
    from mconv.cli.field_names import as_typed

    return as_typed(message, argv)


def _system(error: OSError) -> str:
    """Return the system's message. For a full disk it names no file, so this says what is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
        return f"no room left on the disk that this command writes to: {error.strerror}"
    return str(error)


def run(argv: list[str]) -> int:
    """Run one command and return its exit code. A user's mistake is one message, never a traceback."""
    typed[:] = argv
    try:
        if _help(argv):
            return 0
        code = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        from mconv.cli import misuse

        for line in misuse.lines(error):
            print(f"mconv: {line}", file=sys.stderr)
        return 2
    except MconvError as error:
        if error.args and str(error):
            print(f"mconv: {_worded(str(error), argv)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"mconv: {_system(error)}", file=sys.stderr)
        return 2
    except Exception:  # a fault of ours: shown whole, and never taken for the verdict "checked, and wrong" (1)
        traceback.print_exc()
        return 2


def _help(argv: list[str]) -> bool:
    """Print the help of train, plan or bench by sections if it is asked for; cyclopts prints all other help."""
    if not argv or argv[0] not in OF_A_RUN:
        return False
    from mconv.cli import sections

    words = sections.asked(argv)
    if words is None or words == [sections.ALL]:
        return False
    print(sections.text(argv[0], COMMANDS[argv[0]][1], words))
    return True
