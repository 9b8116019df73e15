"""A MODEL of the graph as the engine's :class:`training.runs.run.DiffusionModel`."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import comfy.model_management as mm
import comfy.model_sampling as ms
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from torch import Tensor, nn

from ..base_model.blocks import blocks_run, require_blocks
from ..base_model.compiled import why_not
from ..base_model.frozen import FrozenLayer, Weights
from ..base_model.precision import MixedPrecision, bf16_is_faster_on_this_cpu, compute_dtype
from ..base_model.training_context import training_context
from ..dataset.fit import Placement
from ..errors import AtelierError, require
from ..memory.allocations import Allocations
from ..memory.rehearsal import SHAPES, fused
from ..network.adapters.base import weight_shape
from ..network.spec import NetworkSpec
from ..network.targets import TargetLayer, block_of, choose_layers, trainable_layers
from ..objective.noise_schedule import NoiseSchedule, PredictionType, with_zero_terminal_snr
from ..objective.objective import ObjectiveSpec, require_possible
from ..runs.examples import Conditioning
from ..runs.run import Predict
from .base_facts import was_compared
from .kernels import differentiable_kernels, nothing_fetched_ahead, stream_kept
from .lent_weights import lend_weights
from .lora_keys import existing_layers, file_names
from .text_encoder import HostTextEncoder
from .unloaded import as_shapes, lend_shapes

log = logging.getLogger("lora_atelier")


class HostDiffusionModel:
    """A ComfyUI MODEL, trained with whatever patches, samplings and storage it already has."""

    def __init__(
        self,
        patcher: ModelPatcher,
        objective: ObjectiveSpec | None = None,
        text_encoder: HostTextEncoder | None = None,
        gradient_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        objective = objective or ObjectiveSpec()
        self.patcher = patcher
        self.text_encoder = text_encoder
        """Where it is given, a conditioning is a caption, which it reads at every step."""
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing or compile_blocks:
            name = "gradient_checkpointing" if gradient_checkpointing else "compile_blocks"
            require_blocks(patcher.model.diffusion_model, name)
        self.device: torch.device = patcher.load_device
        self.not_compiled = why_not(self.device) if compile_blocks else ""
        """Why not, where the blocks were to be compiled and cannot be."""
        self.compile_blocks = compile_blocks and not self.not_compiled
        sampling = patcher.get_model_object("model_sampling")
        self.schedule = noise_schedule(sampling)
        require_possible(objective, self.schedule)
        self.zero_terminal_snr = objective.zero_terminal_snr
        if self.zero_terminal_snr:
            require_table(sampling)
            self.schedule = with_zero_terminal_snr(self.schedule)
        self.guidance = objective.guidance
        if self.guidance is not None:
            require_guidance(patcher.model.diffusion_model)
        self._names = file_names(patcher.model, trainable_layers(patcher.model.diffusion_model))

    def layers(self, spec: NetworkSpec) -> dict[str, TargetLayer]:
        """Name in the LoRA file -> layer that gets an adapter."""
        layers = self._own_layers(spec) if spec.trains_diffusion_model else {}
        return layers if self.text_encoder is None else layers | self.text_encoder.layers(spec)

    def _own_layers(self, spec: NetworkSpec) -> dict[str, TargetLayer]:
        model = self.patcher.model.diffusion_model
        starts: dict[str, dict[str, Tensor]] = {}
        if spec.existing is None:
            chosen = choose_layers(
                model, self._names, spec.target_modules, spec.target_regex, spec.conv_dim > 0
            )
        else:
            layers = trainable_layers(model)
            starts = existing_layers(self.patcher.model, spec.existing, layers)
            chosen = {path: layer for path, layer in layers.items() if path in starts}
        lost = [path for path in chosen if path not in self._names]
        require(
            not lost, f"model: ComfyUI would not load adapters for {len(lost)} layers: {lost[:3]}."
        )
        return {
            self._names[path]: TargetLayer(layer, path, block_of(model, path), starts.get(path))
            for path, layer in chosen.items()
        }

    @contextmanager
    def frozen_layers(self) -> Iterator[Mapping[str, FrozenLayer]]:
        """The layers by their names in the file, with the weights that training will see."""
        self._load()
        layers = trainable_layers(self.patcher.model.diffusion_model)
        frozen = {name: FrozenLayer(layers[p], lend_weights) for p, name in self._names.items()}
        yield frozen if self.text_encoder is None else frozen | self.text_encoder.frozen_layers()

    def compute_dtype(self, choice: MixedPrecision) -> torch.dtype:
        base = self.patcher.model
        return compute_dtype(
            choice,
            _sampling_dtype(base),
            self.device,
            _bf16_is_fast(self.device),
            parameter_count(base.diffusion_model),
        )

    def stored_bytes(self) -> tuple[int, int]:
        clip = self.text_encoder and self.text_encoder.clip.patcher
        return self.patcher.model_size(), clip.model_size() if clip else 0

    def notes(self) -> list[str]:
        """What a person should know of how this model is trained, a sentence or two each."""
        notes = []
        if self.not_compiled:
            notes.append(
                "compile_blocks is on, but nothing can be compiled here, so that it trains "
                f"without: {self.not_compiled}. A CPU needs a C++ compiler, a GPU Triton."
            )
        if not was_compared(self.patcher):
            family = type(self.patcher.model.model_config).__name__
            notes.append(
                f"model: {family} is trained in the general way, by what ComfyUI says of its noise "
                "and its layers, which was not compared with other trainers. Try a short run first."
            )
        return notes

    def log_notes(self) -> None:
        """For those who train without a node that could show them."""
        for note in self.notes():
            log.warning(note)

    @contextmanager
    def training(
        self,
        network: Mapping[str, nn.Module],
        dtype: torch.dtype,
        memory_required: Callable[[], int] = lambda: 0,
    ) -> Iterator[Predict]:
        """Load the model as for sampling, make it differentiable, undo all of it at the end."""
        with ExitStack() as undo:
            undo.callback(mm.soft_empty_cache)
            self._load(memory_required)
            undo.callback(self.patcher.cleanup)
            self.patcher.pre_run()
            undo.enter_context(
                self._differentiable(network, dtype, lend_weights, self.device, self.compile_blocks)
            )
            yield self._predict

    @contextmanager
    def rehearsing(
        self, network: Mapping[str, nn.Module], dtype: torch.dtype, memory: Allocations
    ) -> Iterator[Predict]:
        """As if it were loaded, and without what other nodes hung around its calls, which may keep
        what they see."""
        models = [self.patcher.model]
        if self.text_encoder is not None:
            models.append(self.text_encoder.model)
        with ExitStack() as undo:
            if self.text_encoder is not None:
                clip = self.text_encoder.clip.patcher
                undo.enter_context(_attribute(clip, "load_device", SHAPES))
            for model in models:
                with memory.uncounted():
                    undo.enter_context(as_shapes(model))
                undo.enter_context(blocks_run(model, fused))
            lend = lend_shapes(memory)
            undo.enter_context(self._differentiable(network, dtype, lend, SHAPES))
            yield partial(self._predict, rehearsal=True)

    @contextmanager
    def _differentiable(
        self,
        network: Mapping[str, nn.Module],
        dtype: torch.dtype,
        weights: Weights,
        device: torch.device,
        compile_blocks: bool = False,
    ) -> Iterator[None]:
        base = self.patcher.model
        with ExitStack() as undo:
            undo.enter_context(differentiable_kernels())
            undo.enter_context(nothing_fetched_ahead())
            undo.enter_context(stream_kept(base.diffusion_model))
            undo.enter_context(_attribute(base, "manual_cast_dtype", dtype))
            raw = _raw_prediction(base.model_sampling)
            if self.zero_terminal_snr:  # so that the model is told the timesteps of its new levels
                raw.set_sigmas(self.schedule.sigmas.to(device))
            undo.enter_context(_attribute(base, "model_sampling", raw))
            adapters = {p: network[name] for p, name in self._names.items() if name in network}
            undo.enter_context(
                training_context(
                    base.diffusion_model,
                    adapters,
                    weights,
                    base.get_dtype(),
                    dtype,
                    device,
                    self.gradient_checkpointing,
                    compile_blocks,
                )
            )
            if self.text_encoder is not None:
                undo.enter_context(
                    self.text_encoder.training(
                        network, device, weights, self.gradient_checkpointing
                    )
                )
            yield

    @torch.inference_mode()  # as in sampling, so that weights stay in the state the host expects
    def _load(self, memory_required: Callable[[], int] = lambda: 0) -> None:
        """The trained models alone on the device: backward needs the room of the others.

        The host keeps in its own memory what would not leave ``memory_required`` bytes free, and
        brings it layer by layer.
        """
        mm.unload_all_models()
        needed = 0 if mm.is_device_cpu(self.device) else memory_required()
        if self.text_encoder is None:
            mm.load_models_gpu([self.patcher], memory_required=needed)
        else:  # second and whole: where room is short, the diffusion model is the one to give way
            room = needed + self.text_encoder.room_to_load()
            mm.load_models_gpu([self.patcher], memory_required=room)
            self.text_encoder.load()

    def _predict(
        self,
        noisy_latents: Tensor,
        sigmas: Tensor,
        conditioning: list[Conditioning],
        placements: list[Placement],
        rehearsal: bool = False,
    ) -> Tensor:
        """Each sample under its own conditioning; samples are batched where their shapes agree."""
        if self.text_encoder is not None:
            texts = {
                caption: self.text_encoder.encode(caption)
                for caption in dict.fromkeys(conditioning)
            }
            conditioning = [texts[caption] for caption in conditioning]
        conds = [
            self._model_conds(self._told(c, placement), noisy_latents[i : i + 1])
            for i, (c, placement) in enumerate(zip(conditioning, placements, strict=True))
        ]
        outputs: dict[int, Tensor] = {}
        for group in _groups_of_equal_shape(conds):
            x, sigma = noisy_latents[group], sigmas[group]
            together = comfy.samplers.cond_cat([conds[i] for i in group])
            together["transformer_options"] = self._transformer_options(group, sigma, rehearsal)
            outputs.update(zip(group, self._apply(x, sigma, together, rehearsal), strict=True))
        return torch.stack([outputs[i] for i in range(len(conds))])

    def _told(self, conditioning: Conditioning, placement: Placement) -> Conditioning:
        embedding, extras = with_sizes(conditioning, placement)
        if self.guidance is not None:
            extras = {**extras, "guidance": self.guidance}
        return [embedding, extras]

    def _apply(self, x: Tensor, sigma: Tensor, conds: dict, rehearsal: bool) -> Tensor:
        model = self.patcher.model.apply_model
        wrapper = self.patcher.model_options.get("model_function_wrapper")
        if wrapper is None or rehearsal:
            return model(x, sigma, **conds)
        call = {"input": x, "timestep": sigma, "c": conds, "cond_or_uncond": [0] * len(x)}
        return wrapper(model, call)

    def _model_conds(self, conditioning: Conditioning, x: Tensor) -> dict:
        """The host's own reading of one conditioning for one latent (size, guidance, pooled…)."""
        conds = comfy.sampler_helpers.convert_cond([conditioning])
        (cond,) = comfy.samplers.encode_model_conds(
            self.patcher.model.extra_conds,
            conds,
            x,
            x.device,
            "positive",
            latent_image=torch.zeros_like(x),  # inpainting models: nothing is kept
        )
        return {
            name: value.process_cond(batch_size=1, area=None)
            for name, value in cond["model_conds"].items()
        }

    def _transformer_options(self, group: list[int], sigmas: Tensor, rehearsal: bool) -> dict:
        if rehearsal:
            options: dict = {"transformer_options": {}}
        else:
            options = create_model_options_clone(self.patcher.model_options)
            comfy.sampler_helpers.prepare_model_patcher(self.patcher, {}, options)
        transformer = options["transformer_options"]
        transformer["cond_or_uncond"] = [0] * len(group)
        transformer["uuids"] = [uuid.uuid4() for _ in group]
        transformer["sigmas"] = sigmas
        # The host's default may have no backward (sage, flash) or cut its work by the free memory
        # of the moment, so that recomputation would differ (sub-quadratic).
        transformer["optimized_attention_override"] = _differentiable_attention
        return transformer


def with_sizes(conditioning: Conditioning, placement: Placement) -> Conditioning:
    """A conditioning that also says how its picture was scaled and cut, in the host's own words
    (those of CLIPTextEncodeSDXL); models that do not ask for them never see them."""
    embedding, extras = conditioning
    (width, height), (crop_w, crop_h) = placement.original, placement.crop
    target_width, target_height = placement.size
    sizes = {
        "width": width,
        "height": height,
        "crop_w": crop_w,
        "crop_h": crop_h,
        "target_width": target_width,
        "target_height": target_height,
    }
    return [embedding, {**extras, **sizes}]


def noise_schedule(sampling: nn.Module) -> NoiseSchedule:
    """The objective of a host ``model_sampling`` object.

    Raises:
        AtelierError: the model has an objective that this pack cannot train yet.
    """
    # Kinds of EPS by inheritance, not by objective; and schedules without discrete timesteps.
    unknown = (ms.EDM, ms.X0, ms.ModelSamplingContinuousEDM)
    if isinstance(sampling, ms.CONST):
        prediction = PredictionType.FLOW
    elif isinstance(sampling, ms.V_PREDICTION) and not isinstance(sampling, unknown):
        prediction = PredictionType.V_PREDICTION
    elif isinstance(sampling, ms.EPS) and not isinstance(sampling, unknown):
        prediction = PredictionType.EPSILON
    else:
        kinds = ", ".join(kind.__name__ for kind in type(sampling).__mro__[1:3])
        raise AtelierError(
            f"model: its training objective ({kinds}) is not supported yet. Models that predict "
            "noise (SD1.5, SDXL), velocity (SD2-v) or flow (SD3, Flux) can be trained."
        )
    return NoiseSchedule(prediction, sampling.sigmas.detach().float().to("cpu", copy=True))


def require_table(sampling: nn.Module) -> None:
    """Refuse zero_terminal_snr where timesteps are not places in a table of noise levels."""
    require(
        isinstance(sampling, ms.ModelSamplingDiscrete)
        and not isinstance(sampling, ms.StableCascadeSampling),
        "zero_terminal_snr is on: this model computes its timesteps from a formula, which cannot "
        "be stretched. Switch it off.",
    )


def require_guidance(diffusion_model: nn.Module) -> None:
    """Refuse guidance that the model would not hear of."""
    heard = "guidance" in inspect.signature(diffusion_model.forward).parameters
    built_in = getattr(getattr(diffusion_model, "params", None), "guidance_embed", True)
    require(
        heard and built_in,
        "guidance is set: it is an input of guidance-distilled models (Flux dev), and this model "
        "has none. Set it to -1.",
    )


def _raw_prediction(sampling: nn.Module) -> nn.Module:
    """The same sampling object, but one that hands out the model's answer as it is.

    Inverting the denoised image instead would divide by small sigmas and lose digits.
    """
    raw = copy.copy(sampling)
    raw._buffers = dict(sampling._buffers)  # its own, in which its schedule may be exchanged
    kind = type(sampling)
    raw.__class__ = type(f"Raw{kind.__name__}", (kind,), {"calculate_denoised": _model_output})
    return raw


def _model_output(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
    return model_output


def _differentiable_attention(attention, *args, **kwargs) -> Tensor:
    return attention_pytorch(*args, **kwargs)


@contextmanager
def _attribute(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _sampling_dtype(base: nn.Module) -> torch.dtype:
    return base.manual_cast_dtype or base.get_dtype()


def parameter_count(model: nn.Module) -> int:
    """Numbers in the weights of the large layers, however they are stored."""
    layers = trainable_layers(model).values()
    return sum(math.prod(weight_shape(layer)) for layer in layers)


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cpu":
        return bf16_is_faster_on_this_cpu()
    return mm.should_use_bf16(device, manual_cast=True)


def _groups_of_equal_shape(conds: list[dict]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i, cond in enumerate(conds):
        for group in groups:
            if comfy.samplers.cond_equal_size(conds[group[0]], cond):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
