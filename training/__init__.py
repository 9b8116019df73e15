"""The engine of LoRA Atelier: dataset -> network -> objective -> loop -> state -> LoRA file.

Torch only. What belongs to ComfyUI (its models, text encoders, VAEs) is reached through
``training.host`` alone, so everything else here can be read, tested and run without a host.
"""
