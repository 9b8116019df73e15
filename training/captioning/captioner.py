"""An image-to-text model of transformers, from a folder and never from the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import AtelierError, needed_package, require, require_number
from .families import ASKED_APART, Family, family_of, own_words
from .folder import CaptionerFolder, trust_file

UNUSED = ("pooler", "position_ids", "masked_bias")
"""In the names of weights that files may lack: no caption depends on them."""

VOCABULARIES = ("tekken.json", "tokenizer.json", "vocab.json", "vocab.txt")
"""Files of which a tokenizer reads one, if not a .model; some do without it, and know no word."""

OWN_CLASSES = (
    *("AutoModelForImageTextToText", "AutoModelForVision2Seq"),
    *("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel"),
)
"""Under which a folder may name the class in its own code."""

WRONG = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, SafetensorError)
"""What transformers raises for a folder that is not as it should be."""


class _Apart(NamedTuple):
    """Both halves of a processor, for models that have no class of their own for it."""

    image_processor: Any
    tokenizer: Any


class Writing(NamedTuple):
    """How captions are written."""

    prompt: str = ""
    """"" = what the family is usually asked."""
    max_new_tokens: int = 128
    num_beams: int = 3
    """Wordings that are followed at a time; the likeliest whole one is taken."""

    def require_sound(self) -> None:
        """Raises AtelierError unless the numbers are in range."""
        advice = "A caption for CLIP has room for about 75."
        require_number("max_new_tokens", self.max_new_tokens, 1, 4096, advice)
        require_number("num_beams", self.num_beams, 1, 16, "3 is usual; 1 is quickest.")


class Captioner:
    """A model with what prepares its pictures and reads its answers."""

    def __init__(self, network: nn.Module, processor: Any, family: Family) -> None:
        self.network, self.processor, self.family = network, processor, family

    @torch.no_grad()
    def captions(
        self, images: Sequence[Image.Image], writing: Writing, check: Callable[[], None]
    ) -> list[str]:
        """What the model says of each picture, as it stands: the same at every call.

        Args:
            images: RGB.
            check: called at every word; may raise to cancel.

        Raises:
            AtelierError: the prompt is none for this model.
        """
        prompt = writing.prompt.strip() or self.family.default_prompt
        inputs = self._inputs(images, prompt)
        answer = self.network.generate(
            **inputs,
            max_new_tokens=writing.max_new_tokens,
            num_beams=writing.num_beams,
            do_sample=False,
            stopping_criteria=[_Checked(check)],
        )
        if not self.family.begins_with_prompt:
            answer = own_words(answer, inputs.get("input_ids"))
        texts = self.processor.tokenizer.batch_decode(answer, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _inputs(self, images: Sequence[Image.Image], prompt: str) -> dict[str, Any]:
        try:
            inputs = self.family.ask(self.processor, images, prompt)
        except AtelierError:
            raise
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise AtelierError(
                f'prompt: this captioner cannot be asked "{prompt}" ({_first_line(error)}). Its '
                "page on the Hugging Face hub says what it understands."
            ) from error
        weight = next(self.network.parameters())
        return {name: _moved(value, weight) for name, value in inputs.items()}


class _Checked:
    """Looks at every word whether the person has cancelled; never ends a caption itself."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.check()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _moved(value: Any, weight: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)


def load_captioner(folder: CaptionerFolder, dtype: torch.dtype) -> Captioner:
    """Read a captioner into the RAM.

    Raises:
        AtelierError: it is no image-to-text model, its files do not belong together, or it needs
            code that the person has not let in.
    """
    transformers = needed_package("transformers", "Captioning pictures")
    options = {"local_files_only": True, "trust_remote_code": folder.trusted}
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder.path), **options)
    except WRONG as error:
        _require_no_own_code(folder)
        raise _not_understood(folder, transformers, error) from error
    kind = _model_class(folder, transformers, config)
    processor = _processor(folder, transformers, options)
    network = _network(folder, kind, dtype, options)
    return Captioner(network, processor, family_of(folder.model_type, processor))


def _model_class(folder: CaptionerFolder, transformers: Any, config: Any) -> Any:
    own = [name for name in OWN_CLASSES if name in folder.own_code and hasattr(transformers, name)]
    if folder.trusted and own:
        return getattr(transformers, own[0])
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    _require_no_own_code(folder)
    raise _not_understood(folder, transformers, None)


def _processor(folder: CaptionerFolder, transformers: Any, options: dict[str, Any]) -> Any:
    path = str(folder.path)
    names = [file.name for file in folder.path.iterdir()]
    if not folder.trusted and not any(n in VOCABULARIES or n.endswith(".model") for n in names):
        raise _no_processor(folder, "no vocabulary")
    try:
        if folder.model_type in ASKED_APART:
            return _Apart(
                transformers.AutoImageProcessor.from_pretrained(path, **options),
                transformers.AutoTokenizer.from_pretrained(path, **options),
            )
        processor = transformers.AutoProcessor.from_pretrained(path, **options)
    except WRONG as error:
        _require_no_own_code(folder)
        raise _no_processor(folder, _first_line(error)) from error
    for half in ("image_processor", "tokenizer"):
        if not hasattr(processor, half):
            raise _no_processor(folder, f"no {half}")
    return processor


def _no_processor(folder: CaptionerFolder, why: str) -> AtelierError:
    return AtelierError(
        f'captioner: what prepares pictures and text in "{folder.path}" cannot be read ({why}). '
        "preprocessor_config.json, processor_config.json, tokenizer.json, tokenizer_config.json "
        "and the other small files of the model belong there: put them all beside its weights."
    )


def _network(
    folder: CaptionerFolder, kind: Any, dtype: torch.dtype, options: dict[str, Any]
) -> nn.Module:
    try:
        network, told = kind.from_pretrained(
            str(folder.path),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
            **{_dtype_option(): dtype},
            **options,
        )
    except WRONG as error:
        raise AtelierError(
            f'captioner: the model in "{folder.path}" cannot be read ({_first_line(error)}). '
            "Fetch its files again."
        ) from error
    absent = sorted(n for n in told["missing_keys"] if not any(part in n for part in UNUSED))
    absent += sorted(str(entry[0]) for entry in told["mismatched_keys"])
    require(
        not absent,
        f'captioner: {len(absent)} weights of "{folder.model_type}" are not in "{folder.path}" '
        f"({', '.join(absent[:2])}, …), and chance would stand in for them. Get the files for "
        "transformers; of Florence-2 they are those of florence-community, not of microsoft.",
    )
    return network.eval()


def _dtype_option() -> str:
    """Its name changed in transformers 4.56."""
    version = needed_package("transformers", "Captioning pictures").__version__
    return "dtype" if tuple(map(int, version.split(".")[:2])) >= (4, 56) else "torch_dtype"


def _require_no_own_code(folder: CaptionerFolder) -> None:
    code = sorted(file.name for file in folder.path.glob("*.py"))
    require(
        folder.trusted or not code,
        f'captioner: "{folder.name}" brings program code of its own ({", ".join(code)}), which '
        "could do anything on this machine, so it does not run. If you know where it comes from "
        f'and trust it, make an empty file "{trust_file(folder.path)}" and queue again.',
    )


def _not_understood(
    folder: CaptionerFolder, transformers: Any, error: Exception | None
) -> AtelierError:
    why = "" if error is None else f" ({_first_line(error)})"
    return AtelierError(
        f'captioner: "{folder.name}" is a "{folder.model_type}", which transformers '
        f"{transformers.__version__} does not know as a model that describes pictures{why}. "
        "Choose BLIP, Florence-2, GIT or another image-text-to-text model, or install a newer "
        "transformers."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:300]
