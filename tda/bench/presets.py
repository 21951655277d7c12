"""What a bench measures where nothing else is asked: the presets."""

from typing import Any

from tda.bench.budget import MOST_ROUNDS
from tda.bench.plan import Plan, Subject
from tda.names import Preset
from tda.tasks import Ask

PAPER = ("tt", "griffin", "tda")
PAPER_MODELS = {
    "facebook/opt-350m": "opt-350m",
    "facebook/opt-2.7b": "opt-2.7b",
    "google/gemma-2b": "gemma-2b",
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
}
"""Hub ids of the models of the paper of TDA, smallest first, and the shape of each."""
PAPER_TASKS = (
    "hellaswag", "piqa", "copa", "arc_challenge", "boolq", "coqa", "qasper", "xsum", "cnn_dailymail",
)  # fmt: skip
ON_GPU = ("dense", "griffin", "tda", "cats", "tt")
WIDE = "ref:wide"
"""The trained model whose quality and speed the presets measure."""


def _reference(name: str, **sizes: Any) -> Subject:
    return Subject(f"ref:{name}", **{"prompt_tokens": 256, "new_tokens": 128, "speed": False, **sizes})


def _shape(name: str, **options: Any) -> Subject:
    return Subject(f"shape:{name}", **{"dtype": "bfloat16", "quality": False, "layer_sparsity_from": WIDE, **options})


PRESETS: dict[Preset, Plan] = {
    "smoke": Plan(
        (Subject(WIDE, prompt_tokens=64, new_tokens=16),),
        sparsities=(0.5,),
        rounds=5,
        documents=8,
        calibration_documents=16,
        recall=False,
        budget_s=50,
        precision=0.02,
    ),
    "default": Plan(
        (Subject(WIDE, prompt_tokens=256, new_tokens=32),),
        rounds=6,
        documents=24,
        calibration_documents=32,
        recall=False,
        budget_s=300,
        precision=0.02,
        most_rounds=MOST_ROUNDS,
    ),
    "nightly": Plan(
        (
            Subject(WIDE, prompt_tokens=256, new_tokens=128),
            *(_reference(name) for name in ("relu", "geglu")),
            _shape("1b", prompt_tokens=128, new_tokens=32),
        ),
        sparsities=(0.25, 0.5, 0.75, 0.9),
        rounds=11,
        documents=96,
    ),
    "paper": Plan(
        tuple(Subject(name, prompt_tokens=512, new_tokens=128, dtype="bfloat16") for name in PAPER_MODELS),
        methods=PAPER,
        speed_methods=("dense", *PAPER),
        tasks=tuple(Ask(name) for name in PAPER_TASKS),
        documents=0,
        device="cuda",
    ),
    # 10 cases (dense, its A/A control, four methods at two sparsities), 5 rounds, 512 prompt and 32 new tokens. The
    # sparsity is the same in all layers: to imitate those of a trained model one would have to be scored first.
    "gpu": Plan(
        (_shape("llama-3-8b", prompt_tokens=512, new_tokens=32, layer_sparsity_from=None),),
        methods=ON_GPU,
        sparsities=(0.5, 0.75),
        speed_methods=ON_GPU,
        rounds=5,
        device="cuda",
        budget_s=120,
    ),
}
"""Presets by name. `plan_of` takes their model of both axes in a size that no cache holds, if the budget affords it."""
