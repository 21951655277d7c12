"""tda against its peers: the same request, weights and threads, each in a fresh process of every block.

    python -m experiments.peers --out results/peers --record benchmarks/records/MACHINE/peers

goes on where it stopped, then writes RECORD.csv and RECORD.md. It needs the extra
``peers``; with ``--device cuda`` those that run on a GPU take part, and need none of it.
"""

import argparse
from pathlib import Path

import pandas as pd

from experiments.peers.blocks import run
from experiments.peers.contestants import BOTH, SYSTEMS, on_device
from experiments.peers.job import Job, PeerPlan
from experiments.peers.table import contestant_rows, markdown
from tda.device import commit, machine
from tda.models import is_shape
from tda.models.shapes import shape_config
from tda.quality import random_documents
from tda.results import write_whole


def main() -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/peers"))
    parser.add_argument("--record", type=Path, default=Path("results/peers/record"))
    parser.add_argument("--model", default="shape:1b", help="a Llama with random weights")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--peer", choices=SYSTEMS, action="append", help="only these; repeatable")
    parser.add_argument("--device", choices=BOTH, default="cpu")
    options = parser.parse_args()
    if not is_shape(options.model):
        parser.error(f"--model takes a shape, such as shape:1b; got {options.model!r}")
    vocabulary = shape_config(options.model.removeprefix("shape:")).vocab_size
    prompt = random_documents(vocabulary, options.prompt_tokens, 0, 1, seed=0)[0].prompt
    try:
        facts = machine(options.device)
    except ValueError as error:
        parser.error(str(error))
    job = Job(
        model=options.model,
        prompt=tuple(prompt.tolist()),
        new_tokens=options.new_tokens,
        threads=facts.threads,
        device=options.device,
    )
    contestants, left_out = on_device(SYSTEMS, job.device)
    for sentence in left_out:
        print(sentence)
    if absent := [name for name in options.peer or () if name not in contestants]:
        parser.error(f"not on {job.device} here: {', '.join(absent)}; there are {', '.join(contestants)}")
    names = tuple(name for name in contestants if name in (options.peer or contestants))
    plan = PeerPlan(job=job, contestants=names, machine=facts, commit=commit())
    rows = run(options.out, plan, contestants, options.blocks)
    table = pd.DataFrame(contestant_rows(plan, rows))
    write_whole(options.record.with_suffix(".csv"), table.to_csv(index=False, float_format="%.5g"))
    text = markdown(plan, rows, table)
    write_whole(options.record.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
