"""Small but genuine image-to-text models with random weights, saved as the real ones are.

Their weights are large, so that what they say depends on the picture, and they never come to an end
by themselves. Import it in tests that may load transformers, which takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = (
    "a an the of in on with red blue green white black small large fox dog cat bird tree house "
    "snow grass sky water sitting running sleeping standing picture photo painting image shows is"
).split()
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BART_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<image>")
SIDE = 32


def pictures(count: int) -> list[Image.Image]:
    """Patches of very different colours, in several sizes."""
    random = np.random.default_rng(5)
    patches = random.choice(np.array([0, 255], np.uint8), (count, 2, 2, 3))
    return [
        Image.fromarray(few).resize((40, 24 + 16 * (i % 3)), Image.Resampling.BICUBIC)
        for i, few in enumerate(patches)
    ]


def words_tokenizer(specials: tuple[str, ...], **named: Any) -> PreTrainedTokenizerFast:
    """A token a word."""
    vocabulary = {word: i for i, word in enumerate((*specials, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=named["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] words [SEP]."""
    vocabulary = {word: i for i, word in enumerate((*BERT_SPECIALS, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, vocab=vocabulary, do_lower_case=True
    )


def bart_tokenizer() -> PreTrainedTokenizerFast:
    """With a token that stands for a place of the picture."""
    return words_tokenizer(
        BART_SPECIALS,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def blip(folder: Path) -> Path:
    """Asked with the beginning of a caption, or with nothing."""
    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={
            **sizes,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8},
        projection_dim=32,
        image_text_hidden_size=32,
    )
    network = transformers.BlipForConditionalGeneration(config)
    processor = transformers.BlipProcessor(
        transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer
    )
    return _saved(folder, network, processor)


def vision_encoder_decoder(folder: Path) -> Path:
    """ViT and GPT-2, without a processor of its own."""
    tokenizer = words_tokenizer(
        ("<|end|>", "<unk>"),
        bos_token="<|end|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<unk>",
    )
    encoder = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=SIDE,
        patch_size=8,
    )
    decoder = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    network = transformers.VisionEncoderDecoderModel(config)
    for kept in (network.config, network.generation_config):
        kept.decoder_start_token_id = kept.pad_token_id = kept.eos_token_id = 0
    images = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    return _saved(folder, network, images, tokenizer)


def git(folder: Path) -> Path:
    """A decoder alone, in front of whose text the picture stands."""
    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.GitConfig(
        **sizes,
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": SIDE, "patch_size": 8},
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    network = transformers.GitForCausalLM(config)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return _saved(folder, network, transformers.GitProcessor(images, tokenizer))


def florence2(folder: Path) -> Path:
    """DaViT and BART; asked with a task."""
    tokenizer = bart_tokenizer()
    config = transformers.Florence2Config(
        text_config=transformers.BartConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ).to_dict(),
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (16, 16, 16, 16),
            "num_heads": (2, 2, 2, 2),
            "num_groups": (2, 2, 2, 2),
            "projection_dim": 32,
            "window_size": 4,
        },
        image_token_id=4,
        is_encoder_decoder=True,
    )
    network = transformers.Florence2ForConditionalGeneration(config)
    network.generation_config.forced_eos_token_id = None
    images = transformers.CLIPImageProcessor(
        size={"height": 3 * SIDE, "width": 3 * SIDE}, do_center_crop=False
    )
    images.image_seq_length = _florence_places(network)
    return _saved(folder, network, transformers.Florence2Processor(images, tokenizer))


def llava(folder: Path) -> Path:
    """CLIP and Llama, asked in a chat."""
    tokenizer = bart_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sizes, num_hidden_layers=2, image_size=SIDE, patch_size=8, projection_dim=32
        ),
        text_config=transformers.LlamaConfig(
            **sizes,
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            max_position_embeddings=128,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    network = transformers.LlavaForConditionalGeneration(config)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return _saved(folder, network, processor)


def qwen2_vl(folder: Path) -> Path:
    """Asked in a chat; larger pictures take more tokens."""
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = words_tokenizer(
        (*specials, "<|vision_start|>", "<|vision_end|>"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|image_pad|>", "<|vision_start|>", "<|vision_end|>"],
    )
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = transformers.Qwen2VLConfig(
        text_config={
            **ids,
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        },
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
        **ids,
    )
    network = transformers.Qwen2VLForConditionalGeneration(config)
    sizes = {"patch_size": 8, "min_pixels": 256, "max_pixels": 4096}
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**sizes),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _saved(folder, network, processor)


CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}shows{% endif %}"
)

ALL: dict[str, Callable[[Path], Path]] = {
    "blip": blip,
    "git": git,
    "florence2": florence2,
    "vision-encoder-decoder": vision_encoder_decoder,
    "llava": llava,
    "qwen2_vl": qwen2_vl,
}
"""By ``model_type``."""


def _florence_places(network: Any) -> int:
    with torch.no_grad():
        return network.model.get_image_features(
            torch.zeros(1, 3, 3 * SIDE, 3 * SIDE)
        ).pooler_output.shape[1]


def _saved(folder: Path, network: torch.nn.Module, *parts: Any) -> Path:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 or "embedding" in name:
                gain = 6 if "crossattention.self" in name or "encoder_attn" in name else 2
                scale = gain / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        if hasattr(network, "text_decoder"):  # BLIP, whose decoder has settings of its own
            network.text_decoder.cls.predictions.bias[:5] = -100.0
    network.generation_config.suppress_tokens = [0, 2, 3]
    network.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return folder
