"""launch.py by path, as a person starts it: jobs in one process and in two, and graphs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from bootstrap import ROOT, comfyui_path
from host import HostServer
from training_graph import DATASET, LOADER, TRAIN, Prompt, few_pictures, node, picture, training

pytestmark = pytest.mark.slow
STEPS, BATCH = 10, 2
PHRASE, CHECKPOINT = "fx emoji", "tiny_sd15.safetensors"
LAUNCHER = ROOT / "launch.py"
HISTORY = "atelier/runs/*/history.jsonl"
TIMEOUT = 600


@dataclass
class Studio:
    """A folder for ComfyUI that no server uses and this pack is not installed in."""

    base: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *words: object, processes: int = 1, encoding: str = "utf-8"
    ) -> subprocess.Popen[str]:
        command: list[object] = [sys.executable]
        if processes > 1:
            command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", 1]
            command += ["--num_processes", processes, "--main_process_port", _free_port()]
            command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        command += [LAUNCHER, *words, "--comfyui", comfyui_path(), "--base-directory", self.base]
        command += ["--cpu", "--disable-api-nodes"]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=self.base,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding=encoding,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *words: object, processes: int = 1, encoding: str = "utf-8") -> tuple[int, str]:
        """Exit code and all that it said."""
        return _ended(self.start(*words, processes=processes, encoding=encoding))

    def write(self, name: str, content: Any) -> Path:
        path = self.base / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory, new_server: Callable[[Path], HostServer]
) -> Any:
    server = new_server(tmp_path_factory.mktemp("launch"))  # never started: only its folder
    few_pictures(server)
    studio = Studio(server.base)
    yield studio
    for process in studio.started:
        process.kill()


@pytest.fixture(scope="module")
def job(studio: Studio) -> Path:
    """A job, written by a graph in API format that runs without a server."""
    whole = training("few", STEPS)
    begin = {name: v for name, v in whole[TRAIN]["inputs"].items() if name != "resume"}
    graph = {key: whole[key] for key in (LOADER, DATASET, "3", "4", "5")}
    graph[DATASET]["inputs"]["class_tokens"] = PHRASE
    graph["start"] = node("AtelierStartTraining", **begin | {"train_batch_size": BATCH})
    graph["export"] = node("AtelierExportJob", state=["start", 0], job_name="few")
    code, said = studio.run(studio.write("export.json", graph))
    assert code == 0, said
    assert "Export Training Job: output/atelier/jobs/few" in said
    return studio.base / "output/atelier/jobs/few"


@pytest.fixture(scope="module")
def lora(studio: Studio, job: Path) -> dict[str, torch.Tensor]:
    """What one process trains."""
    return _trained(studio, job, studio.base / "one", processes=1)


def test_one_process_leaves_what_a_run_in_the_graph_leaves(
    studio: Studio, job: Path, lora: dict[str, torch.Tensor]
) -> None:
    (run,) = (studio.base / "one/atelier/runs").iterdir()
    described = json.loads((job / "job.json").read_text())
    assert run.name == f"few-{described['identity'][:8]}"
    assert json.loads((run / "run.json").read_text())["identity"] == described["identity"]
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert (run / f"state/step{STEPS:08}.safetensors").is_file()
    assert any(tensor.any() for name, tensor in lora.items() if name.endswith("lora_up.weight"))
    told = _told(run / f"lora/{run.name}-step{STEPS:08}.safetensors")
    assert told["modelspec.trigger_phrase"] == PHRASE
    assert told["ss_sd_model_name"] == CHECKPOINT
    checkpoint = studio.base / "models/checkpoints" / CHECKPOINT
    assert told["ss_new_sd_model_hash"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_its_lora_comes_back_into_a_graph(
    studio: Studio, job: Path, lora: dict[str, torch.Tensor]
) -> None:
    output = studio.base / "one"
    shutil.copytree(job, output / "atelier/jobs/few")
    graph = {
        LOADER: node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "load": node("AtelierLoadJob", job="few", model=[LOADER, 0], clip=[LOADER, 1], watch=True),
        "save": node(
            "AtelierSaveLoRA",
            lora=["load", 3],
            filename_prefix="atelier/back",
            save_precision="float",
            add_to_models_loras=False,
        ),
    }
    code, said = studio.run(studio.write("back.json", graph), "--output-directory", output)
    assert code == 0, said
    (file,) = (output / "atelier").glob("back_*.safetensors")
    back, told = load_file(file), _told(file)
    assert back.keys() == lora.keys() and all(torch.equal(back[k], lora[k]) for k in lora)
    assert (told["ss_steps"], told["modelspec.trigger_phrase"]) == (str(STEPS), PHRASE)


@pytest.fixture(scope="module")
def lora_of_two(studio: Studio, job: Path) -> dict[str, torch.Tensor]:
    """What two processes train."""
    return _trained(studio, job, studio.base / "two", processes=2)


def test_two_processes_train_the_same_lora(
    lora: dict[str, torch.Tensor], lora_of_two: dict[str, torch.Tensor]
) -> None:
    _assert_same(lora_of_two, lora)


def test_a_killed_process_ends_the_run_which_is_gone_on_with(
    studio: Studio, job: Path, lora_of_two: dict[str, torch.Tensor]
) -> None:
    output = studio.base / "killed"
    process = studio.start(*_training(job, output), processes=2)
    _wait_for_step(process, output, 4)
    workers = psutil.Process(process.pid).children(recursive=True)
    victim = next(w for w in workers if w.environ().get("RANK") == "1")
    os.kill(victim.pid, signal.SIGKILL)
    code, said = _ended(process)
    assert code != 0, said
    assert len(_history(output)) < STEPS, "killed too late to tell anything"
    assert not any(worker.is_running() for worker in workers if worker.pid != victim.pid)

    code, said = studio.run(*_training(job, output), processes=2)
    assert code == 0, said
    assert "resumed at step" in said
    gone_on_with = _lora_in(output)
    assert all(torch.equal(tensor, gone_on_with[name]) for name, tensor in lora_of_two.items())


def test_ctrl_c_keeps_the_work_and_says_so(studio: Studio, job: Path) -> None:
    output = studio.base / "stopped"
    process = studio.start(*_training(job, output))
    _wait_for_step(process, output, 1)
    process.send_signal(signal.SIGINT)
    code, said = _ended(process)
    assert code == 128 + signal.SIGINT, said
    steps = len(_history(output))
    assert f"stopped at step {steps}; the LoRA so far is in output/atelier/runs/few-" in said
    assert "Start it again to go on from there." in said
    (state,) = output.glob(f"atelier/runs/*/state/step{steps:08}.safetensors")
    assert list(output.glob(f"atelier/runs/*/lora/*step{steps:08}.safetensors"))


def test_sigterm_ends_all_processes(studio: Studio, job: Path) -> None:
    output = studio.base / "terminated"
    process = studio.start(*_training(job, output), processes=2)
    _wait_for_step(process, output, 1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    code, said = _ended(process)
    assert code != 0
    assert "stopped at step" in said
    assert not any(worker.is_running() for worker in workers)
    assert list(output.glob("atelier/runs/*/state/*.safetensors"))


def test_more_processes_than_pictures_are_refused_in_words(studio: Studio, job: Path) -> None:
    code, said = studio.run(*_training(job, studio.base / "many"), processes=BATCH + 1)
    assert code != 0
    assert f"train_batch_size is {BATCH}, but {BATCH + 1} processes" in said


def test_another_batch_size_is_another_run(studio: Studio, job: Path) -> None:
    output = studio.base / "larger"
    words = _training(job, output, "--train_batch_size", 3, "--max_train_steps", 1)
    code, said = studio.run(*words, encoding="cp932")
    assert code == 0, said
    # Japanese Windows has no middle dot: what cannot be written ends nothing.
    assert "finished: step 1/1 ? loss" in said
    (run,) = (output / "atelier/runs").iterdir()
    described = json.loads((run / "run.json").read_text())
    assert described["settings"]["train_batch_size"] == 3
    assert described["identity"] != json.loads((job / "job.json").read_text())["identity"]


def test_a_graph_that_the_browser_has_saved_runs(studio: Studio) -> None:
    code, said = studio.run(studio.write("saved.json", saved_graph()))
    assert code == 0, said
    assert "Save Image: launched_00001_.png" in said
    with Image.open(studio.base / "output/launched_00001_.png") as made:
        assert json.loads(made.info["workflow"]) == saved_graph()


def test_a_job_without_a_text_encoder_is_trained(studio: Studio) -> None:
    whole = training("few", 1)
    begin = {k: v for k, v in whole[TRAIN]["inputs"].items() if k not in ("resume", "clip")}
    graph = {key: whole[key] for key in (LOADER, DATASET, "3", "4", "5")}
    graph["text"] = node("CLIPTextEncode", clip=[LOADER, 1], text="an emoji")
    graph["start"] = node("AtelierStartTraining", **begin, conditioning=["text", 0])
    graph["export"] = node("AtelierExportJob", state=["start", 0], job_name="without_clip")
    code, said = studio.run(studio.write("without.json", graph))
    assert code == 0, said
    job, output = studio.base / "output/atelier/jobs/without_clip", studio.base / "without"
    assert json.loads((job / "base.json").read_text())["clip"] is None
    code, said = studio.run(*_training(job, output))
    assert code == 0, said
    assert list(output.glob("atelier/runs/*/lora/*-step00000001.safetensors"))


def test_a_graph_that_comfyui_refuses_is_named(studio: Studio) -> None:
    graph: Prompt = {LOADER: node("CheckpointLoaderSimple", ckpt_name="absent.safetensors")}
    code, said = studio.run(studio.write("refused.json", graph | picture("p", LOADER)))
    assert code == 1
    assert f"node {LOADER} (CheckpointLoaderSimple): Value not in list" in said


def test_a_node_that_fails_is_named(studio: Studio) -> None:
    graph = {LOADER: node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)}
    graph["lens"] = node("TestFailingModel", model=[LOADER, 0], at_call=1)
    failing = picture("p", LOADER)
    failing["p-ks"]["inputs"]["model"] = ["lens", 0]
    code, said = studio.run(studio.write("failing.json", graph | failing))
    assert code == 1
    assert "node p-ks (KSamplerAdvanced): RuntimeError: the lens cap is on" in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--help"], 0, "accelerate launch --num_processes 1 launch.py JOB_FOLDER"),
        (["--help"], 0, "accelerate launch --multi_gpu --num_processes 2 launch.py JOB_FOLDER"),
        (["job", "--train_batch_size", "0"], 2, "0 is less than 1"),
        (["job", "--comfyui", "nowhere"], 2, "ComfyUI was not found"),
    ],
)
def test_the_command_line_explains_itself(words: list[str], code: int, says: str) -> None:
    done = subprocess.run([sys.executable, LAUNCHER, *words], capture_output=True, text=True)
    assert done.returncode == code
    assert says in done.stdout + done.stderr


def saved_graph() -> dict[str, Any]:
    """A picture of the tiny checkpoint, as the browser saves it."""
    types = ("MODEL", "CLIP", "VAE", "CONDITIONING", "LATENT", "IMAGE")
    model, clip, vae, conditioning, latent, image = types
    nodes = [
        (1, "CheckpointLoaderSimple", [CHECKPOINT], [], [model, clip, vae]),
        (2, "CLIPTextEncode", ["a fox"], [("clip", clip, 1)], [conditioning]),
        (3, "EmptyLatentImage", [64, 64, 1], [], [latent]),
        (
            4,
            "KSampler",
            [5, "fixed", 2, 1.0, "euler", "normal", 1.0],
            [
                *[("model", model, 2), ("positive", conditioning, 3)],
                *[("negative", conditioning, 4), ("latent_image", latent, 5)],
            ],
            [latent],
        ),
        (5, "VAEDecode", [], [("samples", latent, 6), ("vae", vae, 7)], [image]),
        (6, "SaveImage", ["launched"], [("images", image, 8)], []),
    ]
    sources = {1: (1, 1), 2: (1, 0), 3: (2, 0), 4: (2, 0), 5: (3, 0), 6: (4, 0), 7: (1, 2)}
    sources[8] = (5, 0)
    targets = {
        link: (number, slot, kind)
        for number, _, _, inputs, _ in nodes
        for slot, (_, kind, link) in enumerate(inputs)
    }
    return {
        "version": 0.4,
        "links": [[link, *sources[link], *targets[link]] for link in sources],
        "nodes": [
            {
                "id": number,
                "type": kind,
                "mode": 0,
                "widgets_values": values,
                "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
                "outputs": [{"name": name, "type": name} for name in outputs],
            }
            for number, kind, values, inputs, outputs in nodes
        ],
    }


def _training(job: Path, output: Path, *more: object) -> list[object]:
    words = [job, "--output-directory", output, "--save_every_n_steps", 2]
    return [*words, "--save_precision", "float", *more]


def _trained(studio: Studio, job: Path, output: Path, processes: int) -> dict[str, torch.Tensor]:
    code, said = studio.run(*_training(job, output), processes=processes)
    assert code == 0, said
    assert f"finished: step {STEPS}/{STEPS}" in said and "Done. The LoRA: " in said
    return _lora_in(output)


def _lora_in(output: Path) -> dict[str, torch.Tensor]:
    (path,) = output.glob(f"atelier/runs/*/lora/*-step{STEPS:08}.safetensors")
    return load_file(path)


def _told(file: Path) -> dict[str, str]:
    """The metadata of a LoRA."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """But for rounding, which Adam makes much of where a gradient is next to nothing."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 5e-3 * other[name].norm(), name


def _ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, said


def _wait_for_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(_history(output)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _history(output: Path) -> list[str]:
    return [line for path in output.glob(HISTORY) for line in path.read_text().splitlines()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
