"""A run that is stopped and goes on is the run that was never stopped, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in_memory import latent_of
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.runs.adapter_precision import AdapterPrecision
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from lora_atelier.training.runs.state_file import load_state, save_state

Make = Callable[..., Any]

NARROW = (AdapterPrecision.BF16_STOCHASTIC, AdapterPrecision.BF16_KAHAN)
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)


def _with(kind: OptimizerType, **choices: Any) -> dict[str, Any]:
    """64 × 64 weights, enough for a state in bytes, and two micro-steps a step."""
    return {
        "network": NetworkSpec(64, 64.0),
        "optimizer": OptimizerSpec(kind, unet_lr=1e-3, **choices),
        "lr_scheduler": CONSTANT,
        "gradient_accumulation_steps": 2,
    }


BIG_PACKAGE = OptimizerType.PYTORCH_OPTIMIZER
RUNS = {
    "one picture a step": {},
    "accumulation, over an epoch's end": {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": LRSchedulerSpec(lr_warmup_ratio=0.7),
    },
    **{kind.value: _with(kind) for kind in OptimizerType if kind is not BIG_PACKAGE},
    **{
        f"pytorch_optimizer {name}": _with(BIG_PACKAGE, optimizer_name=name)
        for name in ("soap", "schedulefreeadamw", "splus")
    },
    "pytorch_optimizer dash, which draws random numbers": _with(BIG_PACKAGE, optimizer_name="dash"),
    "LoRA+": _with(OptimizerType.LION_8BIT, loraplus_lr_ratio=4.0),
    "dropouts and a limit on norms": {
        "network": NetworkSpec(
            *(8, 8.0),
            network_dropout=0.2,
            rank_dropout=0.2,
            module_dropout=0.2,
            scale_weight_norms=0.05,
        ),
        "gradient_accumulation_steps": 2,
    },
    "DoRA": {"network": NetworkSpec(4, 4.0, Algorithm.DORA)},
    "moving average": _with(OptimizerType.ADAMW, ema_decay=0.9),
    "moving average in 8 bits": _with(OptimizerType.ADAMW_8BIT, ema_decay=0.2, max_grad_norm=0.01),
    **{
        f"adapters in {precision.value}": {
            "adapter_precision": precision,
            "network": NetworkSpec(8, 8.0, network_dropout=0.2, scale_weight_norms=0.05),
            "gradient_accumulation_steps": 2,
        }
        for precision in NARROW
    },
    **{
        f"moving average of {precision.value}": {
            "adapter_precision": precision,
            **_with(OptimizerType.ADAMW_8BIT, ema_decay=0.9),
        }
        for precision in NARROW
    },
    "DoRA in bf16_kahan": {
        "network": NetworkSpec(4, 4.0, Algorithm.DORA),
        "adapter_precision": AdapterPrecision.BF16_KAHAN,
    },
    "a rate that falls with the loss": {
        "lr_scheduler": LRSchedulerSpec(
            LRSchedulerType.REDUCE_ON_PLATEAU, 0.2, lr_scheduler_args="patience=0 threshold=0.5"
        )
    },
}
SHORT = ("one picture a step", "accumulation, over an epoch's end", "AdamW8bit")
AVERAGED = (
    *("moving average", "moving average in 8 bits", "AdamWScheduleFree"),
    *(f"moving average of {precision.value}" for precision in NARROW),
    *("pytorch_optimizer schedulefreeadamw", "pytorch_optimizer splus"),
)


def _same(one: Any, other: Any) -> bool:
    """Equal through and through: types, keys, and every bit of every tensor."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _contents(state: TrainingState) -> tuple:
    return state.step, state.network, state.optimizer, state.history, state.training_weights


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("choices", list(RUNS.values()), ids=list(RUNS))
def test_six_steps_are_three_and_three_bit_for_bit(
    make_run: Make, make_listener: Make, choices: dict, tmp_path: Path
) -> None:
    straight = train(start(make_run(**choices)), 6, make_listener())
    first = train(start(make_run(**choices)), 3, make_listener())
    save_state(tmp_path / "state.safetensors", first)
    torch.rand(17)  # whatever happens between the two
    resumed = train(first, 3, make_listener())
    assert resumed.step == 6
    assert not _same(first.network, resumed.network)
    assert _same(_contents(resumed), _contents(straight))
    from_file = load_state(tmp_path / "state.safetensors", make_run(**choices))
    assert _same(_contents(from_file), _contents(first))
    assert _same(_contents(train(from_file, 3, make_listener())), _contents(straight))


def test_the_eight_bit_run_has_a_state_in_bytes(make_run: Make, make_listener: Make) -> None:
    """Else the case above would not show that bytes survive."""
    state = train(start(make_run(**RUNS["AdamW8bit"])), 1, make_listener())
    moments = state.optimizer["optimizer"]["state"].values()
    # Newer versions of bitsandbytes keep them one level deeper.
    moments = [m.get("__bnb_optimizer_quant_state__", m) for m in moments]
    assert torch.uint8 in {moment["state1"].dtype for moment in moments}


@pytest.mark.parametrize("choices", [RUNS[n] for n in (*SHORT, *AVERAGED)], ids=(*SHORT, *AVERAGED))
def test_the_state_that_goes_in_stays_as_it_is(
    make_run: Make, make_listener: Make, choices: dict
) -> None:
    fresh = start(make_run(**choices))
    state = train(fresh, 2, make_listener())
    for given in (fresh, state):
        before = copy.deepcopy(_contents(given))
        train(given, 3, make_listener())
        assert _same(_contents(given), before)


@pytest.mark.parametrize("name", ["one picture a step", "LoRA+", *AVERAGED])
def test_two_branches_from_one_state_know_nothing_of_each_other(
    make_run: Make, make_listener: Make, name: str
) -> None:
    trunk = train(start(make_run(**RUNS[name])), 2, make_listener())
    long, short = train(trunk, 4, make_listener()), train(trunk, 1, make_listener())
    again = train(trunk, 4, make_listener())
    assert _same(_contents(long), _contents(again))
    assert long.history[: len(short.history)] == short.history


def test_the_same_run_in_a_node_gives_the_same(make_run: Make, make_listener: Make) -> None:
    """Nodes run in inference mode."""
    outside = train(start(make_run()), 3, make_listener())
    with torch.inference_mode():
        inside = train(train(start(make_run()), 1, make_listener()), 2, make_listener())
    assert _same(_contents(inside), _contents(outside))


@pytest.mark.parametrize(
    ("where", "kept"),
    [({"step": 4}, 4), ({"micro_step": 8}, 3), ({"micro_step": 9}, 4), ({"micro_step": 1}, 0)],
    ids=["after step 4", "in the middle of step 4", "before step 5", "before step 1"],
)
@pytest.mark.parametrize("error", [RuntimeError("cancelled"), KeyboardInterrupt()])
def test_an_interrupted_run_hands_over_its_last_whole_step(
    make_run: Make, make_listener: Make, where: dict, kept: int, error: BaseException
) -> None:
    def run() -> TrainingState:
        return start(make_run(gradient_accumulation_steps=2))

    listener = make_listener(error=error, **where)
    with pytest.raises(type(error)) as raised:
        train(run(), 6, listener)
    assert raised.value is error
    (state,) = listener.interrupted
    expected = train(run(), kept, make_listener()) if kept else run()
    assert _same(_contents(state), _contents(expected))
    straight = train(run(), 6, make_listener())
    assert _same(_contents(train(state, 6 - kept, make_listener())), _contents(straight))


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize(("micro_step", "kept"), [(1, 0), (2, 0), (7, 3), (8, 3)])
def test_an_interrupted_run_of_narrow_adapters_goes_on_as_if_it_never_was(
    make_run: Make,
    make_listener: Make,
    micro_step: int,
    kept: int,
    ema_decay: float,
    precision: AdapterPrecision,
) -> None:
    """Even before the first step: what is handed over then is rounded already."""

    def run() -> TrainingState:
        optimizer = OptimizerSpec(ema_decay=ema_decay)
        choices = {"optimizer": optimizer, "adapter_precision": precision}
        return start(make_run(gradient_accumulation_steps=2, **choices))

    listener = make_listener(error=RuntimeError("cancelled"), micro_step=micro_step)
    with pytest.raises(RuntimeError):
        train(run(), 6, listener)
    (state,) = listener.interrupted
    assert _same(_contents(state), _contents(train(run(), kept, make_listener())))
    straight = train(run(), 6, make_listener())
    assert _same(_contents(train(state, 6 - kept, make_listener())), _contents(straight))


def test_a_run_that_ends_well_is_not_interrupted(make_run: Make, make_listener: Make) -> None:
    listener = make_listener()
    train(start(make_run()), 2, listener)
    assert listener.interrupted == []


def test_after_an_interruption_the_base_model_answers_as_before(
    make_run: Make, make_listener: Make
) -> None:
    run = make_run()
    net = run.model.net
    caption = run.data.conditioning["caption 0"]
    inputs = (latent_of(run.data, 0)[None], torch.ones(1), caption[None])
    parameters = list(map(id, net.parameters()))
    with torch.inference_mode():
        answer = net(*inputs)
    with pytest.raises(RuntimeError):
        train(start(run), 6, make_listener(error=RuntimeError("x"), step=2))
    with torch.inference_mode():
        assert torch.equal(net(*inputs), answer)
    assert list(map(id, net.parameters())) == parameters


def test_the_hosts_random_numbers_are_left_alone(make_run: Make, make_listener: Make) -> None:
    run = make_run()
    before = torch.get_rng_state()
    train(start(run), 2, make_listener())
    assert torch.equal(before, torch.get_rng_state())


def test_a_state_knows_its_size(make_run: Make, make_listener: Make) -> None:
    """Weights and AdamW's two moments at rank 4, two alphas, a counter for each of four weights."""
    run = make_run()
    weights = 4 * (21 + 64) + 4 * (64 + 16)
    assert start(run).get_ram_usage() == 4 * (weights + 2)
    trained = train(start(run), 1, make_listener())
    assert trained.get_ram_usage() == 4 * (3 * weights + 2 + 4)


@pytest.mark.parametrize("name", AVERAGED)
def test_a_state_holds_the_weights_to_use_beside_those_that_train_on(
    make_run: Make, make_listener: Make, name: str
) -> None:
    fresh = start(make_run(**RUNS[name]))
    assert fresh.training_weights is None
    state = train(fresh, 3, make_listener())
    assert state.training_weights is not None
    assert state.training_weights.keys() == state.network.keys()
    weights = [key for key in state.network if key.endswith("weight")]
    assert not any(torch.equal(state.network[k], state.training_weights[k]) for k in weights)
    lean = train(start(make_run(**RUNS["AdamW"])), 3, make_listener())
    assert lean.training_weights is None
    size = sum(4 * value.numel() for value in state.training_weights.values())
    without = replace(state, training_weights=None)
    assert state.get_ram_usage() - without.get_ram_usage() == size
