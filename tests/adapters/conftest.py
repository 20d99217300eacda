"""What the tests of adapters share: PEFT itself loading an adapter of ours."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from loralight.adapters import Adapter
from loralight.adapters.base import trainable

LoadInPeft = Callable[[Adapter, nn.Module, nn.Module], nn.Module]


@pytest.fixture
def load_in_peft(tmp_path: Path) -> LoadInPeft:
    """Takes (adapter, adapted model, base model) and returns the base model with the adapter that PEFT read."""

    def load(adapter: Adapter, adapted: nn.Module, base: nn.Module) -> nn.Module:
        names = adapter.peft_names(adapted)
        tensors = {
            f"base_model.model.{names.get(name, name)}": p.detach().contiguous()
            for name, p in trainable(adapted).items()
        }
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(adapter.peft_config(adapted)))
        return PeftModel.from_pretrained(base, str(tmp_path)).eval()

    return load
