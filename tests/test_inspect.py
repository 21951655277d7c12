"""What is said of a model is what attaching does, and `tda models --check` says it of a folder, a shape or a name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import contract
import pytest
import tiny
import torch
from torch import nn
from transformers import OpenAIGPTConfig

import tda
from tda.bench.inspect import inspect
from tda.families import FAMILIES, find_ffns
from tda.kernels.native import library
from tda.methods import METHODS, Dense, method
from tda.models.reference import WEIGHTS

NAMES = ["llama", "opt", "gemma2", "stablelm", "granite", "gptj", "apertus"]
"""With a gate and without; whole steps, layer by layer, and an activation that the kernels do not know."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_offered_is_what_attaching_does(name: str, dtype: torch.dtype) -> None:
    """At sparsity 0, which runs on what any sparsity runs on and needs no thresholds."""
    model = tiny.build(name).to(dtype)
    found = inspect(model)
    assert [offer.method for offer in found.offers] == list(METHODS)
    for offer in found.offers:
        chosen = method(offer.method, 0)
        if offer.problem is not None:
            with pytest.raises(ValueError, match="needs a gated FFN"):
                chosen.check(find_ffns(model)[0])
            continue
        assert (offer.auto is None) == isinstance(chosen, Dense)
        for execution, runs in offer.executions.items():
            if runs.startswith("refused: "):
                refused = pytest.raises(ValueError, match=re.escape(runs.removeprefix("refused: ")))
                with refused, attached(model, chosen, execution):
                    pass
                continue
            with attached(model, chosen, execution) as run:
                assert run.backend == runs
        if offer.auto is not None:
            with attached(model, chosen, "auto") as run:
                assert run.backend in (offer.executions[offer.auto], found.kernels)  # it tells why int8 runs on torch
                assert chosen.name == "int8" or run.attachment.decoding.execution == offer.auto
    own = method("dense", dense_kernel="own")
    with tda.attach(model, own) as run:
        assert run.backend == found.kernels
        assert (run.attachment.decoding.step is not None) == (found.kernels == "c")


@pytest.mark.parametrize("name", [*tiny.names(), *tiny.further(), *contract.MIXTURES])
def test_every_type_can_be_looked_at(name: str) -> None:
    found = inspect(tiny.model(name))
    assert found.weight_bytes_per_token > 0
    assert found.kernels.startswith(("c", "torch"))
    assert "not contiguous" not in found.kernels


def attached(model: Any, chosen: Any, execution: Any) -> Any:
    """A method attached in an execution."""
    return tda.attach(model, chosen, execution=execution)


def test_sizes_and_bytes() -> None:
    """Everything but the embedding table is read, once; the FFN's part by hand."""
    model = tiny.model("opt")
    found = inspect(model)
    ffn = 2 * (tiny.F * tiny.D * 2 + tiny.F + tiny.D) * 4
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    read = sum(parameter.nbytes for parameter in model.parameters()) - sum(table.nbytes for table in tables)
    read += model.lm_head.weight.nbytes  # tied
    assert (found.layers, found.hidden_size, found.neurons) == (2, tiny.D, (tiny.F, tiny.F))
    assert (found.ffn, found.activation, found.dtype, found.device) == ("plain", "relu", "float32", "cpu")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.weight_bytes_per_token == read
    assert found.ffn_share == pytest.approx(ffn / read)


def test_what_cannot_take_a_method_is_refused() -> None:
    class Quantised(nn.Linear):
        """Weights with an arithmetic of their own."""

    model = tiny.build("gptj")
    model.transformer.h[1].mlp.fc_in.__class__ = Quantised
    with pytest.raises(ValueError, match=r"layer 1: up .*Quantised, .*merge adapters"):
        inspect(model)
    model = tiny.build("granite")
    mlp = model.model.layers[1].mlp
    own = mlp.forward
    mlp.forward = lambda x: 1.5 * own(x)
    with pytest.raises(ValueError, match="FFN does more"):
        inspect(model)


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny GPT-J with a byte tokenizer."""
    from experiments.train import byte_tokenizer

    tiny.build("gptj", vocab_size=300).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_checked(command: Any, folder: Path) -> None:
    code, out, err = command("models", "--check", folder, "--dtype", "bfloat16", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["model"] == str(folder)
    assert (found["model_type"], found["family"], found["ffn"], found["dtype"]) == ("gptj", "gptj", "plain", "bfloat16")
    assert found["neurons"] == [tiny.F, tiny.F]
    offers = {offer["method"]: offer for offer in found["offers"]}
    assert set(offers) == set(METHODS)
    assert "needs a gated FFN" in offers["cats"]["problem"]
    code, out, err = command("models", "--check", folder)
    assert code == 0, err
    assert all(name in out for name in METHODS)
    if library.problem() is None:
        assert found["kernels"] == "c, layer by layer (family 'gptj' does not describe its decoder)"
        assert found["kernels"] in out


def test_weights_beyond_the_last_layer_are_refused(command: Any, folder: Path) -> None:
    """Whatever a family calls its list of layers."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 1}))
    code, _, err = command("models", "--check", folder)
    assert code == 2
    assert "num_hidden_layers is 1, and they hold transformer.h.1." in err


@pytest.mark.parametrize("name", ["shape:25m", "ref:relu"])
def test_a_model_known_by_name_is_checked(command: Any, name: str) -> None:
    code, out, err = command("models", "--check", name)
    assert code == 0, err
    assert "neurons per layer" in out
    if library.problem() is None:
        assert "whole decode steps of one row in one call" in out


def test_an_unsupported_architecture_is_one_sentence(command: Any, tmp_path: Path) -> None:
    OpenAIGPTConfig(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    code, out, err = command("models", "--check", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"tda: cannot load model '{tmp_path}': unsupported architecture 'openai-gpt'")
    assert "`tda models` lists those that are supported, and CONTRIBUTING " in err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"model_type": "t5"}, "unsupported architecture 't5'"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(
    command: Any, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    shutil.copytree(WEIGHTS / "swiglu", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    code, out, err = command("models", "--check", path.parent, "--json")
    assert (code, out) == (2, "")
    assert told in err


def test_a_path_that_is_missing(command: Any, tmp_path: Path) -> None:
    code, out, err = command("models", "--check", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith(f"tda: cannot load model '{tmp_path / 'nowhere'}'")


def test_families_are_listed(command: Any) -> None:
    code, out, _ = command("models", "--json")
    rows = {row["family"]: row for row in json.loads(out)["families"]}
    assert code == 0
    assert set(rows) == set(FAMILIES)
    assert rows["gated"]["decode_in_c"] == "whole steps"
    assert rows["neox"] == {
        "family": "neox",
        "model_types": "gpt_neox",
        "ffn": "plain",
        "decode_in_c": "layer by layer",
    }
    code, out, _ = command("models")
    assert code == 0
    assert all(name in out for name in ("shape:1b", "exaone4", "gpt_neox", "gated_by_layer"))
