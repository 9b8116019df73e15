"""A job trains outside as its run would have in the graph, bit for bit, and comes back into it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy.cli_args import args, parser
from comfy_api.latest import io
from comfy_execution.utils import CurrentNodeContext

from hidden_inputs import prepared
from lora_atelier.nodes.live.monitor import RUNS, watched
from lora_atelier.nodes.train.job_base import base_of_state
from lora_atelier.nodes.train.job_watch import JobRun
from lora_atelier.nodes.train.jobs import LAUNCHER, ExportTrainingJob, LoadTrainingJob, jobs
from lora_atelier.nodes.train.run_in_graph import run_folder
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import Crop, FitOptions
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.job_session import start_job
from lora_atelier.training.host.launch_command import (
    COMFYUI,
    PRECISION,
    launch_command,
    quoted,
)
from lora_atelier.training.host.session import Ready, start_run
from lora_atelier.training.jobs.job_folder import read_job, write_job
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.results.lora_file import trained_lora
from lora_atelier.training.runs.branch import branch, with_batch_size
from lora_atelier.training.runs.checkpoints import Checkpoints, CheckpointSpec
from lora_atelier.training.runs.folder_lock import training_alone
from lora_atelier.training.runs.history_file import RunLog
from lora_atelier.training.runs.listener import Listener
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import StepRecord, TrainingState
from lora_atelier.training.runs.validation import ValidationPoint
from tiny_training import Parts, load_parts, quick_spec, train_as_node

BASE = {"prompt": {}, "model": ["1", 0], "clip": ["1", 1]}
PHRASE = "fx fox"
FIT = FitOptions((64,), bucket_reso_steps=32, crop=Crop.RANDOM, crop_variants=2, flip_aug=True)
SHUFFLED = CaptionOptions(shuffle_caption=True, caption_dropout_rate=0.3, caption_variants=2)
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}, "is_changed": 1},
    "2": {"class_type": "AtelierLoadDataset", "inputs": {"folder": "x"}},
    "4:1": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1]}},
    "5": {
        "class_type": "AtelierStartTraining",
        "inputs": {"model": ["4:1", 0], "clip": ["4:1", 1], "vae": ["1", 2], "dataset": ["2", 0]},
    },
    "6": {"class_type": "AtelierTrainSteps", "inputs": {"state": ["5", 0], "amount": 2}},
    "7": {"class_type": "Switch", "inputs": {"on": True, "value": ["6", 0]}},
    "12:3": {"class_type": "AtelierExportJob", "inputs": {"state": ["7", 0]}},
}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of latents and texts, which take most of the time."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def outside(tiny_checkpoint: Path) -> Parts:
    """The same file, loaded once more, as another process would."""
    return load_parts(tiny_checkpoint)


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, new."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def pictures() -> ImageDataset:
    """Masks, two buckets, several crops, mirroring, shuffled tags, all three roles."""
    rng = np.random.default_rng(3)

    def sample(number: int, width: int, **more: Any) -> Sample:
        pixels = ImagePixels(rng.integers(0, 255, (80, width, 3), np.uint8))
        captions = (f"a fox, number {number}, snow",)
        options = {"fit": FIT, "caption_options": SHUFFLED, "class_tokens": PHRASE}
        return Sample(pixels, f"{number}.png", captions, **options, **more)

    mask = np.zeros((80, 80), np.uint8)
    mask[20:60, 20:60] = 255
    return ImageDataset(
        (
            sample(0, 80, mask=ImagePixels(mask)),
            sample(1, 80, num_repeats=2),
            sample(2, 160, loss_weight=0.5),
            sample(3, 80, role=Role.REGULARISATION),
            sample(4, 80, role=Role.VALIDATION),
        ),
        "foxes",
    )


@torch.inference_mode()  # as nodes run
def begin(parts: Parts, cache: Path, **choices: Any) -> TrainingState:
    spec = quick_spec(**{"train_batch_size": 2, "validate_every_n_steps": -1, **choices})
    return start_run(parts.model, parts.clip, parts.vae, pictures(), spec, cache)


def at_step(state: TrainingState, step: int) -> TrainingState:
    """As after so many steps, where only their number matters."""
    return replace(state, step=step, history=tuple(record(n) for n in range(1, step + 1)))


def record(step: int) -> StepRecord:
    return StepRecord(step, 0, 1 / step, 1e-3, 1.0)


def save(state: TrainingState) -> None:
    """As the end of a node's work."""
    Checkpoints(state.run, run_folder(state.run), CheckpointSpec()).save(state, is_end=True)


def with_steps(state: TrainingState, max_train_steps: int) -> TrainingState:
    """As the launcher does it."""
    spec = replace(state.run.spec, max_train_steps=max_train_steps)
    return replace(state, run=replace(state.run, spec=spec))


def a_while_ago(state: TrainingState) -> None:
    """The states of a run are older than what else is there."""
    for path in run_folder(state.run).glob("state/*"):
        os.utime(path, (time.time() - 60,) * 2)


def trained(state: TrainingState) -> None:
    """What such a run leaves on disk."""
    with RunLog(run_folder(state.run), state):
        save(state)


@torch.inference_mode()
def taken_outside(state: TrainingState, folder: Path, parts: Parts) -> TrainingState:
    """Through a job: no VAE, no pictures, another MODEL and CLIP of the same file."""
    return start_job(read_job(write_job(folder, state, BASE)), parts.model, parts.clip)


def require_same(one: TrainingState, other: TrainingState) -> None:
    assert one.history == other.history and one.validations == other.validations
    assert one.network.keys() == other.network.keys()
    assert all(torch.equal(one.network[k], other.network[k]) for k in one.network)


@pytest.mark.parametrize(
    "choices",
    [
        {"validate_every_n_steps": 2},
        {"network": NetworkSpec(4, 2.0, text_encoders=TextEncoders.CLIP)},
        {
            "objective": ObjectiveSpec(
                prior=PriorSpec(prior_preservation=0.5, class_prompt="an animal")
            )
        },
    ],
    ids=["cached text", "trained text encoder", "prior preservation"],
)
def test_a_job_trains_as_the_graph_does(
    choices: dict[str, Any], parts: Parts, outside: Parts, cache: Path, tmp_path: Path
) -> None:
    begun = begin(parts, cache, **choices)
    there = taken_outside(begun, tmp_path / "job", outside)
    assert run_folder(there.run) == run_folder(begun.run)
    with torch.inference_mode():
        require_same(train(there, 2, Listener()), train(begun, 2, Listener()))
    assert trained_lora(there).metadata["ss_tag_frequency"]


def test_a_run_goes_from_the_graph_into_a_job_and_back(
    parts: Parts, outside: Parts, cache: Path, tmp_path: Path
) -> None:
    """A step in the graph, branched, one outside, one in the graph again."""
    begun = begin(parts, cache)
    fast = OptimizerSpec(unet_lr=3e-3)
    with torch.inference_mode():
        branched = branch(train(begun, 1, Listener()), fast, None)
        straight = train(branched, 2, Listener())
        there = taken_outside(branched, tmp_path / "job", outside)
        assert there.run.identity == branched.run.identity != begun.run.identity
        back = taken_outside(train(there, 1, Listener()), tmp_path / "job", parts)
        assert back.step == 2
        require_same(train(back, 1, Listener()), straight)


def test_the_checkpoints_of_one_are_those_of_the_other(
    parts: Parts, outside: Parts, cache: Path, tmp_path: Path
) -> None:
    """Begun in the graph, the job goes on; and the graph from what the job has saved."""
    begun = begin(parts, cache)
    with torch.inference_mode():
        train_as_node(begun, 1)
        there = taken_outside(begun, tmp_path / "job", outside)
        spec = CheckpointSpec()
        assert Checkpoints(there.run, run_folder(there.run), spec).newest(0, 6).step == 1
        train_as_node(there, 2)
        assert Checkpoints(begun.run, run_folder(begun.run), spec).newest(0, 6).step == 2


def test_a_lora_that_is_continued(
    parts: Parts, outside: Parts, cache: Path, tmp_path: Path
) -> None:
    both = NetworkSpec(3, 2.0, text_encoders=TextEncoders.CLIP)
    with torch.inference_mode():
        first = begin(parts, cache, network=both).network
        first = {k: v + 0.01 if k.endswith("up.weight") else v for k, v in first.items()}
        existing = ExistingLora(first, "first")
        for text_encoders in TextEncoders.NONE, TextEncoders.CLIP:
            network = NetworkSpec(9, 9.0, existing=existing, text_encoders=text_encoders)
            begun = begin(parts, cache, network=network)
            there = taken_outside(begun, tmp_path / "job", outside)
            assert there.run.identity == begun.run.identity
            require_same(train(there, 1, Listener()), train(begun, 1, Listener()))


def test_another_base_is_refused(parts: Parts, outside: Parts, cache: Path, tmp_path: Path) -> None:
    begun = begin(parts, cache)
    job = read_job(write_job(tmp_path / "job", begun, BASE))
    key = "diffusion_model.out.2.weight"
    with torch.inference_mode():
        patched = outside.model.clone()
        patched.add_patches({key: ("diff", (torch.ones(4, 320, 3, 3),))})
        with pytest.raises(AtelierError, match="^model: not the one the job"):
            start_job(job, patched, outside.clip)
        skipped = outside.clip.clone()
        skipped.clip_layer(-2)
        with pytest.raises(AtelierError, match="^clip: not the one the job.*precision.*here: none"):
            start_job(job, outside.model, skipped)
        with pytest.raises(AtelierError, match='clip: none is wired, .* the job "job" was made'):
            start_job(job, outside.model, None)
        unknown = replace(job, ingredients=replace(job.ingredients, model="", clip=""))
        assert start_job(unknown, patched, skipped).step == 0


def ready(parts: Parts, cache: Path) -> TrainingState:
    """A run on conditioning that was encoded beforehand, and no text encoder."""
    dataset = pictures()
    dataset = dataset.changed(replace(s, caption_options=CaptionOptions()) for s in dataset.samples)
    spec = quick_spec(train_batch_size=2, validate_every_n_steps=-1)
    with torch.inference_mode():
        entry = parts.clip.encode_from_tokens_scheduled(parts.clip.tokenize("a fox"))
        return start_run(parts.model, None, parts.vae, dataset, spec, cache, Ready(entry))


def test_ready_conditioning_needs_no_text_encoder(
    parts: Parts, outside: Parts, cache: Path, tmp_path: Path
) -> None:
    begun = ready(parts, cache)
    job = read_job(write_job(tmp_path / "job", begun, BASE | {"clip": None}))
    assert job.base_prompt["clip"] is None
    with torch.inference_mode():
        there = start_job(job, outside.model, None)
        require_same(train(there, 2, Listener()), train(begun, 2, Listener()))


# The nodes


@pytest.fixture(scope="module")
def begun(parts: Parts, cache: Path) -> TrainingState:
    return begin(parts, cache)


def export(state: TrainingState, graph: Any = GRAPH, node: str = "12:3", **more: Any) -> Any:
    hidden = {io.Hidden.prompt: graph, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    clone = prepared(ExportTrainingJob, hidden)
    with torch.inference_mode(), CurrentNodeContext("p", node):
        return clone.execute(state=state, **{"job_name": "", **more})


def load(job: str, parts: Parts, **more: Any) -> tuple[Any, ...]:
    with torch.inference_mode():
        return LoadTrainingJob.execute(job, parts.model, parts.clip, **more).args


def test_the_part_of_the_graph_that_loads_the_base() -> None:
    found = base_of_state(GRAPH, "12:3")
    assert (found["model"], found["clip"]) == (["4:1", 0], ["4:1", 1])
    assert found["prompt"].keys() == {"1", "4:1"}
    assert found["prompt"]["1"].keys() == {"class_type", "inputs"}
    json.dumps(found, allow_nan=False)


def test_a_base_without_a_text_encoder() -> None:
    unwired = GRAPH["5"]["inputs"] | {"conditioning": ["9", 0]}
    del unwired["clip"]
    found = base_of_state(changed(n5={**GRAPH["5"], "inputs": unwired}), "12:3")
    assert (found["model"], found["clip"]) == (["4:1", 0], None)
    assert found["prompt"].keys() == {"1", "4:1"}


def test_a_job_without_a_text_encoder_comes_back(
    parts: Parts, outside: Parts, cache: Path, texts: list[str]
) -> None:
    unwired = {k: v for k, v in GRAPH["5"]["inputs"].items() if k != "clip"}
    export(ready(parts, cache), changed(n5={**GRAPH["5"], "inputs": unwired}))
    with torch.inference_mode():
        train_as_node(LoadTrainingJob.execute("foxes", outside.model).args[0], 1)
        state, model, clip, lora, _ = LoadTrainingJob.execute("foxes", outside.model).args
    assert state.step == 1 and clip is None and len(model.patches) > 0
    assert texts[-1].startswith("step 1 of 6: not being trained")


def test_the_trigger_phrase_comes_back_with_the_lora(begun: TrainingState, outside: Parts) -> None:
    export(begun)
    state, _, _, lora, _ = load("foxes", outside)
    assert lora.metadata["modelspec.trigger_phrase"] == PHRASE
    gone_on_with = train_as_node(state, 1)
    assert trained_lora(gone_on_with).metadata["modelspec.trigger_phrase"] == PHRASE


def changed(**nodes: Any) -> dict[str, Any]:
    return {**GRAPH, **{name.removeprefix("n"): node for name, node in nodes.items()}}


OTHER = {
    "class_type": "AtelierTrainLoRA",
    "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0]},
}


def test_two_beginnings_on_the_same_models_are_one_base() -> None:
    both = {"class_type": "Switch", "inputs": {"a": ["6", 0], "b": ["8", 0]}}
    links = {"model": ["4:1", 0], "clip": ["4:1", 1]}
    same = {"class_type": "AtelierTrainLoRA", "inputs": links}
    assert base_of_state(changed(n7=both, n8=same), "12:3") == base_of_state(GRAPH, "12:3")


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({}, "does not tell which node began it"),
        (changed(n6={"class_type": "X", "inputs": {}}), "does not tell which node began it"),
        (
            changed(
                n7={"class_type": "Switch", "inputs": {"a": ["6", 0], "b": ["8", 0]}}, n8=OTHER
            ),
            "any of 2 nodes that work with different models",
        ),
        (
            changed(n1={"class_type": "L", "inputs": {"model": ["8", 1]}}, n8=OTHER),
            r"it comes from AtelierTrainLoRA \(node 8\)",
        ),
        (
            changed(n1={"class_type": "TrainLoraNode", "inputs": {}}),
            r"it comes from TrainLoraNode \(node 1\)",
        ),
        (changed(n1={"class_type": "L", "inputs": {"x": ["9.0.1", 0]}}), "made while the graph"),
    ],
)
def test_a_base_that_no_job_can_load_is_refused(graph: Any, said: str) -> None:
    with pytest.raises(AtelierError, match=said):
        base_of_state(graph, "12:3")


def test_export_says_where_and_how(begun: TrainingState, output: Path) -> None:
    result = export(begun)
    folder = Path(result.args[0])
    assert folder == output / "atelier/jobs/foxes"
    job = read_job(folder)
    assert job.base_prompt["model"] == ["4:1", 0]
    assert json.loads((folder / "workflow.json").read_text()) == {"nodes": []}
    (text,) = result.ui.as_dict()["text"]
    assert text.startswith("output/atelier/jobs/foxes: ")
    assert "from step 0 to 6" in text and str(folder) in shlex.split(text.splitlines()[1])
    assert export(begun).args[0] == str(folder)
    assert Path(export(begun, job_name=" my foxes ").args[0]).name == "my_foxes"
    assert jobs()[0] == "my_foxes" and sorted(jobs()) == ["foxes", "my_foxes"]


def test_the_graph_is_kept_back_where_it_is_to_be(
    begun: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "disable_metadata", True)
    assert not (Path(export(begun).args[0]) / "workflow.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "C:x", "..", ".hidden"])
def test_a_name_that_leads_elsewhere_is_refused(begun: TrainingState, name: str) -> None:
    assert "must be a plain name" in ExportTrainingJob.validate_inputs(name)
    with pytest.raises(AtelierError, match="must be a plain name"):
        export(begun, job_name=name)


@pytest.mark.parametrize("job", ["none", "../foxes", "/etc", "", "other"])
def test_only_jobs_that_are_there_can_be_loaded(begun: TrainingState, job: str) -> None:
    export(begun)
    assert "Press R" in LoadTrainingJob.validate_inputs(job)
    with pytest.raises(AtelierError, match="Press R"):
        load(job, begun.run.models)
    assert LoadTrainingJob.validate_inputs("foxes") is True


def test_the_command_is_what_this_comfyui_was_started_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = COMFYUI / "custom_nodes/lora-atelier/launch.py"
    job = COMFYUI / "output/atelier/jobs/my fox"
    monkeypatch.setattr(args, "cpu", False)
    monkeypatch.setattr(args, "base_directory", None)
    assert launch_command(installed, job) == (
        "accelerate launch --num_processes 1 custom_nodes/lora-atelier/launch.py "
        "'output/atelier/jobs/my fox'"
    )
    python = COMFYUI.parent / "python_embeded" / "python.exe"
    monkeypatch.setattr(sys, "executable", str(python))
    assert launch_command(installed, job).startswith(
        "../python_embeded/python.exe -m accelerate.commands.launch --num_processes 1 custom_nodes/"
    )
    monkeypatch.undo()
    monkeypatch.setattr(args, "cpu", True)
    monkeypatch.setattr(args, "base_directory", str(tmp_path))
    monkeypatch.setattr(args, "output_directory", "elsewhere")
    monkeypatch.setattr(args, "extra_model_paths_config", [["a.yaml", "b.yaml"], ["c.yaml"]])
    here = os.getcwd()
    files = [f"{here}/{name}.yaml" for name in "abc"]
    assert shlex.split(launch_command(tmp_path / "custom_nodes/p/launch.py", tmp_path / "j")) == [
        *("accelerate", "launch", "--num_processes", "1"),
        *(f"{tmp_path}/custom_nodes/p/launch.py", f"{tmp_path}/j"),
        *("--comfyui", str(COMFYUI), "--base-directory", str(tmp_path)),
        *("--output-directory", f"{here}/elsewhere"),
        *(word for file in files for word in ("--extra-model-paths-config", file)),
        "--cpu",
    ]
    assert LAUNCHER.parent == Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("option", [*PRECISION, "--fast"])
def test_options_that_make_another_base_model_are_passed_on(
    option: str, monkeypatch: pytest.MonkeyPatch, begun: TrainingState, outside: Parts
) -> None:
    """ComfyUI's own parser reads them out of the command again."""
    given = [option, "fp16_accumulation"] if option == "--fast" else [option]
    for name, value in vars(parser.parse_args(given)).items():
        monkeypatch.setattr(args, name, set(value or ()) if name == "fast" else value)
    monkeypatch.setattr(args, "cpu", True)
    words = shlex.split(launch_command(LAUNCHER, Path("/jobs/fox")))
    assert words[words.index("--comfyui") + 2 :] == [*given, "--cpu"]
    export(begun)
    clip = outside.clip.clone()
    clip.clip_layer(-2)
    with pytest.raises(AtelierError, match=f"here: {' '.join(given)}\\)"):
        load("foxes", Parts(outside.model, clip, None))


def test_words_for_either_shell() -> None:
    assert quoted("a b", windows=True) == '"a b"' and quoted("C:\\a", windows=True) == "C:\\a"
    assert quoted("a b", windows=False) == "'a b'" and quoted("a&b", windows=True) == '"a&b"'


def test_a_job_shows_its_newest_state(
    begun: TrainingState, outside: Parts, texts: list[str]
) -> None:
    export(begun)
    state, model, clip, lora, losses = load("foxes", outside)
    assert (state.step, losses["loss"]) == (0, [])
    assert texts[-1] == "step 0 of 6: not trained outside yet"
    stamps = {LoadTrainingJob.fingerprint_inputs("foxes")}
    with torch.inference_mode():
        after_two = train_as_node(state, 2)
    stamps.add(LoadTrainingJob.fingerprint_inputs("foxes"))
    state, model, clip, lora, losses = load("foxes", outside)
    require_same(state, after_two)
    assert lora.keys() == after_two.network.keys() and len(losses["loss"]) == 2
    assert len(model.patches) > 0 and model.model is outside.model.model
    assert texts[-1].startswith("step 2 of 6: not being trained, last step 0:")
    assert "loss " in texts[-1].splitlines()[-1]
    assert RUNS.newest_first()[0].step_now == 2
    history = run_folder(begun.run) / "history.jsonl"
    os.utime(history, (time.time() - 7200,) * 2)
    stamps.add(LoadTrainingJob.fingerprint_inputs("foxes"))
    load("foxes", outside)
    assert "step 2 of 6: not being trained, last step 2:00:" in texts[-1]
    with training_alone(run_folder(begun.run), "wait"):
        stamps.add(LoadTrainingJob.fingerprint_inputs("foxes"))
        load("foxes", outside)
    assert "step 2 of 6: being trained, last step 2:00:" in texts[-1]
    trained(at_step(state, 6))
    load("foxes", outside)
    assert texts[-1].startswith("step 6 of 6: finished")
    stamps.add(LoadTrainingJob.fingerprint_inputs("foxes"))
    assert len(stamps) == 5 and LoadTrainingJob.fingerprint_inputs("none") == ""


def test_a_run_of_more_steps_than_its_job_is_found(begun: TrainingState, outside: Parts) -> None:
    """The launcher may be told another end."""
    export(begun)
    longer = replace(begun.run, spec=replace(begun.run.spec, max_train_steps=9))
    save(at_step(replace(begun, run=longer), 8))
    state = load("foxes", outside)[0]
    assert (state.step, state.run.spec.max_train_steps) == (8, 9)


def test_the_run_that_the_launcher_gave_another_batch_size_is_found(
    begun: TrainingState, outside: Parts
) -> None:
    """It is another run; the one that was trained last counts."""
    export(begun)
    trained(at_step(begun, 2))
    os.utime(run_folder(begun.run) / "history.jsonl", (time.time() - 60,) * 2)
    stamps = {LoadTrainingJob.fingerprint_inputs("foxes")}
    trained(at_step(with_batch_size(begun, 3), 1))
    strange = replace(begun.run, spec=replace(begun.run.spec, seed=8), identity="ab" * 32)
    trained(at_step(replace(begun, run=strange), 3))
    stamps.add(LoadTrainingJob.fingerprint_inputs("foxes"))
    state = load("foxes", outside)[0]
    assert (state.step, state.run.spec.train_batch_size) == (1, 3) and len(stamps) == 2
    os.utime(run_folder(begun.run) / "history.jsonl")
    assert load("foxes", outside)[0].step == 2


def test_only_states_of_the_last_start_count(
    begun: TrainingState, outside: Parts, texts: list[str]
) -> None:
    """Trained to the end, then with fewer steps, again from the first, and with more."""
    export(begun)
    save(at_step(begun, 2))
    trained(at_step(begun, 6))
    shorter = with_steps(begun, 3)
    other = Outside(shorter)
    assert load("foxes", outside)[0].step == 0
    assert texts[-1].startswith("step 0 of 3: being trained")
    other.step(1)
    save(at_step(shorter, 1))
    other.step(2)
    state = load("foxes", outside)[0]
    assert (state.step, state.run.spec.max_train_steps) == (1, 3)
    other.end()
    trained(at_step(shorter, 3))
    load("foxes", outside)
    assert texts[-1].startswith("step 3 of 3: finished")

    again = Outside(shorter)
    a_while_ago(shorter)
    assert load("foxes", outside)[0].step == 0
    again.end()
    assert texts[-1].startswith("step 0 of 3: being trained")

    longer = Outside(at_step(with_steps(begun, 9), 3))
    state = load("foxes", outside)[0]
    assert (state.step, state.run.spec.max_train_steps) == (3, 3)
    assert texts[-1].startswith("step 3 of 9: being trained")
    longer.end()


def test_a_state_at_other_rates_is_none_of_the_last_start(
    begun: TrainingState, outside: Parts
) -> None:
    """Begun anew with more steps, a schedule gives the same step other rates."""
    export(begun)
    trained(at_step(begun, 2))
    other = Outside(with_steps(begun, 9))
    for number in (1, 2, 3):
        other.log.step(replace(record(number), learning_rate=5e-4))
    assert load("foxes", outside)[0].step == 0
    other.end()


def test_a_state_counts_though_the_history_broke_off(begun: TrainingState, outside: Parts) -> None:
    export(begun)
    Outside(begun).end()
    os.utime(run_folder(begun.run) / "history.jsonl", (time.time() - 60,) * 2)
    save(at_step(begun, 4))
    assert load("foxes", outside)[0].step == 4


def test_one_run_is_trained_in_one_place(
    begun: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_atelier.training.runs.folder_lock.PATIENCE_SECONDS", 0.1)
    other = Outside(begun)
    other.step(1)
    with torch.inference_mode():
        with pytest.raises(AtelierError, match=f"already, by process {os.getpid()}.*queue again"):
            train_as_node(begun, 1)
        assert len((other.folder / "history.jsonl").read_text().splitlines()) == 1
        other.end()
        train_as_node(begun, 1)


def test_another_runs_states_and_broken_files_are_passed_over(
    begun: TrainingState, outside: Parts
) -> None:
    export(begun)
    folder = run_folder(begun.run)
    stranger = replace(begun.run, identity="ab" * 32)
    for state in (at_step(begun, 3), at_step(replace(begun, run=stranger), 5)):
        Checkpoints(state.run, folder, CheckpointSpec()).save(state, is_end=True)
    (folder / "state/step00000006.safetensors").write_bytes(b"cut short")
    assert load("foxes", outside)[0].step == 3


class Outside:
    """Another process that trains the job, as far as its files tell."""

    def __init__(self, state: TrainingState) -> None:
        self.folder = run_folder(state.run)
        self._alone = training_alone(self.folder, "wait")
        self._alone.__enter__()
        self.log = RunLog(self.folder, state)

    def step(self, number: int) -> None:
        self.log.step(record(number))

    def end(self) -> None:
        """However it came to it."""
        self._alone.__exit__(None, None, None)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node showed on itself."""
    shown: list[str] = []
    monkeypatch.setattr("lora_atelier.nodes.train.jobs.show_text", shown.append)
    return shown


@pytest.fixture
def each_look(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen outside whenever the watcher rests."""

    def do(work: Callable[[], None]) -> None:
        monkeypatch.setattr("lora_atelier.nodes.train.job_watch.LOOK_SECONDS", 0.0)
        monkeypatch.setattr("lora_atelier.nodes.train.job_watch.time.sleep", lambda seconds: work())

    return do


def test_a_job_is_watched_until_its_end(
    begun: TrainingState, outside: Parts, texts: list[str], each_look: Any
) -> None:
    export(begun)
    other, numbers = Outside(begun), iter(range(1, 7))

    def work() -> None:
        number = next(numbers)
        other.step(number)
        assert RUNS.newest_first()[0].step_now == number - 1
        if number == 6:
            save(at_step(begun, 6))
            other.end()

    each_look(work)
    state = load("foxes", outside, watch=True)[0]
    assert state.step == 6 and next(numbers, None) is None
    report = RUNS.newest_first()[0].report()
    assert report["points"]["step"] == [1, 2, 3, 4, 5, 6]
    assert (report["last_step"], report["status"]) == (6, "finished")
    assert "the training goes on" in report["messages"][0]["text"]
    assert texts[-1].startswith("step 6 of 6: finished")


def test_the_watching_ends_when_nobody_trains_or_the_person_wants_it(
    begun: TrainingState, each_look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, looks = Outside(begun), iter(range(100))
    run = JobRun(begun, other.folder)

    os.utime(other.folder / "history.jsonl", (time.time() - 7200,) * 2)  # a step takes its time

    def work() -> None:
        if next(looks) == 3:
            other.end()

    each_look(work)
    with watched() as monitor:
        run.follow(monitor)
    assert next(looks) == 4
    assert not run.is_trained()

    other = Outside(begun)
    asked: list[bool] = []
    with watched() as monitor:
        each_look(lambda: asked.append(monitor.finish()))
        run.follow(monitor)
    assert asked == [True] and run.is_trained()
    other.end()


def test_a_history_that_goes_back_is_drawn_anew(begun: TrainingState) -> None:
    other = Outside(begun)
    for number in (1, 2, 3):
        other.step(number)
    run = JobRun(begun, other.folder)
    with watched() as monitor:
        run.catch_up(monitor)
        point = ValidationPoint(2, 0.5, 0.5, (), ())
        other.log.rewind(replace(at_step(begun, 2), validations=(point,)))
        other.step(3)
        with (other.folder / "history.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')  # a line that is being written
        run.catch_up(monitor)
        report = monitor.report()
    other.end()
    assert report["points"]["step"] == [1, 2, 3] and run.reached == 3
    assert [drawn[0] for drawn in report["validation"]] == [2]


@pytest.fixture(autouse=True)
def no_runs_stay(output: Path) -> Iterator[None]:
    yield
    shutil.rmtree(output, ignore_errors=True)


def test_a_run_without_an_identity_is_found_from_its_job(
    begun: TrainingState, outside: Parts
) -> None:
    unknown = replace(begun, run=replace(begun.run, identity=""))
    export(unknown)
    save(at_step(load("foxes", outside)[0], 3))
    assert load("foxes", outside)[0].step == 3
