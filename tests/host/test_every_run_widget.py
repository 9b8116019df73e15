"""No option is decoration: the widgets of the nodes that say how a run goes and what it leaves.

The tables are read like that of `test_every_widget.py`; what is changed here are pieces of a run,
its files and its previews.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_atelier.nodes.graph.outputs import output_folder
from lora_atelier.training.errors import AtelierError
from widget_rows import Row, check_row, differ
from widget_runs import (
    CHECKPOINTS,
    LOAD,
    LOAD_STATE,
    NETWORK,
    OPTIMIZER,
    PIECES,
    PREVIEW,
    SAVE_STATE,
    SCHEDULER,
    START,
    STEPS,
    TRAIN,
    Bench,
    Settings,
    call,
    widgets_of,
)

pytestmark = pytest.mark.slow

HELD_OUT = {LOAD: {"validation_fraction": 0.2}}
ANEW = {STEPS: {"resume": "start_again"}}
"""For what may be changed when a run is resumed: what was recorded stays as it was."""
START_ROWS = {
    "max_train_steps": Row(8, "rates", elsewhere=ANEW),
    "train_batch_size": Row(2, "losses"),
    "gradient_accumulation_steps": Row(2, "losses"),
    "mixed_precision": Row("bf16", "losses"),
    "seed": Row(1, "losses"),
    "adapter_precision": Row("bf16_stochastic", "weights"),
    "gradient_checkpointing": Row(True, "ss_gradient_checkpointing"),
    "compile_blocks": Row(True, "ss_torch_compile"),
    "validate_every_n_steps": Row(-1, "validations", elsewhere={**HELD_OUT, **ANEW}),
}
STEPS_ROWS = {
    "amount": Row(3, "losses"),
    "unit": Row("epochs", "losses"),
}

OFTEN = {"save_every_n_steps": 1}
DIVERGING = {**HELD_OUT, OPTIMIZER: {"unet_lr": 0.3}, TRAIN: {"validate_every_n_steps": 1}}
CHECKPOINT_ROWS = {
    "save_every_n_steps": Row(1, "files"),
    "save_every_n_epochs": Row(1, "files", elsewhere={TRAIN: {"gradient_accumulation_steps": 5}}),
    "save_every_n_minutes": Row(1e-5, "files"),
    "save_last_n": Row(2, "files", OFTEN),
    "keep_best": Row(False, "files", OFTEN, DIVERGING),
    "save_lora": Row(True, "files"),
    "save_precision": Row("float", "files", {"save_lora": True}),
    "tensorboard": Row(True, "files"),
}

PREVIEW_ROWS = {
    "prompts": Row("a toad", "previews"),
    "negative": Row("a stone", "previews"),
    "seeds": Row("2", "previews"),
    "width": Row(128, "previews"),
    "height": Row(128, "previews"),
    "steps": Row(3, "previews"),
    "cfg": Row(2.0, "previews"),
    "sampler_name": Row("euler_ancestral", "previews"),
    "scheduler": Row("karras", "previews"),
    "every_n_steps": Row(1, "previews"),
    "every_n_epochs": Row(1, "previews", elsewhere={TRAIN: {"gradient_accumulation_steps": 5}}),
    "base_row": Row(False, "previews"),
    "guidance": Row(1.0, "previews", {"cfg": 1.0}, model="flux"),
}
SMALL = {"prompts": "a fox", "width": 64, "height": 64, "steps": 2, "every_n_steps": 2}

TABLE: dict[str, dict[str, Row]] = {
    START: START_ROWS,
    STEPS: STEPS_ROWS,
    CHECKPOINTS: CHECKPOINT_ROWS,
    PREVIEW: PREVIEW_ROWS,
}
BESIDES: dict[str, Settings] = {
    START: {START: {}},
    STEPS: {START: {}, STEPS: {}},
    CHECKPOINTS: {CHECKPOINTS: {}, TRAIN: {"max_train_steps": 4}, NETWORK: {"network_dim": 4}},
    PREVIEW: {PREVIEW: SMALL},
}
ALONE = {
    START: {"on_divergence"},
    STEPS: {"resume"},
    CHECKPOINTS: {"on_save_error"},
    SAVE_STATE: {"filename_prefix"},
    LOAD_STATE: {"file"},
}
"""Widgets with tests of their own below."""


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path) -> Bench:
    return Bench(tiny_checkpoint)


def test_every_widget_of_these_nodes_is_in_a_table() -> None:
    for node_id in PIECES:
        tried = TABLE.get(node_id, {}).keys() | ALONE.get(node_id, set())
        assert tried == widgets_of(node_id).keys()


@pytest.mark.parametrize(
    ("node_id", "widget"), [(node, widget) for node, rows in TABLE.items() for widget in rows]
)
def test_a_widget_changes_what_comes_out(bench: Bench, node_id: str, widget: str) -> None:
    check_row(bench, node_id, widget, TABLE[node_id][widget], BESIDES[node_id])


@pytest.mark.parametrize("node_id", [TRAIN, START])
def test_on_divergence_decides_whether_a_run_goes_back(bench: Bench, node_id: str) -> None:
    wild = {"unet_lr": 10.0, "weight_decay": 10.0}
    said = {}
    for choice in ("stop", "roll_back"):
        settings = {
            OPTIMIZER: wild,
            node_id: {"max_train_steps": 150, "on_divergence": choice},
            SCHEDULER: {"lr_scheduler": "constant", "lr_warmup_ratio": 0.0},
        }
        if node_id == START:
            settings[STEPS] = {"amount": 150}
        with pytest.raises(AtelierError, match="Training diverged at step") as refused:
            bench.run(settings)
        said[choice] = str(refused.value)
    assert "Going back" not in said["stop"]
    assert "Going back 3 times did not help" in said["roll_back"]


@pytest.mark.parametrize("node_id", [TRAIN, STEPS])
def test_resume_decides_whether_the_files_of_an_earlier_run_count(
    bench: Bench, node_id: str
) -> None:
    settings: dict[str, dict[str, Any]] = {START: {}} if node_id == STEPS else {}
    found = {}
    for choice in ("resume", "start_again"):
        bench.runs.clear()
        bench.run(settings)
        found[choice] = bench.run({**settings, node_id: {"resume": choice}})
    assert found["resume"].resumed and not found["start_again"].resumed
    assert not differ(found["resume"].weights, found["start_again"].weights)


def test_on_save_error_decides_whether_a_run_outlives_a_checkpoint_that_cannot_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, dict[str, Any]] = {CHECKPOINTS: {**OFTEN, "on_save_error": "continue"}}
    folder = bench.run(settings).folder
    bench.runs.clear()

    def in_the_way(path: Any, ignore_errors: bool = False) -> None:
        """A file lies where the states should."""
        remove(path, ignore_errors=ignore_errors)
        folder.mkdir(parents=True)
        (folder / "state").write_text("no folder")

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", in_the_way)  # what the bench does before such a run
    assert len(bench.run(settings).losses) == 2
    settings[CHECKPOINTS]["on_save_error"] = "stop"
    with pytest.raises(AtelierError, match="state"):
        bench.run(settings)


def test_a_state_lies_where_it_was_saved_and_comes_back_from_there(bench: Bench) -> None:
    for seed in (0, 1):
        bench.runs.clear()
        bench.run({TRAIN: {"seed": seed, "resume": "start_again"}})
        prefix = f"atelier/saved/seed{seed}"
        call(SAVE_STATE, {"filename_prefix": prefix}, state=bench.state)
        assert (output_folder() / f"{prefix}_00001_.safetensors").is_file()
    first, other = (
        bench.run({LOAD_STATE: {"file": f"saved/seed{seed}_00001_.safetensors"}}) for seed in (0, 1)
    )
    assert len(first.losses) == len(other.losses) == 4  # two more than were saved
    assert differ(first.losses[:2], other.losses[:2]) and differ(first.weights, other.weights)
