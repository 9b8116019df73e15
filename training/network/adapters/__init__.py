"""The trainable parts that are put on frozen layers, one algorithm a file.

Every adapter is an ``nn.Module`` called as ``adapter(frozen, x)`` in place of the layer's own
forward: ``frozen`` is the layer (:class:`training.base_model.frozen.FrozenLayer`), ``x`` its input,
and the answer that of the adapted layer. Its state dict holds, under the names that ComfyUI reads
from a LoRA file, exactly what gives the same layer there.
"""
