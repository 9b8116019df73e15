"""A job leaves the graph through the real server and comes back into it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from host import HostServer
from training_graph import (
    DATASET,
    LOADER,
    TRAIN,
    Prompt,
    Watched,
    few_pictures,
    node,
    training,
)

pytestmark = pytest.mark.slow
HORIZON = 12


@pytest.fixture(autouse=True)
def folder(server: HostServer) -> Iterator[Path]:
    """Of the jobs; gone afterwards, since their names are choices of a node."""
    few_pictures(server)
    place = server.base / "output/atelier/jobs"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def exporting(steps: int = 0, name: str = "", seed: int = 3) -> Prompt:
    """Start Training -> Train Steps (in two nodes), if any -> Export Training Job."""
    whole = training("few")
    begin = {k: v for k, v in whole[TRAIN]["inputs"].items() if k != "resume"}
    prompt = {key: whole[key] for key in (LOADER, DATASET, "3", "4", "5")}
    prompt["start"] = node(
        "AtelierStartTraining", **begin | {"max_train_steps": HORIZON, "seed": seed}
    )
    source = "start"
    for number in range(2 if steps else 0):
        name_of_piece = f"piece-{number}"
        prompt[name_of_piece] = node(
            "AtelierTrainSteps", state=[source, 0], amount=steps // 2, unit="steps"
        )
        source = name_of_piece
    prompt["export"] = node("AtelierExportJob", state=[source, 0], job_name=name)
    return prompt


def loading(job: str, **more: Any) -> Prompt:
    """Load Training Job -> Save LoRA; no pictures, no VAE."""
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "load": node(
            "AtelierLoadJob", job=job, model=[LOADER, 0], clip=[LOADER, 1], watch=False, **more
        ),
        "save": node(
            "AtelierSaveLoRA",
            lora=["load", 3],
            filename_prefix=f"atelier/of_job-{job}",
            save_precision="float",
            add_to_models_loras=False,
        ),
    }


def go_on(steps: int, source: str = "load") -> Prompt:
    return {"more": node("AtelierTrainSteps", state=[source, 0], amount=steps, unit="steps")} | {
        "more-save": node(
            "AtelierSaveLoRA",
            lora=["more", 3],
            filename_prefix=f"atelier/{source}-more",
            save_precision="float",
            add_to_models_loras=False,
        )
    }


def test_a_run_is_exported_and_its_newest_state_comes_back(
    server: HostServer, folder: Path
) -> None:
    watched = Watched(server, exporting(6))
    text = watched.text("export")
    (job,) = folder.iterdir()
    assert text.startswith("output/atelier/jobs/few: ") and "from step 6 to 12" in text
    command = shlex.split(text.splitlines()[1])
    assert command[:4] == ["accelerate", "launch", "--num_processes", "1"] and str(job) in command
    assert next(Path(word) for word in command if word.endswith("launch.py")).is_absolute()
    base = json.loads((job / "base.json").read_text())
    assert base["prompt"].keys() == {LOADER}
    assert (base["model"], base["clip"]) == ([LOADER, 0], [LOADER, 1])
    assert not list(job.rglob("*.png")) and str(server.base) not in (job / "job.json").read_text()

    begun = Watched(server, loading("few"))
    assert "step 6 of 12" in begun.text("load")
    # What trains on from the job is the same run: the graph finds its checkpoints.
    further = Watched(server, loading("few") | go_on(4))
    further.result.check()
    newest = Watched(server, loading("few"))
    assert newest.ran("load"), "the run has new files, so ComfyUI may not keep what it had"
    assert "step 10 of 12" in newest.text("load")
    (loaded, *_) = sorted((server.base / "output/atelier").glob("of_job-few_*"), reverse=True)
    (trained,) = (server.base / "output/atelier").glob("load-more_*")
    one, other = load_file(loaded), load_file(trained)
    assert all((one[key] == other[key]).all() for key in one) and one.keys() == other.keys()

    again = server.queue(exporting(6, name="few")).check()
    assert [path.name for path in folder.iterdir()] == ["few"] and not again.errors


def test_another_run_gets_a_number_and_the_list_has_both(server: HostServer, folder: Path) -> None:
    server.queue(exporting(name="mine", seed=1004)).check()
    server.queue(exporting(name="mine", seed=1005)).check()
    assert {path.name for path in folder.iterdir()} == {"mine", "mine-2"}
    options = server.object_info()["AtelierLoadJob"]["input"]["required"]["job"][1]["options"]
    assert options == ["none", "mine-2", "mine"]
    assert "not trained outside yet" in Watched(server, loading("mine-2")).text("load")


@pytest.mark.parametrize("name", ["../mine", "..", "a/b", "..\\mine"])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    server: HostServer, folder: Path, name: str
) -> None:
    result = server.queue(exporting(name=name))
    assert result.status == "rejected" and "must be a plain name" in result.message
    assert not folder.exists()


@pytest.mark.parametrize("job", ["../runs", "..", "/etc", "mine/../mine"])
def test_only_what_lies_in_the_folder_is_loaded(server: HostServer, folder: Path, job: str) -> None:
    server.queue(exporting(name="mine")).check()
    result = server.queue(loading(job))
    assert result.status == "rejected"


def test_a_model_that_is_trained_in_the_graph_is_refused(server: HostServer) -> None:
    prompt = exporting(2)
    prompt["start-2"] = node(
        "AtelierStartTraining",
        **prompt["start"]["inputs"] | {"model": ["piece-1", 1], "clip": ["piece-1", 2]},
    )
    prompt["export"]["inputs"]["state"] = ["start-2", 0]
    result = server.queue(prompt)
    assert result.status == "error" and "it comes from AtelierTrainSteps" in result.message
