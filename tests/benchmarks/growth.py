"""What an iteration costs against responses, their length and the size of the model, each over a factor of 8.

    python tests/benchmarks/growth.py [--figure data/figures/growth.png]

A model of random weights gives responses of exactly the wanted length, rewards are noise, and every token has a
gradient: 4 updates an iteration, all weights, one thread, processor time. Wanted: linear within 10 %.
"""

import argparse
import sys
import tempfile
import time
import zlib
from pathlib import Path

import torch
from chain_iteration import timed
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

import erltool
from erltool.plots import COLOURS, new_axes
from erltool.policies import load
from erltool.tasks.task import Problem, Task, split
from erltool.training import loop

sys.path.insert(0, str(Path(__file__).parents[2] / "data/policies"))
from make import make_model, make_tokenizer

WARM, TIMED = 2, 6  # iterations
SYMBOLS = "0123456789+-=>"
BASE = {"responses": 256, "tokens": 32, "width": 96}
VALUES = {
    "responses": (128, 256, 512, 1024),
    "tokens": (16, 32, 64, 128),
    "width": (96, 136, 192, 272),  # twice as many weights each
}


def noise(name: str) -> Task:
    """Prompts of one length, with rewards that are right by chance."""
    problems = [Problem(f"{number:04d}=", "") for number in range(4000)]
    return Task(name, *split(problems), lambda problem, response: float(zlib.crc32(response.encode()) & 1))


def cost(responses: int, tokens: int, width: int, folder: Path) -> tuple[float, int]:
    """Seconds of processor time an iteration, and the model's weights."""
    place = folder / str(width)
    if not place.exists():
        torch.manual_seed(0)
        make_model(len(SYMBOLS) + 2, width, width * 8 // 3, 3, 256).save_pretrained(place)
        make_tokenizer(SYMBOLS).save_pretrained(place)
    config = erltool.TrainConfig(
        policy=str(place), task="noise", lora_rank=0, learning_rate=1e-6, prompts_per_iteration=responses // 8,
        max_response_tokens=tokens, steps=4 * (WARM + TIMED), eval_every=0, record_every=0, device="cpu",
    )  # fmt: skip
    taken, lengths = timed(config, WARM, time.process_time)
    assert set(lengths) == {float(tokens)}, lengths
    return taken, sum(p.numel() for p in erltool.load_policy(str(place), lora_rank=0).model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="where to draw it")
    figure = parser.parse_args().figure
    torch.set_num_threads(1)
    loop.load_task = noise
    load.ends_of_response = lambda tokenizer, model, source: (1 << 30,)  # a token that never comes
    [ax] = new_axes(1, width=5)
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, values) in enumerate(VALUES.items()):
            costs = [cost(**BASE | {name: value}, folder=Path(folder)) for value in values]
            units = [weights if name == "width" else value for value, (_, weights) in zip(values, costs, strict=True)]
            label = "weights" if name == "width" else name
            times = [unit / units[0] for unit in units]
            dearer = [taken / costs[0][0] for taken, _ in costs]
            for unit, (taken, _), more, much in zip(units, costs, times, dearer, strict=True):
                print(f"{label:9} {unit:9,}  {taken:6.3f} s  {much:5.2f} times for {more:.2f}: {much / more:.2f}")
            ax.plot(times, dearer, marker="o", color=COLOURS[index], label=label)
    ax.plot([1, 8], [1, 8], color="grey", linewidth=1, linestyle=":", label="linear")
    ax.set(xscale="log", yscale="log", xlabel="times as many", ylabel="times the cost of an iteration")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(FixedLocator([1, 2, 4, 8]))
        axis.set_major_formatter(ScalarFormatter())
    ax.legend(fontsize=8)
    if figure is not None:
        ax.figure.savefig(figure)


if __name__ == "__main__":
    main()
