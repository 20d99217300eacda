"""The methods of fine-tuning, one a file: LoRA, its relatives, and what they are compared with."""
