"""The methods of fine-tuning, one per file: LoRA, its variants, and the baselines they are compared with."""
