"""No option is decoration: each widget, changed alone, changes what comes out of a real run.

Every row of the table names a widget's other value, what that must change (the losses, the LoRA,
the learning rates, a line of the file's metadata, or the picture on the node) and what has to be
set besides for the widget to mean something. The base runs differ from the defaults only where
:data:`widget_runs.BASE` says so. As all runs are told to resume what an earlier one has left, a
widget that is no part of a run's identity would fail here too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_atelier.training.errors import AtelierError
from widget_pictures import MASKS, OTHERS
from widget_rows import Row, check_row, differ
from widget_runs import (
    COMBINE,
    CONFIG,
    EDIT,
    EXISTING,
    FIT,
    LOAD,
    NETWORK,
    OBJECTIVE,
    OPTIMIZER,
    PRIOR,
    SCHEDULER,
    TRAIN,
    Bench,
    Settings,
    merged,
    widgets_of,
)

pytestmark = pytest.mark.slow


EPOCH = {TRAIN: {"max_train_steps": 1, "gradient_accumulation_steps": 5}}
"""One step that sees every picture."""
REGULARISED = {**EPOCH, LOAD: {"role": "regularisation"}}
MASKED = {**EPOCH, LOAD: {"mask": "alpha"}}
HELD_OUT = {LOAD: {"validation_fraction": 0.2}}
REGEX = {"target_modules": "regex", "target_regex": "attn2"}
LOCON = {"conv_dim": 2}
WITH_CLIP = {"text_encoders": "clip"}

NETWORK_ROWS = {
    "network_dim": Row(8, "weights"),
    "network_alpha": Row(4.0, "weights"),
    "preset": Row("light", "ss_network_alpha"),
    "algorithm": Row("loha", "weights"),
    "target_modules": Row("attention", "weights"),
    "target_regex": Row("attn1", "weights", REGEX),
    "conv_dim": Row(2, "weights"),
    "conv_alpha": Row(8.0, "weights", LOCON),
    "rs_lora": Row(True, "weights"),
    "network_dropout": Row(0.5, "weights"),
    "rank_dropout": Row(0.5, "weights"),
    "module_dropout": Row(0.5, "weights"),
    "scale_weight_norms": Row(0.001, "weights"),
    "lokr_factor": Row(8, "weights", {"algorithm": "lokr"}),
    "block_dims": Row("4, 0, 8, 2", "weights"),
    "network_weights": Row(EXISTING, "losses"),
    "text_encoders": Row("clip", "weights"),
    "text_encoder_dim": Row(4, "weights", WITH_CLIP),
    "text_encoder_alpha": Row(4.0, "weights", WITH_CLIP),
}

OPTIMIZER_ROWS = {
    "optimizer_type": Row("Adafactor", "weights"),
    "unet_lr": Row(2e-3, "rates"),
    "weight_decay": Row(0.5, "weights"),
    "max_grad_norm": Row(0.01, "weights"),
    "loraplus_lr_ratio": Row(4.0, "weights"),
    "betas": Row("0.5, 0.9", "weights"),
    "eps": Row("0.01", "weights"),
    "optimizer_args": Row("momentum=0.1", "weights", {"optimizer_type": "SGD", "unet_lr": 1.0}),
    "optimizer_name": Row(
        "adan", "weights", {"optimizer_type": "pytorch_optimizer", "optimizer_name": "soap"}
    ),
    "ema_decay": Row(0.5, "weights"),
    "text_encoder_lr": Row(1e-4, "weights", elsewhere={NETWORK: WITH_CLIP}),
}

SCHEDULER_ROWS = {
    "lr_scheduler": Row("constant", "rates"),
    "lr_warmup_ratio": Row(0.5, "rates"),
    "lr_warmup": Row("steps", "rates"),
    "lr_warmup_steps": Row(1, "rates", {"lr_warmup": "steps"}),
    "lr_scheduler_args": Row("power=3", "rates", {"lr_scheduler": "polynomial"}),
    "preview_steps": Row(40, SCHEDULER),
}

HUBER = {"loss_type": "huber"}
OBJECTIVE_ROWS = {
    "weighting": Row("debiased", "losses"),
    "min_snr_gamma": Row(1.0, "losses", {"max_timestep": 300}, model="v"),
    "loss_type": Row("l1", "losses"),
    "huber_schedule": Row("constant", "losses", HUBER),
    "huber_c": Row(0.5, "losses", HUBER),
    "noise_offset": Row(0.1, "losses"),
    "adaptive_noise_scale": Row(0.5, "losses"),
    "multires_noise_iterations": Row(6, "losses"),
    "multires_noise_discount": Row(0.8, "losses", {"multires_noise_iterations": 6}),
    "ip_noise_gamma": Row(0.1, "losses"),
    "timestep_sampling": Row("cosmap", "losses", model="flow"),
    "logit_mean": Row(1.0, "losses", {"timestep_sampling": "logit_normal"}, model="flow"),
    "logit_std": Row(2.0, "losses", {"timestep_sampling": "sigmoid"}, model="flow"),
    "discrete_flow_shift": Row(6.0, "losses", {"timestep_sampling": "shift"}, model="flow"),
    "min_timestep": Row(500, "losses"),
    "max_timestep": Row(500, "losses"),
    "prior_loss_weight": Row(0.5, "losses", elsewhere=REGULARISED),
    "masked_loss": Row(False, "losses", elsewhere=MASKED),
    "zero_terminal_snr": Row(True, "losses", model="v"),
    "guidance": Row(1.0, "losses", model="flux"),
}

PRIOR_ROWS = {
    "prior_preservation": Row(8.0, "weights"),
    "class_prompt": Row("a stone", "weights"),
    "prior_target": Row("pictures", "losses", elsewhere=REGULARISED),
}

TRAIN_ROWS = {
    "max_train_steps": Row(3, "losses"),
    "train_batch_size": Row(2, "losses"),
    "gradient_accumulation_steps": Row(2, "losses"),
    "mixed_precision": Row("bf16", "losses"),
    "seed": Row(1, "losses"),
    "adapter_precision": Row("bf16_stochastic", "weights"),
    "gradient_checkpointing": Row(True, "ss_gradient_checkpointing"),
    "compile_blocks": Row(True, "ss_torch_compile"),
    "validate_every_n_steps": Row(-1, "validations", {"resume": "start_again"}, HELD_OUT),
}

CUT, WIDE = {"bucket_reso_steps": "64"}, {"bucket_reso_steps": "8"}
RANDOM = {**CUT, "crop": "random"}
FIT_ROWS = {
    "resolution": Row("64, 96", "losses"),
    "enable_bucket": Row(False, "losses", WIDE),
    "bucket_reso_steps": Row("8", "losses"),
    "min_bucket_reso": Row(64, "losses", WIDE),
    "max_bucket_reso": Row(64, "losses", WIDE),
    "bucket_no_upscale": Row(True, "losses", WIDE),
    "crop": Row("random", "losses", CUT),
    "crop_variants": Row(2, "losses", RANDOM),
    "flip_aug": Row(True, "losses"),
    "latents": Row("sample", "losses", model="kl"),
    "background": Row("black", "losses"),
}

SHUFFLED = {"shuffle_caption": True}
EDIT_ROWS = {
    "class_tokens": Row("ohwx", "losses"),
    "caption_prefix": Row("photo of", "losses"),
    "caption_suffix": Row("on a wall", "losses"),
    "add_tags": Row("outside", "losses"),
    "remove_tags": Row("wo*", "losses"),
    "find": Row("evening", "losses"),
    "replace_with": Row("dawn", "losses", {"find": "evening"}),
    "use_regex": Row(True, "losses", {"find": "ev.*ing"}),
    "deduplicate": Row(True, "losses"),
    "sort_tags": Row("alphabetical", "losses"),
    "absorb_above": Row(0.2, "losses", {"class_tokens": "ohwx"}),
    "shuffle_caption": Row(True, "losses"),
    "keep_tokens": Row(2, "losses", SHUFFLED),
    "keep_tokens_separator": Row("", "losses", SHUFFLED),
    "caption_tag_dropout_rate": Row(0.5, "losses"),
    "caption_dropout_rate": Row(0.5, "losses"),
    "caption_dropout_every_n_epochs": Row(1, "losses"),
    "enable_wildcard": Row(True, "losses"),
    "caption_variants": Row(1, "losses", SHUFFLED),
    "caption_separator": Row(";", "losses", SHUFFLED),
}

MASK_FILES = {"mask": "files"}
LOAD_ROWS = {
    "folder": Row(f"../input/{OTHERS}", "losses"),
    "resolution": Row(96, "losses"),
    "num_repeats": Row(2, "ss_num_train_images"),
    "class_tokens": Row("ohwx", "losses"),
    "source": Row("my garden", "atelier.dataset_source"),
    "license": Row("CC0", "atelier.dataset_license"),
    "role": Row("regularisation", "losses"),
    "validation_fraction": Row(0.2, "ss_num_train_images"),
    "captions": Row("files_or_name", "losses"),
    "caption_lines": Row("first", "losses", elsewhere={TRAIN: {"max_train_steps": 2, "seed": 2}}),
    "mask": Row("alpha", "losses"),
    "mask_folder": Row(MASKS, "losses", MASK_FILES),
    "unusable_files": Row("stop", "refused"),
    "loss_weight": Row(0.5, "losses"),
}

TABLE: dict[str, dict[str, Row]] = {
    NETWORK: NETWORK_ROWS,
    OPTIMIZER: OPTIMIZER_ROWS,
    SCHEDULER: SCHEDULER_ROWS,
    OBJECTIVE: OBJECTIVE_ROWS,
    PRIOR: PRIOR_ROWS,
    TRAIN: TRAIN_ROWS,
    FIT: FIT_ROWS,
    EDIT: EDIT_ROWS,
    LOAD: LOAD_ROWS,
    COMBINE: {"name": Row("both of them", "ss_tag_frequency")},
}
BESIDES: dict[str, Settings] = {
    PRIOR: {PRIOR: {}},
    FIT: {**EPOCH, FIT: {"resolution": "64"}},
    EDIT: {**EPOCH, EDIT: {"caption_variants": 3}},  # fewer texts to encode
    LOAD: EPOCH,
}
"""What all rows of a node need."""


@pytest.fixture(scope="module")
def bench(tiny_checkpoint: Path) -> Bench:
    return Bench(tiny_checkpoint)


def test_every_node_that_decides_what_is_learned_is_in_the_table() -> None:
    assert TABLE.keys() == set(CONFIG)


@pytest.mark.parametrize("node_id", TABLE)
def test_every_widget_of_the_node_is_in_the_table(node_id: str) -> None:
    # What is missing here is in tests/host/test_every_run_widget.py.
    elsewhere = {"resume", "on_divergence"} if node_id == TRAIN else set()
    assert TABLE[node_id].keys() == widgets_of(node_id).keys() - elsewhere


@pytest.mark.parametrize(
    ("node_id", "widget"), [(node, widget) for node, rows in TABLE.items() for widget in rows]
)
def test_a_widget_changes_what_comes_out(bench: Bench, node_id: str, widget: str) -> None:
    row, besides = TABLE[node_id][widget], BESIDES.get(node_id, {})
    if row.changes == "refused":
        without, changed = row.settings(node_id, widget, besides)
        bench.run(without)
        with pytest.raises(AtelierError):
            bench.run(changed)
    else:
        check_row(bench, node_id, widget, row, besides)


def test_a_run_that_is_made_again_differs_in_nothing(bench: Bench) -> None:
    """Or what the table shows might be chance."""
    settings = merged(BESIDES[PRIOR], {TRAIN: {"resume": "start_again"}})
    first = bench.run(settings)
    bench.runs.clear()
    again = bench.run(settings)
    assert not again.resumed
    for part in ("losses", "rates", "weights", "pictures"):
        assert not differ(getattr(first, part), getattr(again, part))
    moved = {key for key in first.metadata if first.metadata[key] != again.metadata[key]}
    assert moved <= {"ss_training_finished_at", "modelspec.date"}
