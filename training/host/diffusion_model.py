"""A MODEL of the graph as the engine's :class:`training.run.DiffusionModel`."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import comfy.model_management as mm
import comfy.model_sampling as ms
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from torch import Tensor, nn

from ..errors import AtelierError, require
from ..objective import NoiseSchedule, PredictionType
from ..precision import MixedPrecision, compute_dtype
from ..run import Conditioning, Predict
from ..targets import attention_and_mlp_layers
from ..training_context import training_context
from .lora_keys import file_names


class HostDiffusionModel:
    """A ComfyUI MODEL, trained with whatever patches, samplings and storage it already has."""

    def __init__(self, patcher: ModelPatcher) -> None:
        self.patcher = patcher
        self.device: torch.device = patcher.load_device
        sampling = patcher.get_model_object("model_sampling")
        self.schedule = noise_schedule(sampling)
        targets = attention_and_mlp_layers(patcher.model.diffusion_model)
        require(
            len(targets) > 0,
            "model: none of its layers can be trained. Quantised formats whose layers are not "
            "ordinary Linear layers (nvfp4, mixed fp8, GGUF) are not supported yet; load the fp16, "
            "bf16 or plain fp8 version of this model.",
        )
        names = file_names(patcher.model, targets)
        self._paths = {names[path]: path for path in targets}
        self.layers: Mapping[str, nn.Module] = {names[p]: layer for p, layer in targets.items()}

    def compute_dtype(self, choice: MixedPrecision) -> torch.dtype:
        return compute_dtype(
            choice, _sampling_dtype(self.patcher.model), self.device, _bf16_is_fast(self.device)
        )

    @contextmanager
    def training(self, network: Mapping[str, nn.Module], dtype: torch.dtype) -> Iterator[Predict]:
        """Load the model as for sampling, make it differentiable, undo all of it at the end."""
        base = self.patcher.model
        with ExitStack() as undo:
            undo.callback(mm.soft_empty_cache)
            self._load()
            undo.callback(self.patcher.cleanup)
            self.patcher.pre_run()
            undo.enter_context(_attribute(base, "manual_cast_dtype", dtype))
            raw = _raw_prediction(base.model_sampling)
            undo.enter_context(_attribute(base, "model_sampling", raw))
            adapters = {self._paths[name]: adapter for name, adapter in network.items()}
            undo.enter_context(
                training_context(
                    base.diffusion_model,
                    adapters,
                    lend_weights,
                    base.get_dtype(),
                    dtype,
                    self.device,
                )
            )
            yield self._predict

    @torch.inference_mode()  # as in sampling, so that weights stay in the state the host expects
    def _load(self) -> None:
        """The model alone on the device: backward needs the room of text encoder and VAE."""
        mm.unload_all_models()
        mm.load_models_gpu([self.patcher])

    def _predict(
        self, noisy_latents: Tensor, sigmas: Tensor, conditioning: list[Conditioning]
    ) -> Tensor:
        """Each sample under its own conditioning; samples are batched where their shapes agree."""
        conds = [self._model_conds(c, noisy_latents[i : i + 1]) for i, c in enumerate(conditioning)]
        outputs: dict[int, Tensor] = {}
        for group in _groups_of_equal_shape(conds):
            x, sigma = noisy_latents[group], sigmas[group]
            together = comfy.samplers.cond_cat([conds[i] for i in group])
            together["transformer_options"] = self._transformer_options(group, sigma)
            outputs.update(zip(group, self._apply(x, sigma, together), strict=True))
        return torch.stack([outputs[i] for i in range(len(conds))])

    def _apply(self, x: Tensor, sigma: Tensor, conds: dict) -> Tensor:
        model = self.patcher.model.apply_model
        wrapper = self.patcher.model_options.get("model_function_wrapper")
        if wrapper is None:
            return model(x, sigma, **conds)
        call = {"input": x, "timestep": sigma, "c": conds, "cond_or_uncond": [0] * len(x)}
        return wrapper(model, call)

    def _model_conds(self, conditioning: Conditioning, x: Tensor) -> dict:
        """The host's own reading of one conditioning for one latent (size, guidance, pooled…)."""
        with torch.no_grad():
            conds = comfy.sampler_helpers.convert_cond([conditioning])
            (cond,) = comfy.samplers.encode_model_conds(
                self.patcher.model.extra_conds,
                conds,
                x,
                self.device,
                "positive",
                latent_image=torch.zeros_like(x),  # inpainting models: nothing is kept
            )
            return {
                name: value.process_cond(batch_size=1, area=None)
                for name, value in cond["model_conds"].items()
            }

    def _transformer_options(self, group: list[int], sigmas: Tensor) -> dict:
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


@contextmanager
def lend_weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's weight and bias as the host would use them now: moved, cast, patched."""
    if not hasattr(layer, "comfy_cast_weights"):
        bias = None if layer.bias is None else layer.bias.to(like)
        yield layer.weight.to(like), bias
        return
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    scale = getattr(layer, "scale_weight", None)  # scaled fp8: the host applies it in its forward
    try:
        yield (weight if scale is None else weight * scale.to(weight)), bias
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


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


def _raw_prediction(sampling: nn.Module) -> nn.Module:
    """The same sampling object, but one that hands out the model's answer as it is.

    Inverting the denoised image instead would divide by small sigmas and lose digits.
    """
    raw = copy.copy(sampling)
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


def _bf16_is_fast(device: torch.device) -> bool:
    return device.type != "cpu" and mm.should_use_bf16(device, manual_cast=True)


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
