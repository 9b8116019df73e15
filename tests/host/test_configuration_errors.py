"""Settings that cannot be are refused, in words, before anything is loaded, decoded or encoded."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import comfy.model_management as mm
import pytest

from in_memory import FIT
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.errors import AtelierError
from tiny_training import load_parts
from widget_runs import NETWORK, OBJECTIVE, OPTIMIZER, SCHEDULER, TRAIN, Settings, call, small_flux

WIRES = {NETWORK: "network", OPTIMIZER: "optimizer", SCHEDULER: "scheduler", OBJECTIVE: "objective"}
DATASET = ImageDataset((Sample(ImageFile("nowhere/a.png", (64, 64)), "a.png", ("a",), fit=FIT),))
"""Its picture is not there: it cannot be decoded."""


class Untouched:
    """Stands for a CLIP or VAE while nothing may be encoded."""

    first_stage_model = True

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for before the settings were judged")


class Case(NamedTuple):
    settings: Settings
    text: str
    """How the message begins."""
    model: str = "sd15"


CASES = {
    "alpha 0 with lokr": Case(
        {NETWORK: {"algorithm": "lokr", "network_alpha": 0.0}},
        "network_alpha is 0.0: it must be a number from 0.001 to 10000. Half the rank or the rank "
        "is usual.",
    ),
    "a regex that matches nothing": Case(
        {NETWORK: {"target_modules": "regex", "target_regex": "attn7"}},
        'target_regex is "attn7", which matches no layer of this model. Its layers have paths such '
        "as ",
    ),
    "a regex that is none": Case(
        {NETWORK: {"target_modules": "regex", "target_regex": "("}},
        'target_regex is "(", which is no regular expression: ',
    ),
    "a block list of the wrong length": Case(
        {NETWORK: {"block_dims": "4, 4"}},
        "block_dims holds 2 numbers, but the chosen layers lie in 4 blocks",
    ),
    "a block list with a word in it": Case(
        {NETWORK: {"block_dims": "4, four"}},
        'block_dims is "4, four": write one whole number for each block',
    ),
    "convolutions where there are none": Case(
        {NETWORK: {"conv_dim": 4}},
        "conv_dim is set, but this model has no convolutions in residual blocks",
        "flux",
    ),
    "an optimizer argument that does not exist": Case(
        {OPTIMIZER: {"optimizer_args": "amsgrd=True"}},
        "optimizer_args: AdamW has no argument amsgrd. Did you mean amsgrad? It takes: ",
    ),
    "an optimizer argument that is no pair": Case(
        {OPTIMIZER: {"optimizer_args": "amsgrad"}},
        'optimizer_args: "amsgrad" is not of the form name=value. ',
    ),
    "betas of an optimizer without": Case(
        {OPTIMIZER: {"optimizer_type": "SGD", "betas": "0.9, 0.99"}},
        "betas is 0.9, 0.99, but SGD has no such setting. Make it empty",
    ),
    "a schedule's argument that does not exist": Case(
        {SCHEDULER: {"lr_scheduler_args": "cycles=3"}},
        "lr_scheduler_args: cosine has no argument cycles. ",
    ),
    "LoRA+ without up matrices": Case(
        {NETWORK: {"algorithm": "loha"}, OPTIMIZER: {"loraplus_lr_ratio": 4.0}},
        "loraplus_lr_ratio is 4, but algorithm loha has no up matrices that could learn faster. ",
    ),
    "a limit on what an average never meets": Case(
        {
            NETWORK: {"scale_weight_norms": 1.0},
            OPTIMIZER: {"optimizer_type": "AdamWScheduleFree"},
        },
        "scale_weight_norms is 1, but AdamWScheduleFree averages weights that are not limited. ",
    ),
    "guidance that no one hears": Case({OBJECTIVE: {"guidance": 1.0}}, "guidance is set: ", "sd15"),
    "a weighting that means nothing to a flow": Case(
        {OBJECTIVE: {"weighting": "min_snr"}}, "weighting is min_snr: ", "flux"
    ),
    "no steps": Case({TRAIN: {"max_train_steps": 0}}, "max_train_steps is 0: "),
}


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Any) -> dict[str, Any]:
    return {"sd15": load_parts(tiny_checkpoint).model, "flux": small_flux()}


def refusal(settings: Settings, model: Any) -> str:
    """What the person reads; nothing must have been loaded by then."""
    mm.unload_all_models()
    nothing = Untouched()
    with pytest.raises(AtelierError) as refused:
        links = {WIRES[node]: call(node, settings[node])[0] for node in WIRES if node in settings}
        call(
            TRAIN,
            settings.get(TRAIN, {}),
            **{"model": model, "clip": nothing, "vae": nothing, "dataset": DATASET, **links},
        )
    assert mm.current_loaded_models == []
    return str(refused.value)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_words_before_anything_is_loaded(
    models: dict[str, Any], name: str
) -> None:
    case = CASES[name]
    assert refusal(case.settings, models[case.model]).startswith(case.text)


@pytest.mark.parametrize(
    ("optimizer", "module", "package"),
    [
        ({"optimizer_type": "Lion"}, "lion_pytorch", "lion-pytorch"),
        ({"optimizer_type": "Prodigy"}, "prodigyopt", "prodigyopt"),
        ({"optimizer_type": "AdamW8bit"}, "bitsandbytes.optim", "bitsandbytes"),
        (
            {"optimizer_type": "pytorch_optimizer", "optimizer_name": "soap"},
            "pytorch_optimizer",
            "pytorch-optimizer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value["optimizer_type"],
)
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    models: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: dict[str, Any],
    module: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # Python's own way to say: there is none
    text = refusal({OPTIMIZER: optimizer}, models["sd15"])
    assert text.startswith(f"optimizer_type {optimizer['optimizer_type']} needs the package ")
    assert text.endswith(
        f"Install it with the Python that runs ComfyUI: python -m pip install {package}"
    )
