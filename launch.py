"""Train a job, or run a workflow, without a browser: see HELP, or `python launch.py --help`.

This file is run by path and imports nothing of the pack before ComfyUI is in place: the folder that
it lies in holds a `nodes` of its own, which would hide ComfyUI's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

HELP = """\
Trains a LoRA job that Export Training Job has written, or runs a workflow, in this terminal.

  accelerate launch --num_processes 1 launch.py JOB_FOLDER
      Train on one device. Without --num_processes, accelerate takes every GPU of the machine.
  accelerate launch --multi_gpu --num_processes 2 launch.py JOB_FOLDER
      Train on two GPUs of this machine. The batch stays the same and is shared by the processes, so
      train_batch_size must be 2 or more, and the LoRA is that of one GPU.
  accelerate launch --multi_gpu --num_machines 2 --num_processes 4 --machine_rank 0 \\
      --main_process_ip 192.168.0.10 --main_process_port 29500 launch.py JOB_FOLDER
      Two GPUs on each of two machines: the same command on both, with --machine_rank 1 on the
      second. Job folder and output folder lie on a drive that both see.
  accelerate launch --multi_gpu --num_processes 2 launch.py JOB_FOLDER --cpu
      Two processes without GPUs. (accelerate's own --cpu starts one only.)
  python launch.py workflow.json
      Run a graph, saved by the browser or exported in API format. Files land where its nodes write.

In ComfyUI's portable version for Windows, from its folder ComfyUI, put
..\\python_embeded\\python.exe -m accelerate.commands.launch in place of "accelerate launch", and
..\\python_embeded\\python.exe in place of "python".

Ctrl+C ends it before the next step and keeps the work. The same command goes on from the last
checkpoint, with any number of processes, also after a crash; --start-again begins anew. What was
begun in the graph is gone on with here, and the other way round. All is written to ComfyUI's output
folder, in atelier/runs.
"""
EPILOGUE = """\
Further options are ComfyUI's own (--lowvram, --disable-all-custom-nodes, ...) and come last. Those
of precision (--bf16-unet, --fp32-text-enc, ...) must be the ones the job was exported with; the
command that Export Training Job shows has them.
Exit code: 0 done, 1 failed, 2 wrong options, 128 + signal stopped (130 after Ctrl+C).
"""
FAILED, WRONG_USE, STOPPED = 1, 2, 128
PACK = "lora_atelier"


def main() -> int:
    arguments, others = _parsed(sys.argv[1:])
    comfyui = _comfyui(arguments.comfyui)
    if comfyui is None:
        _complain("ComfyUI was not found. Say where it is: --comfyui FOLDER, or COMFYUI_PATH.")
        return WRONG_USE
    _say_if_alone()
    _choose_own_gpu()
    stop = _StopRequest()
    _prepare_imports(comfyui, [*_for_comfyui(arguments), *others])
    from comfy.model_management import InterruptProcessingException

    stop.on_request(_of_pack("training.host.progress").cancel)
    host = _of_pack("nodes.headless.host")
    try:
        _run(arguments, stop)
    except (InterruptProcessingException, host.GraphStopped):
        return stop.exit_code
    except ValueError as error:  # AtelierError and WorkflowError: written for people
        _complain(str(error))
        return stop.exit_code
    finally:
        _leave_the_others()
    return 0


def _run(arguments: argparse.Namespace, stop: _StopRequest) -> None:
    """Whatever the command line names."""
    terminal = _of_pack("nodes.headless.terminal").Terminal()
    if arguments.what.is_dir():
        _train(arguments, stop, terminal)
    else:
        _run_workflow(arguments.what, stop, terminal)


def _train(arguments: argparse.Namespace, stop: _StopRequest, terminal: Any) -> None:
    import torch

    jobs, host = _of_pack("nodes.headless.job"), _of_pack("nodes.headless.host")
    options = jobs.JobOptions(
        arguments.train_batch_size,
        arguments.max_train_steps,
        arguments.start_again,
        arguments.save_every_n_steps,
        jobs.SavePrecision(arguments.save_precision),
    )
    job = jobs.opened_job(arguments.what, options, _from_environment("WORLD_SIZE", 1))
    is_main = _from_environment("RANK", 0) == 0
    host.start_host(terminal.hear if is_main else lambda event, data: None)
    stop.raise_if_asked()
    with torch.inference_mode():  # as nodes run
        path = jobs.train_job(job, options, is_main)
    if path is not None:
        terminal.say(f"Done. The LoRA: {path}")


def _run_workflow(file: Path, stop: _StopRequest, terminal: Any) -> None:
    workflow, host = _of_pack("nodes.headless.workflow"), _of_pack("nodes.headless.host")
    if _from_environment("WORLD_SIZE", 1) > 1:
        raise ValueError(
            "A workflow runs in one process: python launch.py workflow.json. To train in several, "
            "write a job with Export Training Job and launch that."
        )
    content = _read(file)
    host.start_host(terminal.hear)
    stop.raise_if_asked()
    prompt, saved = content, None
    if workflow.is_saved_graph(content):
        prompt = workflow.to_prompt(content, host.object_info(workflow.node_types(content)))
        saved = content
    terminal.titles = host.titles(prompt)
    for node, shown in host.run_graph(prompt, saved).items():
        terminal.say(f"{terminal.titles[node]}: {host.in_words(shown)}")


def _read(file: Path) -> Any:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f'"{file}" is no job folder and no workflow: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'"{file}" is no workflow: it holds no nodes.')
    return content


class _StopRequest:
    """Ctrl+C or SIGTERM: an end with everything kept.

    A launcher passes on a signal that the terminal has sent to all processes already, so under it
    only the first counts, and it kills what does not end within 30 s. Without a launcher the second
    Ctrl+C ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._cancel = threading.Event().set
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def on_request(self, cancel: Any) -> None:
        """What to call then; at once, if it was asked before."""
        self._cancel = cancel
        if self.signal is not None:
            cancel()

    def raise_if_asked(self) -> None:
        """ComfyUI forgets a request when it begins a graph."""
        if self.signal is not None:
            raise _of_pack("nodes.headless.host").GraphStopped

    @property
    def exit_code(self) -> int:
        return FAILED if self.signal is None else STOPPED + self.signal

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = number
        if "LOCAL_RANK" not in os.environ:
            signal.signal(number, signal.SIG_DFL)
        self._cancel()


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description=HELP,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", type=Path, help="a job folder, or a workflow's JSON file")
    job = parser.add_argument_group("of a job")
    job.add_argument(
        "--train_batch_size",
        type=_count,
        metavar="N",
        help="pictures in a batch, of all processes together; another number is another run",
    )
    job.add_argument("--max_train_steps", type=_count, metavar="N", help="train longer, or less")
    job.add_argument(
        "--start-again", action="store_true", help="do not go on from the last checkpoint"
    )
    job.add_argument(
        "--save_every_n_steps",
        type=_count,
        default=0,
        metavar="N",
        help="checkpoints besides those of every 10 minutes",
    )
    job.add_argument(
        "--save_precision",
        choices=("fp16", "bf16", "float"),
        default="fp16",
        help="of the finished LoRA (fp16)",
    )
    host = parser.add_argument_group("of ComfyUI")
    host.add_argument(
        "--comfyui",
        type=Path,
        metavar="FOLDER",
        help="where it is, if this pack does not lie in its custom_nodes and COMFYUI_PATH is unset",
    )
    for name in ("--base-directory", "--output-directory"):
        host.add_argument(name, metavar="FOLDER", help="as ComfyUI's")
    host.add_argument(
        "--extra-model-paths-config",
        action="append",
        default=[],
        metavar="FILE",
        help="as ComfyUI's; once for each file",
    )
    host.add_argument("--cpu", action="store_true", help="as ComfyUI's: no GPU")
    return parser.parse_known_args(words)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _for_comfyui(arguments: argparse.Namespace) -> list[str]:
    """Its part of the command line."""
    words = []
    if arguments.base_directory:
        words += ["--base-directory", str(Path(arguments.base_directory).absolute())]
    if arguments.output_directory:
        words += ["--output-directory", arguments.output_directory]
    for file in arguments.extra_model_paths_config:
        words += ["--extra-model-paths-config", file]
    return [*words, "--cpu"] if arguments.cpu or _is_launched_with_cpu() else words


def _comfyui(given: Path | None) -> Path | None:
    """Its folder: the one that is named, the one this pack is installed in, COMFYUI_PATH's, or the
    one that development fetches."""
    if given is not None:
        candidates = [given]
    else:
        here = (Path(__file__).absolute().parent, Path(__file__).resolve().parent)
        candidates = [f.parents[1] for f in here if f.parent.name == "custom_nodes"]
        if os.environ.get("COMFYUI_PATH"):
            candidates.append(Path(os.environ["COMFYUI_PATH"]))
        candidates.append(here[1] / ".host" / "ComfyUI")
    found = (folder.expanduser().resolve() for folder in candidates)
    return next((folder for folder in found if (folder / "main.py").is_file()), None)


def _choose_own_gpu() -> None:
    """Show each process of a machine one GPU, before torch looks.

    ComfyUI computes on the first device that is visible, and accelerate takes device
    ``LOCAL_RANK % visible``, which is the same one then. A list that is there already (of
    accelerate's ``--gpu_ids``, or of a batch system) is what is to be shared out.
    """
    rank = _from_environment("LOCAL_RANK", -1)
    if rank < 0:
        return
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu.strip()]
    if len(visible) != 1:  # one: it was chosen for this process
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank] if rank < len(visible) else str(rank)


def _say_if_alone() -> None:
    """accelerate prepares for several processes on the CPU, and starts one."""
    prepared = _is_launched_with_cpu() and "MASTER_ADDR" in os.environ
    if prepared and "LOCAL_RANK" not in os.environ:
        _complain(
            "accelerate has started one process only. For several on the CPU: accelerate launch "
            "--multi_gpu --num_processes N launch.py JOB_FOLDER --cpu"
        )


def _is_launched_with_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")


def _prepare_imports(comfyui: Path, words: list[str]) -> None:
    """ComfyUI first on the path, this folder not on it; then its own reading of its options."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    sys.path.insert(0, str(comfyui))
    sys.argv = [str(comfyui / "main.py"), *words]
    importlib.import_module("main")
    for stream in (sys.stdout, sys.stderr):
        # ComfyUI's own: strict, so that a letter the terminal or file has not would end the run.
        stream.reconfigure(errors="replace")
    if _from_environment("RANK", 0) > 0:
        logging.getLogger().setLevel(logging.WARNING)  # the first one says it for all
    # The package alone: its nodes are loaded by ComfyUI, or with what needs them.
    spec = importlib.util.spec_from_file_location(
        PACK, here / "__init__.py", submodule_search_locations=[str(here)]
    )
    sys.modules[PACK] = importlib.util.module_from_spec(spec)


def _leave_the_others() -> None:
    """Close the link between processes, which warns when it is torn."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _of_pack(name: str) -> Any:
    return importlib.import_module(f"{PACK}.{name}")


def _from_environment(name: str, otherwise: int) -> int:
    return int(os.environ.get(name, otherwise))


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
