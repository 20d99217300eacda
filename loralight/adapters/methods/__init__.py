"""The methods of fine-tuning, one per file: LoRA, its relatives, and the methods they are compared with."""
