"""What comes out of a run and is looked at: LoRA file, charts, verdict, previews."""
