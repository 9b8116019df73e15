"""Record real loss curves: training runs on the demo's base model, and what became of them.

    python tests/bench/record_curves.py FOLDER [--only KIND] [--share 0/2]

writes one JSON file a run into FOLDER (those already there are left alone, so that a recording can
go on) and `python tests/bench/record_curves.py FOLDER --pack` makes `tests/unit/curves.json.gz` of
them. Each holds what the engine recorded of every step, the validation loss that a person would
see, and two denser measurements from which the truth about the run is taken: the loss of training
pictures, and of other held-out pictures, always under the same noise and timesteps.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "dev")]

import conftest  # noqa: E402, F401
from comfy_modules import make_importable  # noqa: E402

make_importable()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from curve_runs import CurveRun, curve_runs  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

from in_memory import encoded_dataset  # noqa: E402
from lora_atelier.training.base_model.precision import MixedPrecision  # noqa: E402
from lora_atelier.training.host.diffusion_model import HostDiffusionModel  # noqa: E402
from lora_atelier.training.network.build import NetworkSpec  # noqa: E402
from lora_atelier.training.objective.batch_losses import batch_losses  # noqa: E402
from lora_atelier.training.objective.objective import ObjectiveSpec  # noqa: E402
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType  # noqa: E402
from lora_atelier.training.optimizers.optimizer import OptimizerSpec  # noqa: E402
from lora_atelier.training.runs.batches import Draw  # noqa: E402
from lora_atelier.training.runs.guard import OnDivergence  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from lora_atelier.training.runs.run import (  # noqa: E402
    TrainingRun,
    TrainingSpec,
    TrainingState,
    start,
)
from lora_atelier.training.runs.watchman import TrainingDiverged  # noqa: E402
from recorded_curves import recorded_curves, table_of  # noqa: E402
from tiny_training import Parts, Recorder, encode, load_parts  # noqa: E402

CURVES = ROOT / "tests" / "unit" / "curves.json.gz"
IMAGES = ROOT / "demo" / "images"
HELD_OUT = 16
"""Pictures that a run never trains on: half for its validation loss, half for the truth."""
VALIDATION = 8
PROBE_SEED = 12345


@dataclass(frozen=True)
class Probe:
    """Pictures under fixed noise and timesteps: the engine draws both by seed and place."""

    run: TrainingRun
    draws: tuple[Draw, ...]

    @torch.inference_mode(False)
    @torch.no_grad()
    def loss(self, state: TrainingState) -> float:
        """Mean over the draws; infinite where it is no number."""
        network = state.run.new_network()
        network.load_state_dict(state.network)
        with self.run.model.training(network, torch.float32) as predict:
            parts = [self.draws[i : i + 8] for i in range(0, len(self.draws), 8)]
            losses = [batch_losses(self.run, list(part), predict) for part in parts]
        loss = float(torch.cat(losses).mean())
        return loss if math.isfinite(loss) else math.inf


def pictures(style: str, side: int) -> list[tuple[str, Tensor]]:
    """Caption and [side, side, 3] pixels; the base knows none of these looks."""
    folder = {
        "flat_swapped": "other/flat",
        "ink_inverted": "other/ink",
        "noto_grey": "other/noto",
    }[style]
    found = []
    for file in sorted((IMAGES / folder).glob("*.png")):
        picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
        if style == "flat_swapped":
            pixels = pixels[..., [1, 2, 0]]
        elif style == "ink_inverted":
            pixels = 1 - pixels * torch.tensor([0.4, 0.8, 1.0])
        else:
            pixels = pixels.mean(-1, keepdim=True).expand(-1, -1, 3)
        found.append((f"new style, {file.stem.replace('_', ' ')}", pixels))
    return found


class Studio:
    """The loaded base model, and each style as latents and encoded captions."""

    def __init__(self, checkpoint: Path) -> None:
        if not checkpoint.exists():
            _assemble(checkpoint)
        self.parts: Parts = load_parts(checkpoint)
        self.texts: dict[tuple[str, ...], dict[str, Any]] = {}  # the same in every style
        self.styles: dict[tuple[str, int], tuple[list[Tensor], dict[str, Any]]] = {}

    def style(self, curve: CurveRun) -> tuple[list[Tensor], dict[str, Any]]:
        key = (curve.style, curve.side)
        if key not in self.styles:
            captions, pixels = zip(*pictures(*key), strict=True)
            with torch.inference_mode():
                raw = self.parts.vae.encode(torch.stack(pixels))
                latents = self.parts.model.model.process_latent_in(raw).float().cpu()
            if captions not in self.texts:
                self.texts[captions] = encode(self.parts.clip, captions)
            with torch.inference_mode(False):
                self.styles[key] = ([x.clone() for x in latents], self.texts[captions])
        return self.styles[key]

    def run(self, curve: CurveRun, places: list[int], seed: int) -> TrainingRun:
        latents, conditioning = self.style(curve)
        captions = list(conditioning)
        data = encoded_dataset(
            [latents[i] for i in places], {captions[i]: conditioning[captions[i]] for i in places}
        )
        spec = TrainingSpec(
            network=NetworkSpec(curve.rank, float(curve.rank)),
            optimizer=OptimizerSpec(unet_lr=curve.unet_lr),
            lr_scheduler=LRSchedulerSpec(LRSchedulerType(curve.scheduler), curve.warmup),
            objective=ObjectiveSpec(curve.min_snr_gamma),
            mixed_precision=MixedPrecision.NO,
            max_train_steps=curve.steps,
            on_divergence=OnDivergence.IGNORE,  # how a curve goes on is what is to be recorded
            seed=seed,
        )
        return TrainingRun(spec, data, HostDiffusionModel(self.parts.model))

    def probe(self, curve: CurveRun, places: list[int], draws: int) -> Probe:
        """At least ``draws`` noisy pictures, each picture equally often."""
        rounds = -(-draws // len(places))
        many = [Draw(i, e, i) for e in range(rounds) for i in range(len(places))]
        return Probe(self.run(curve, places, PROBE_SEED), tuple(many))


def record(studio: Studio, curve: CurveRun) -> dict[str, Any]:
    """Train, measuring on the way, to the end or until the engine stops the run."""
    total = len(studio.style(curve)[0])
    places = list(range(total))
    random.Random(curve.name).shuffle(places)
    held_out, rest = places[:HELD_OUT], places[HELD_OUT:]
    chosen = rest[: curve.pictures]
    run = studio.run(curve, chosen, seed=curve.number)
    probes = {
        "train": studio.probe(curve, chosen[:16], 16),
        "held_out": studio.probe(curve, held_out[VALIDATION:], 16),
        "validation": studio.probe(curve, held_out[:VALIDATION], 8),
    }
    state = start(run)
    measured: dict[str, list] = {"step": [0]} | {k: [p.loss(state)] for k, p in probes.items()}
    listener = Recorder()
    end = ""
    for step in range(curve.measured_every, curve.steps + 1, curve.measured_every):
        try:
            state = train(state, step - state.step, listener)
        except TrainingDiverged as error:
            end = str(error)
            break
        measured["step"].append(step)
        for name, probe in probes.items():
            measured[name].append(probe.loss(state))
    history = listener.records
    return {
        "name": curve.name,
        "run": asdict(curve),
        "loss": [_short(r.loss) for r in history],
        "learning_rate": [_short(r.learning_rate) for r in history],
        "grad_norm": [_short(r.grad_norm) for r in history],
        "skipped": [r.skipped for r in history],
        "measured": {name: [_short(v) for v in values] for name, values in measured.items()},
        "ended": end,
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _assemble(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("a", ROOT / "demo" / "base" / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.assemble(path)


def pack(folder: Path) -> None:
    """All recorded runs as one small file, the same bytes each time."""
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    text = json.dumps(runs, separators=(",", ":"))
    CURVES.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    sys.stdout.write(f"{len(runs)} runs, {CURVES.stat().st_size} bytes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="beginning of the names of the runs to make")
    parser.add_argument("--share", default="0/1", help="part i of n of the runs, for n processes")
    parser.add_argument("--pack", action="store_true", help="make curves.json.gz of what is there")
    parser.add_argument("--tables", action="store_true", help="print those of docs/verdict.md")
    options = parser.parse_args()
    if options.pack:
        return pack(options.folder)
    if options.tables:
        for tuning in (False, True):
            chosen = [c for c in recorded_curves() if c.held_back_for_tuning is tuning]
            sys.stdout.write(f"{table_of(chosen)}\n\n")
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    studio = Studio(options.folder / "base.safetensors")
    part, parts = map(int, options.share.split("/"))
    for curve in curve_runs()[part::parts]:
        file = options.folder / f"{curve.name}.json"
        if curve.name.startswith(options.only) and not file.exists():
            result = record(studio, curve)
            file.write_text(json.dumps(result))
            sys.stdout.write(f"{curve.name}  {result['ended']}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
