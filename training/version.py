"""The pack's version, as pyproject.toml has it; written into every LoRA."""

VERSION = "0.1.0"
