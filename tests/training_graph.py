"""The graphs that the end-to-end tests queue, in API format."""

from __future__ import annotations

import html
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from host import HostServer, Result

Prompt = dict[str, dict[str, Any]]

PICTURES = Path(__file__).resolve().parents[1] / "demo" / "images" / "glossy" / "train"
PROGRESS_TEXT = 3
"""ComfyUI's number for a text on a node; the id's length, the id and the text follow."""
LOADER, DATASET, NETWORK, OPTIMIZER, TRAIN, SAVE = "1", "2", "3", "4", "10", "11"


class Watched:
    """A prompt that was queued, and what its nodes showed."""

    def __init__(self, server: HostServer, prompt: Prompt) -> None:
        self.texts: dict[str, str] = {}
        self.messages: list[str] = []
        """What the monitors of the runs said, in the order in which they said it."""
        self.result: Result = server.queue(prompt, on_event=self._listen)

    def _listen(self, name: str, data: Any) -> None:
        if name == "atelier.run":
            self.messages += [message["text"] for message in data["messages"]]
        if name == "binary" and int.from_bytes(data[:4], "big") == PROGRESS_TEXT:
            end = 8 + int.from_bytes(data[4:8], "big")
            self.texts[data[8:end].decode()] = html.unescape(data[end:].decode())

    def ran(self, node_id: str) -> bool:
        """False if ComfyUI still had its result."""
        return node_id not in self.result.check().cached

    def text(self, node_id: str) -> str:
        self.result.check()
        return self.texts[node_id]


WIDGETS: dict[str, dict[str, Any]] = {
    "AtelierLoadDataset": {
        "resolution": 64,
        "num_repeats": 1,
        "class_tokens": "",
        "source": "",
        "license": "",
        "role": "train",
        "validation_fraction": 0.0,
        "captions": "files",
        "caption_lines": "alternatives",
        "mask": "none",
        "mask_folder": "",
        "unusable_files": "skip",
        "loss_weight": 1.0,
    },
    "AtelierDatasetFromImages": {
        "resolution": 64,
        "num_repeats": 1,
        "class_tokens": "",
        "source": "",
        "license": "",
        "name": "made",
        "role": "train",
        "loss_weight": 1.0,
    },
    "AtelierFitImages": {
        "resolution": "64",
        "enable_bucket": True,
        "bucket_reso_steps": "64",
        "min_bucket_reso": 0,
        "max_bucket_reso": 0,
        "bucket_no_upscale": False,
        "crop": "center",
        "crop_variants": 4,
        "flip_aug": False,
        "latents": "mode",
        "background": "#ffffff",
    },
    "AtelierSaveDataset": {"save_into": "output", "if_exists": "new_folder"},
    "AtelierOptimizer": {
        "optimizer_type": "AdamW",
        "unet_lr": 2e-3,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "loraplus_lr_ratio": 1.0,
        "betas": "",
        "eps": "",
        "optimizer_args": "",
        "optimizer_name": "",
        "ema_decay": 0.0,
    },
    "AtelierCheckpoints": {
        "save_every_n_steps": 0,
        "save_every_n_epochs": 0,
        "save_every_n_minutes": 10.0,
        "save_last_n": 2,
        "keep_best": True,
        "save_lora": False,
        "save_precision": "fp16",
        "on_save_error": "continue",
        "tensorboard": False,
    },
    "AtelierTrainLoRA": {"resume": "start_again"},  # what other tests left on disk does not count
    "AtelierScheduler": {
        "lr_scheduler": "constant",
        "lr_warmup_ratio": 0.0,
        "lr_warmup": "ratio",
        "lr_warmup_steps": 50,
        "lr_scheduler_args": "",
        "preview_steps": 1000,
    },
}
"""What the widgets of a node are set to unless a test says something else."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {**WIDGETS.get(class_type, {}), **inputs}}


def training(folder: str, steps: int = 4, prefix: str = "atelier/tiny") -> Prompt:
    """Checkpoint and folder -> Train LoRA -> Save LoRA (float, also into models/loras)."""
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        DATASET: node("AtelierLoadDataset", folder=folder),
        NETWORK: node("AtelierNetwork", network_dim=4, network_alpha=3.0),
        OPTIMIZER: node("AtelierOptimizer"),
        "5": node("AtelierScheduler"),
        TRAIN: node(
            "AtelierTrainLoRA",
            model=[LOADER, 0],
            clip=[LOADER, 1],
            vae=[LOADER, 2],
            dataset=[DATASET, 0],
            max_train_steps=steps,
            train_batch_size=1,
            gradient_accumulation_steps=1,
            mixed_precision="no",
            seed=5,
            network=[NETWORK, 0],
            optimizer=[OPTIMIZER, 0],
            scheduler=["5", 0],
        ),
        SAVE: node(
            "AtelierSaveLoRA",
            lora=[TRAIN, 3],
            filename_prefix=prefix,
            save_precision="float",
            add_to_models_loras=True,
        ),
    }


def picture(name: str, source: str, model: int = 0, clip: int = 1, end: int = 10000) -> Prompt:
    """A 64 px picture of what node `source` gives, saved as latent and as PNG.

    Args:
        name: prefix of the node ids and the files.
        model, clip: outputs of `source`.
        end: any step past the last: another value computes the same picture again, uncached.
    """
    text, empty, sample, decode = (f"{name}-{part}" for part in ("text", "empty", "ks", "vae"))
    return {
        text: node("CLIPTextEncode", clip=[source, clip], text="a red cat"),
        empty: node("EmptyLatentImage", width=64, height=64, batch_size=1),
        sample: node(
            "KSamplerAdvanced",
            model=[source, model],
            positive=[text, 0],
            negative=[text, 0],
            latent_image=[empty, 0],
            add_noise="enable",
            noise_seed=11,
            steps=4,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            start_at_step=0,
            end_at_step=end,
            return_with_leftover_noise="disable",
        ),
        decode: node("VAEDecode", samples=[sample, 0], vae=[LOADER, 2]),
        f"{name}-png": node("SaveImage", images=[decode, 0], filename_prefix=name),
        f"{name}-latent": node("SaveLatent", samples=[sample, 0], filename_prefix=name),
    }


def with_lora(name: str, file: str) -> Prompt:
    """The picture of the checkpoint with a file on it, through the stock LoraLoader."""
    loader = f"{name}-lora"
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        loader: node(
            "LoraLoader",
            model=[LOADER, 0],
            clip=[LOADER, 1],
            lora_name=file,
            strength_model=1.0,
            strength_clip=1.0,
        ),
        **picture(name, loader),
    }


def latent(server: HostServer, result: Result, name: str) -> np.ndarray:
    """The latent that `picture(name, ...)` has saved."""
    (reference,) = result.outputs[f"{name}-latent"]["latents"]
    file = server.base / "output" / reference["subfolder"] / reference["filename"]
    return load_file(file)["latent_tensor"]


def few_pictures(server: HostServer) -> None:
    """Put four pictures and their captions where `training("few")` looks for them."""
    folder = server.base / "input" / "few"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("bear", "fox", "lemon", "pizza"):
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)
