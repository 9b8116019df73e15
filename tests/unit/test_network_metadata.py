"""What the file says of the network it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.metadata import network_metadata
from lora_atelier.training.results.lora_file import lora_metadata
from lora_atelier.training.runs.run import start

Make = Callable[..., Any]


def facts(make_run: Make, **choices: Any) -> dict[str, str]:
    return lora_metadata(start(make_run(network=NetworkSpec(**choices))))


def arguments(make_run: Make, **choices: Any) -> dict[str, str]:
    return json.loads(facts(make_run, **choices)["ss_network_args"])


@pytest.mark.parametrize(
    ("algorithm", "module", "algo"),
    [
        (Algorithm.DORA, "lycoris.kohya", "locon"),
        (Algorithm.LOHA, "lycoris.kohya", "loha"),
        (Algorithm.LOKR, "lycoris.kohya", "lokr"),
        (Algorithm.FULL, "lycoris.kohya", "full"),
        (Algorithm.OFT, "lycoris.kohya", "diag-oft"),
        (Algorithm.BOFT, "lycoris.kohya", "boft"),
    ],
)
def test_other_algorithms_than_lora_are_named_as_lycoris_names_them(
    algorithm: Algorithm, module: str, algo: str, make_run: Make
) -> None:
    told = facts(make_run, algorithm=algorithm)
    assert told["ss_network_module"] == module
    assert json.loads(told["ss_network_args"])["algo"] == algo


def test_plain_lora_says_nothing_that_kohya_would_not(make_run: Make) -> None:
    told = facts(make_run, network_dim=8, network_alpha=4.0)
    assert told["ss_network_module"] == "networks.lora"
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("8", "4.0")
    absent = ("ss_network_args", "ss_network_dropout", "ss_scale_weight_norms")
    assert not told.keys() & set(absent)


def test_every_other_choice_is_told(make_run: Make) -> None:
    lora = arguments(make_run, conv_dim=8, conv_alpha=2.0, rank_dropout=0.1, module_dropout=0.2)
    assert lora == {
        "conv_dim": "8",
        "conv_alpha": "2.0",
        "rank_dropout": "0.1",
        "module_dropout": "0.2",
    }
    dora = arguments(make_run, algorithm=Algorithm.DORA, rs_lora=True, block_dims=(4, 8))
    assert dora == {
        "algo": "locon",
        "dora_wd": "True",
        "wd_on_output": "False",
        "rs_lora": "True",
        "block_dims": "4,8",
    }
    assert arguments(make_run, algorithm=Algorithm.LOKR, lokr_factor=8)["factor"] == "8"
    told = facts(make_run, network_dropout=0.3, scale_weight_norms=1.5)
    assert told["ss_network_dropout"] == "0.3"
    assert told["ss_scale_weight_norms"] == "1.5"


def test_a_continued_lora_tells_the_rank_of_the_file_and_its_name(make_run: Make) -> None:
    tensors = start(make_run(network=NetworkSpec(3, 1.5))).network
    continued = NetworkSpec(existing=ExistingLora(tensors, "old.safetensors"))
    told = network_metadata(continued, tensors)
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == (3, 1.5)
    assert told["atelier.existing_lora"] == "old.safetensors"
    mixed = start(make_run(network=NetworkSpec(4, 4.0, block_dims=(2, 8)))).network
    told = network_metadata(continued, mixed)
    assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("Dynamic", "Dynamic")
