"""What telemetry costs the work that it watches: decode steps of one model, alone and watched, in random order.

The timing pass of a bench is bracketed by two readings (`ConditionMonitor`), the telemetry pass has a thread
(`Sampler`). In each round a block of decode steps runs under every condition, alone twice: what its two runs differ by
is noise. A block's number is the sum of its steps' times; a ratio is taken within a round, its interval is over rounds.

    python -m experiments.telemetry_cost --out benchmarks/records/telemetry_cost.csv
"""

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tda
from tda.device import Timer, machine
from tda.engine.phases import decode, prefill
from tda.results import write_whole
from tda.statistics import geometric
from tda.telemetry import ConditionMonitor, Sampler, flags_of
from tda.telemetry.conditions import sources

PROMPT = 64
BLOCK_S = 0.3
"""Length of a block: a few intervals of the sampler."""


@contextmanager
def bracketed(device: torch.device) -> Iterator[None]:
    """Two readings around a block."""
    monitor = ConditionMonitor(device)
    yield
    monitor.read()


CONDITIONS: dict[str, Callable[[torch.device], AbstractContextManager[Any]]] = {
    "alone": lambda device: nullcontext(),
    "alone again": lambda device: nullcontext(),
    "two readings": bracketed,
    "sampler": lambda device: Sampler(device),
}


class CostRounds:
    """Blocks of equal decode steps on one prompt's cache.

    Parameters
    ----------
    name : str
        The model.
    device : torch.device
        Where it runs.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.model = tda.load_model(name, device=str(device))[0]
        draw = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(1, 1000, (1, PROMPT), generator=draw).to(device)
        self.cache = prefill(self.model, self.prompt).cache
        self.fresh = copy.deepcopy(vars(self.cache))
        self.steps = 10
        self.steps = max(10, round(10 * BLOCK_S / self.seconds()))

    def seconds(self) -> float:
        """Sum of the times of one block's steps."""
        vars(self.cache).update(copy.deepcopy(self.fresh))
        clock, total = Timer(self.device), 0.0
        for step in range(self.steps):
            token = self.prompt[:, step % PROMPT : step % PROMPT + 1]
            with clock.timing():
                decode(self.model, token, self.cache)
            total += clock.ms / 1000
        return total


def measure(blocks: CostRounds, rounds: int) -> pd.DataFrame:
    """Seconds of each condition, one row a round; rounds in which others used the cores are done again."""
    order = random.Random(0)
    rows: list[dict[str, float]] = []
    while len(rows) < rounds:
        row, whole = {}, ConditionMonitor(blocks.device)
        for condition in order.sample(list(CONDITIONS), len(CONDITIONS)):
            with CONDITIONS[condition](blocks.device):
                row[condition] = blocks.seconds()
        if not flags_of(whole.read())["foreign_load"].raised:
            rows.append(row)
    return pd.DataFrame(rows)


def ratios(times: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each condition over the block alone, with its 95% interval."""
    for condition in list(CONDITIONS)[1:]:
        ratio = geometric((times[condition] / times["alone"]).tolist())
        yield {"condition": condition, "rounds": len(times), "ratio": ratio.value, "low": ratio.low, "high": ratio.high}


def reading_ms(device: torch.device, rounds: int = 50) -> float:
    """CPU time of reading every quick field once."""
    held = sources(device)
    begin = time.process_time()
    for _ in range(rounds):
        for source in held:
            dict(source.read())
    return (time.process_time() - begin) * 1000 / rounds


@torch.no_grad()
def main() -> None:
    """Measure with one thread and with all, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shape:25m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, facts = torch.device(options.device), machine(options.device)
    rows = []
    for threads in sorted({1, facts.allowed_cores or facts.cores}):
        torch.set_num_threads(threads)
        blocks = CostRounds(options.model, device)
        told = {
            "cpu": facts.cpu,
            "cores": facts.cores,
            "gpu": facts.gpu,
            "torch": facts.torch,
            "model": options.model,
            "threads": threads,
            "steps": blocks.steps,
            "reading_ms": reading_ms(device),
        }
        rows += [{**told, **ratio} for ratio in ratios(measure(blocks, options.rounds))]
    table = pd.DataFrame(rows)
    print(table.drop(columns=["cpu", "gpu", "torch"]).to_string(index=False, float_format="{:.4f}".format))
    if options.out:
        write_whole(options.out, table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
