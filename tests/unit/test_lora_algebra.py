"""LoRAs added up and cut down, against the sums and the singular values themselves."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results.lora_algebra import Merged, merge, weighted_lora
from lora_atelier.training.results.lora_layers import LowRank, difference
from lora_atelier.training.results.lora_resize import DynamicMethod, Resize
from lora_atelier.training.results.merge_metadata import merged_metadata
from lora_atelier.training.results.merge_text import merge_summary

CPU = torch.device("cpu")
FRO, CUMULATIVE, RATIO = (
    DynamicMethod.SV_FRO,
    DynamicMethod.SV_CUMULATIVE,
    DynamicMethod.SV_RATIO,
)
AS_IT_IS = Resize()
LINEAR, KERNEL = (40, 24), (16, 12, 3, 3)


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(seed: int, dim: int = 4, alpha: float | None = 3.0, shape: Any = LINEAR) -> dict:
    ones = [1] * (len(shape) - 2)
    parts = {
        "lora_down.weight": numbers(seed, dim, *shape[1:]),
        "lora_up.weight": numbers(seed + 1, shape[0], dim, *ones),
    }
    return parts if alpha is None else parts | {"alpha": torch.tensor(alpha)}


def loha(seed: int, dim: int = 2) -> dict:
    a, b = (LINEAR[0], dim), (dim, LINEAR[1])
    names = zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (a, b, a, b), strict=True)
    parts = {name: numbers(seed + i, *shape) for i, (name, shape) in enumerate(names)}
    return parts | {"alpha": torch.tensor(5.0)}


def lokr(seed: int) -> dict:
    return {
        "lokr_w1": numbers(seed, 4, 4),
        "lokr_w2_a": numbers(seed + 1, 10, 3),
        "lokr_w2_b": numbers(seed + 2, 3, 6),
        "alpha": torch.tensor(6.0),
    }


def expected(parts: dict) -> Tensor:
    """[out, columns] ΔW in float64, written out."""
    own = {key: value.double() for key, value in parts.items()}
    alpha = own.get("alpha")
    if "diff" in own:
        return own["diff"].flatten(1)
    if "lora_up.weight" in own:
        up, down = own["lora_up.weight"].flatten(1), own["lora_down.weight"]
        scale = 1.0 if alpha is None else float(alpha) / len(down)
        return scale * up @ down.flatten(1)
    if "hada_w1_a" in own:
        one, two = (own[f"hada_w{i}_a"] @ own[f"hada_w{i}_b"] for i in (1, 2))
        return float(alpha) / len(own["hada_w1_b"]) * one * two
    w2 = own["lokr_w2_a"] @ own["lokr_w2_b"]
    return float(alpha) / len(own["lokr_w2_b"]) * torch.kron(own["lokr_w1"], w2)


def merged(*loras: tuple[dict, float], resize: Resize = AS_IT_IS, **options: Any) -> Merged:
    named = [
        weighted_lora(f"lora_{i}", {f"lora_unet_x.{k}": v for k, v in parts.items()}, weight)
        for i, (parts, weight) in enumerate(loras, start=1)
    ]
    return merge(named, resize, CPU, **options)


def parts_of(result: Merged) -> dict[str, Tensor]:
    return {key.removeprefix("lora_unet_x."): value for key, value in result.tensors.items()}


def change(result: Merged) -> Tensor:
    return expected(parts_of(result))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


FORMS = {
    "lora": lora(10),
    "without alpha": lora(20, alpha=None),
    "negative alpha": lora(20, alpha=-2.0),
    "rank above the sides": lora(30, dim=60),
    "loha": loha(40),
    "loha of a high rank": loha(50, dim=20),
    "lokr": lokr(60),
    "full": {"diff": numbers(70, *LINEAR)},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_difference_is_what_its_formula_says(form: str) -> None:
    found = difference(FORMS[form], CPU)
    assert relative(found.dense().double(), expected(FORMS[form])) < 1e-6
    assert math.isclose(found.energy(), float(expected(FORMS[form]).square().sum()), rel_tol=1e-5)


def test_a_small_loha_is_taken_by_its_factors() -> None:
    found = difference(FORMS["loha"], CPU)
    assert isinstance(found, LowRank)
    assert found.rank == 4
    assert not isinstance(difference(FORMS["loha of a high rank"], CPU), LowRank)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [1.0, 0.3, -0.7])
def test_a_sum_is_exact(form: str, weight: float) -> None:
    first, second = lora(1, dim=5, alpha=2.0), FORMS[form]
    result = merged((first, 0.8), (second, weight), shapes={"lora_unet_x": LINEAR})
    wanted = 0.8 * expected(first) + weight * expected(second)
    assert relative(change(result), wanted) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_a_single_one_keeps_its_form(form: str) -> None:
    result = merged((FORMS[form], -0.5))
    assert parts_of(result).keys() == FORMS[form].keys()
    assert relative(change(result), -0.5 * expected(FORMS[form])) < 1e-6
    same = merged((FORMS[form], 1.0))
    assert all(torch.equal(value, FORMS[form][key]) for key, value in parts_of(same).items())


def test_ranks_add_up_and_the_scale_is_one() -> None:
    parts = parts_of(merged((lora(1, 4), 1.0), (lora(3, 6), 1.0)))
    assert parts["lora_down.weight"].shape == (10, 24)
    assert parts["lora_up.weight"].shape == (40, 10)
    assert float(parts["alpha"]) == 10


def test_convolutions_keep_their_kernel() -> None:
    one, two = lora(1, 3, shape=KERNEL), lora(3, 2, shape=KERNEL)
    for resize in (AS_IT_IS, Resize(conv_dim=2), Resize(network_dim=2)):
        result = merged((one, 1.0), (two, 1.0), resize=resize)
        parts = parts_of(result)
        rank = 5 if resize is AS_IT_IS else 2
        assert parts["lora_down.weight"].shape == (rank, 12, 3, 3)
        assert parts["lora_up.weight"].shape == (16, rank, 1, 1)
        best = torch.linalg.svdvals(expected(one) + expected(two))[rank:].norm()
        off = (change(result) - expected(one) - expected(two)).norm()
        assert off == pytest.approx(float(best), rel=1e-4, abs=1e-5)


def test_the_limit_of_convolutions_is_for_wide_kernels_alone() -> None:
    resize = Resize(network_dim=4, conv_dim=1)
    assert merged((lora(1, 6), 1.0), resize=resize).layers[0].rank == 4
    narrow = lora(1, 6, shape=(16, 12, 1, 1))
    assert merged((narrow, 1.0), resize=resize).layers[0].rank == 4
    assert merged((lora(1, 6, shape=KERNEL), 1.0), resize=resize).layers[0].rank == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [1, 3, 7])
def test_no_lora_of_that_rank_is_nearer(form: str, dim: int) -> None:
    """Eckart-Young: what is lost are the singular values that were cut off."""
    wanted = expected(FORMS[form]) + expected(lora(90, 8))
    result = merged((FORMS[form], 1.0), (lora(90, 8), 1.0), resize=Resize(network_dim=dim))
    tail = float(torch.linalg.svdvals(wanted)[dim:].norm())
    assert float((change(result) - wanted).norm()) == pytest.approx(tail, rel=1e-4)
    (layer,) = result.layers
    assert layer.rank == dim == int(parts_of(result)["alpha"])
    assert layer.kept == pytest.approx(math.sqrt(1 - (tail / float(wanted.norm())) ** 2), rel=1e-4)


def test_a_limit_above_the_rank_changes_nothing() -> None:
    result = merged((lora(1), 1.0), resize=Resize(network_dim=16))
    assert all(torch.equal(value, lora(1)[key]) for key, value in parts_of(result).items())


def test_a_loha_under_the_limit_becomes_a_lora_all_the_same() -> None:
    result = merged((loha(1), 1.0), resize=Resize(network_dim=16))
    assert parts_of(result).keys() == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert relative(change(result), expected(loha(1))) < 1e-6


def test_a_full_difference_of_low_rank_needs_no_more_than_that() -> None:
    full = {"diff": expected(lora(5, 3)).float()}
    result = merged((full, 1.0), resize=Resize(network_dim=20))
    assert result.layers[0].rank == 3
    assert relative(change(result), expected(full)) < 1e-5


def with_values(*values: float) -> dict:
    """A LoRA of these singular values."""
    side = len(values)
    left = torch.linalg.qr(numbers(1, 40, side))[0]
    right = torch.linalg.qr(numbers(2, 24, side))[0].T
    return {"lora_up.weight": left * torch.tensor(values), "lora_down.weight": right}


@pytest.mark.parametrize(
    ("method", "param", "rank"),
    [
        # squares 64 16 4 1: shares of the norm √(64/85) .868, √(80/85) .970, √(84/85) .994
        *((FRO, 0.85, 1), (FRO, 0.9, 2), (FRO, 0.98, 3), (FRO, 1.0, 4)),
        # sums 8 12 14 15 of 15: .533 .8 .933 1
        *((CUMULATIVE, 0.5, 1), (CUMULATIVE, 0.79, 2), (CUMULATIVE, 0.9, 3), (CUMULATIVE, 1.0, 4)),
        *((RATIO, 1.5, 1), (RATIO, 2.5, 2), (RATIO, 5.0, 3), (RATIO, 10.0, 4)),
    ],
)
def test_the_rank_is_the_least_that_keeps_the_share(
    method: DynamicMethod, param: float, rank: int
) -> None:
    four = with_values(8.0, 4.0, 2.0, 1.0)
    assert merged((four, 1.0), resize=Resize(0, 0, method, param)).layers[0].rank == rank
    capped = merged((four, 1.0), resize=Resize(2, 0, method, param)).layers[0].rank
    assert capped == min(rank, 2)


def test_a_layer_of_one_lora_alone_is_there_too_and_zero_is_no_trouble() -> None:
    one = {f"lora_unet_a.{k}": v for k, v in lora(1).items()}
    two = {f"lora_te_b.{k}": v * 0 for k, v in lora(3).items()}
    named = [weighted_lora("one", one, 1.0), weighted_lora("two", two, 1.0)]
    ticks: list[int] = []
    result = merge(named, Resize(2), CPU, tick=lambda: ticks.append(1))
    assert [(layer.stem, layer.rank) for layer in result.layers] == [
        ("lora_unet_a", 2),
        ("lora_te_b", 1),
    ]
    assert not result.tensors["lora_te_b.lora_up.weight"].any()
    assert len(ticks) == 2
    assert all(value.isfinite().all() for value in result.tensors.values())


def test_biases_and_norms_are_added() -> None:
    one = lora(1) | {"diff_b": numbers(5, 40)}
    two = lora(3) | {"diff_b": numbers(6, 40)}
    result = parts_of(merged((one, 0.5), (two, 2.0), resize=Resize(2)))
    assert torch.allclose(result["diff_b"], 0.5 * one["diff_b"] + 2 * two["diff_b"])
    norms = parts_of(merged(({"w_norm": numbers(1, 8)}, 0.5), ({"w_norm": numbers(1, 8)}, 1.0)))
    assert torch.allclose(norms["w_norm"], 1.5 * numbers(1, 8))
    single = parts_of(merged((one, 0.5)))
    assert torch.equal(single["diff_b"], 0.5 * one["diff_b"])
    bias = parts_of(merged(({"diff": numbers(1, 8)}, 0.5), resize=Resize(1)))
    assert torch.equal(bias["diff"], 0.5 * numbers(1, 8))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (lora(1) | {"dora_scale": numbers(1, 1, 24)}, "x is DoRA. .*neither merged nor resized"),
        ({"oft_blocks": numbers(1, 4, 2, 2)}, "OFT or BOFT"),
        ({"lora_up.weight": numbers(1, 4, 2)}, "makes no adapter"),
        (lora(1) | loha(2), "or more than one"),
        ({"something": numbers(1, 4)}, "an ending that nobody knows"),
        (lora(1) | {"alpha": torch.tensor(torch.nan)}, "not finite"),
    ],
)
def test_what_is_no_difference_is_refused(parts: dict, words: str) -> None:
    with pytest.raises(AtelierError, match=f"lora_2: .*{words}"):
        merged((lora(1), 1.0), (parts, 1.0))


def test_other_sizes_are_refused() -> None:
    with pytest.raises(AtelierError, match="lora_1 40 × 24, lora_2 40 × 32"):
        merged((lora(1), 1.0), (lora(1, shape=(40, 32)), 1.0))


def test_a_kernel_that_nobody_tells_is_asked_for() -> None:
    with pytest.raises(AtelierError, match="x: LoHa and LoKr do not say .* Wire model"):
        merged((loha(1, 20), 1.0), (lokr(1), 1.0))
    shaped = merged((loha(1, 20), 1.0), (lokr(1), 1.0), shapes={"lora_unet_x": (40, 6, 2, 2)})
    assert parts_of(shaped)["diff"].shape == (40, 6, 2, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((-1,), "network_dim is -1"),
        ((0, 5000), "conv_dim is 5000"),
        ((0, 0, FRO, 1.5), "dynamic_param is 1.5: .*a share for sv_fro"),
        ((0, 0, RATIO, 0.9), "dynamic_param is 0.9: .*how many times smaller"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values: tuple, words: str) -> None:
    with pytest.raises(AtelierError, match=words):
        Resize(*values)


def test_the_metadata_says_what_holds_for_the_sum() -> None:
    one = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": "{}",
        "ss_network_dim": "16",
        "ss_steps": "100",
        "modelspec.title": "fox",
        "atelier.dataset_license": "CC0",
    }
    two = one | {"ss_steps": "200", "modelspec.title": "hare", "atelier.dataset_license": "MIT"}
    result = merged((lora(1), 1.0), (lora(3), 0.5), resize=Resize(3))
    told = merged_metadata([(one, 1.0), (two, 0.5)], result.layers, result.tensors)
    made_of = json.loads(told.pop("atelier.merged_from"))
    assert made_of == [{"title": "fox", "weight": 1.0}, {"title": "hare", "weight": 0.5}]
    assert told == {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "3",
        "ss_network_alpha": "3",
        "atelier.dataset_license": "CC0; MIT",
    }


def test_what_is_told_of_the_result() -> None:
    four = with_values(8.0, 4.0, 2.0, 1.0)
    result = merged((four, 1.0), resize=Resize(2))
    assert merge_summary(result.layers, [four], result.tensors) == [
        "1 layer · rank 2 · 0.00 MB in fp16, of 0.00 MB",
        "97.0% of the change is left; the layers that lost most:",
        "lora_unet_x: rank 4 → 2, 97.0% kept",
    ]
    exact = merged((four, 1.0), (four, 1.0))
    assert merge_summary(exact.layers, [four, four], exact.tensors)[1:] == [
        "exact: nothing was cut off"
    ]
