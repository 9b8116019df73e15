"""Whether a LoRA is good, and when training it should have stopped: measures of its pictures and of
its loss, a rule that chooses by them, and how both are told. Torch only."""
