"""AutoGluon's AutoMM on the files of one data set, by a Python of an environment of its own.

    python -m venv AUTOMM && AUTOMM/bin/pip install autogluon.multimodal
    AUTOMM/bin/python benchmarks/automm.py DATA RESULT CHECKPOINT

DATA has train, validation and test as Parquet with columns ``text`` and ``label``. CHECKPOINT is a folder that
transformers reads. Only the base is given, and no GPU; everything else is AutoMM's default. The accuracies go to RESULT
as JSON.

AutoMM pins older versions of lightning, transformers and timm than loralight takes: hence the environment.
"""

import json
import sys
import tempfile
from pathlib import Path

import pandas as pd


def main(data: Path, result: Path, checkpoint: str) -> None:
    """Fit, judge, write."""
    from autogluon.multimodal import MultiModalPredictor  # only the other environment has it

    with tempfile.TemporaryDirectory() as folder:
        splits = {
            split: pd.read_parquet(data / f"{split}.parquet")[["text", "label"]]
            for split in ("train", "validation", "test")
        }
        predictor = MultiModalPredictor(label="label", eval_metric="accuracy", path=f"{folder}/model", verbosity=1)
        predictor.fit(
            splits["train"],
            tuning_data=splits["validation"],
            hyperparameters={
                "model.names": ["hf_text"],
                "model.hf_text.checkpoint_name": checkpoint,
                "env.num_gpus": 0,
                "env.num_workers": 0,
            },
        )
        scores = {
            f"{split}/accuracy": predictor.evaluate(splits[split])["accuracy"] for split in ("validation", "test")
        }
    result.write_text(json.dumps(scores))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
