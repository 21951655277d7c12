"""The whole state of a model, to show that something left it bit for bit as it was."""

from typing import Any

import tiny
import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")


def state(model: nn.Module) -> dict[str, Any]:
    """All that attaching could change: attributes of every module, hooks, weights, buffers, and the output."""
    parts: dict[str, Any] = {}
    for path, module in model.named_modules():
        parts[f"{path}: attributes"] = sorted(vars(module))
        parts[f"{path}: training"] = module.training
        for name in HOOKS:
            parts[f"{path}: {name}"] = list(getattr(module, name))
        for name in ("forward", "generate", "__call__"):
            parts[f"{path}: own {name}"] = vars(module).get(name)
    parts |= {f"weight {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    parts["state_dict keys"] = list(model.state_dict())
    parts |= {f"buffer {name}": tensor.clone() for name, tensor in model.named_buffers()}
    parts |= {f"requires_grad {name}": tensor.requires_grad for name, tensor in model.named_parameters()}
    with torch.no_grad():
        parts["logits"] = model(tiny.text(2, 9, seed=77)).logits
        parts["generated"] = model.generate(tiny.text(1, 5, seed=78), max_new_tokens=4, do_sample=False)
    return parts


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for what, value in before.items():
        equal = torch.equal(value, after[what]) if isinstance(value, Tensor) else value == after[what]
        assert equal, f"{what} changed: {value} became {after[what]}"
