"""A second device for PyTorch and ComfyUI that needs no hardware: `second:0`.

It is the CPU under another name (`second_device.cpp`), strict as a GPU about what lies where. What
it cannot show is whatever depends on kernels, on speed, or on work that is not waited for. A device
stays in a process until its end: use it in one of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
import types
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("second_device.cpp")
NAME = "second"
ROOM = 4 << 30
"""Bytes that ComfyUI is told there are."""


def build(compiler: str, folder: Path) -> Path:
    """The library, ready to be imported.

    Raises:
        subprocess.CalledProcessError: it cannot be compiled.
    """
    library = folder / f"second_device{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-std=c++20", "-O0", str(SOURCE), "-o", str(library)),
            *("-DTORCH_EXTENSION_NAME=second_device", *(f"-I{path}" for path in includes)),
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            *("-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    return library


def register(library: Path) -> Any:
    """Let torch know the device.

    Returns:
        The library, with ``bytes_in_use()``.
    """
    spec = importlib.util.spec_from_file_location("second_device", library)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    torch.utils.rename_privateuse1_backend(NAME)
    stream = found.default_generator
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed = module.manual_seed_all = lambda seed: stream().manual_seed(seed)
    module.get_rng_state = lambda device=None: stream().get_state()
    module.set_rng_state = lambda state, device=None: stream().set_state(state)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return found


def let_comfyui_use(library: Any, device: torch.device) -> None:
    """ComfyUI asks CUDA what its device is and has; these are the answers for this one."""
    import comfy.model_management as mm

    on_cpu = mm.get_total_memory, mm.get_free_memory

    def total(of: Any = None, torch_total_too: bool = False) -> Any:
        if mm.is_device_cpu(of):
            return on_cpu[0](of, torch_total_too)
        return (ROOM, ROOM) if torch_total_too else ROOM

    def free(of: Any = None, torch_free_too: bool = False) -> Any:
        if mm.is_device_cpu(of):
            return on_cpu[1](of, torch_free_too)
        room = max(0, ROOM - library.bytes_in_use())
        return (room, 0) if torch_free_too else room

    mm.cpu_state, mm.vram_state = mm.CPUState.GPU, mm.VRAMState.NORMAL_VRAM
    mm.get_torch_device = lambda: device
    mm.get_total_memory, mm.get_free_memory = total, free
    mm.should_use_fp16 = mm.should_use_bf16 = lambda of=None, *_, **__: not mm.is_device_cpu(of)
    mm.supports_fp8_compute = lambda of=None: False
