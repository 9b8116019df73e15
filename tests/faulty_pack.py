"""Custom nodes for the tests' servers: a MODEL that fails in the middle of a run, and a scale.

ComfyUI loads this file as a pack of its own. The failure sits where other packs put their code: in
the wrapper around the diffusion model.
"""

from __future__ import annotations

from typing import Any


class FailingModel:
    """MODEL -> the same MODEL, whose forward pass number `at_call` raises."""

    CATEGORY = "tests"
    FUNCTION = "wrap"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "at_call": ("INT", {"default": 3})}}

    def wrap(self, model: Any, at_call: int) -> tuple[Any]:
        calls = 0

        def forward(apply_model: Any, call: dict[str, Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls == at_call:
                raise RuntimeError("the lens cap is on")
            return apply_model(call["input"], call["timestep"], **call["c"])

        wrapped = model.clone()
        wrapped.set_model_unet_function_wrapper(forward)
        return (wrapped,)


class Memory:
    """Resident bytes of the server, after what is free was given back to the system."""

    CATEGORY = "tests"
    FUNCTION = "measure"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT", {"default": 0})}}

    def measure(self, number: int) -> dict[str, Any]:
        import ctypes
        import gc

        import psutil

        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return {"ui": {"bytes": [psutil.Process().memory_info().rss]}}


NODE_CLASS_MAPPINGS = {"TestFailingModel": FailingModel, "TestMemory": Memory}
