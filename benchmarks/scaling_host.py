"""What a rollout costs the processes that hold it, with no model at all: memory, exchange, packing.

python -m benchmarks.scaling_host [--prompts 200] [--group 64] [--tokens 256]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import distributed

from groupwise.batch import cut_groups, pack, split_by_tokens
from groupwise.groups import Completion, Group, forward_tokens
from groupwise.preflight.memory import resident_bytes
from groupwise.train.exchange import deal
from groupwise.train.share import StepTotals
from grpo.advantages import group_advantages

Result = TypeVar("Result")


def made_up(prompts: int, n: int, tokens: int) -> list[Group]:
    """A rollout as it comes from sampling: ids above 256, which Python does not share, and two log-probs a token."""
    generator = torch.Generator().manual_seed(0)
    groups: list[Group] = []
    for number in range(prompts):
        ids = torch.randint(1000, 100_000, (n, tokens), generator=generator)
        groups.append(
            Group(
                key=f"prompts.jsonl:{number}",
                prompt_ids=tuple(range(1000, 1200)),
                completions=tuple(
                    Completion(
                        token_ids=tuple(own.tolist()),
                        finished=True,
                        score=float(own[0] % 2),
                        sampled_logp=torch.zeros(tokens),
                        reference_logp=torch.zeros(tokens),
                    )
                    for own in ids
                ),
            )
        )
    return groups


def timed(name: str, count: int, deed: Callable[[], Result]) -> Result:
    """What the deed gives; prints CPU seconds per 10,000 completions."""
    started = time.process_time()
    result = deed()
    print(f"| {name} | {(time.process_time() - started) / count * 1e4:.2f} s |")
    return result


def exchanged(groups: list[Group]) -> list[list[Group] | None]:
    """What the only process of a group gets of what it sends: once written, once read."""
    received: list[list[Group] | None] = [None]
    distributed.all_gather_object(received, groups)
    return received


def with_advantages(groups: list[Group]) -> list[Group]:
    scores = [[c.score for c in group.completions] for group in groups]
    found = group_advantages(scores, scale="group_std")
    return [
        group.replace_completions(
            [
                replace(c, advantage=torch.full((len(c.token_ids),), advantage))
                for c, advantage in zip(group.completions, own, strict=True)
            ]
        )
        for group, own in zip(groups, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="default %(default)s")
    parser.add_argument("--group", type=int, default=64, help="completions of each (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, help="of each completion (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = args.prompts * args.group
    tokens = count * args.tokens
    before = resident_bytes()
    groups = made_up(args.prompts, args.group, args.tokens)
    print(f"held: {(resident_bytes() - before) / tokens:.0f} bytes per completion token")
    print(f"{count} completions of {args.tokens} tokens\n| part | CPU per 10,000 completions |\n|---|---|")
    with TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    timed("written for the other processes and read by one", count, lambda: exchanged(groups))
    groups = timed("advantages", count, lambda: with_advantages(groups))
    timed("counts of the step", count, lambda: StepTotals.of(groups))
    parts = timed("cut to 8,192 tokens", count, lambda: cut_groups(groups, 8192))
    timed("dealt to 64 processes", count, lambda: deal([forward_tokens(part) for part in parts], 64))
    timed("packed, all on one process", count, lambda: [len(pack(p).keys) for p in split_by_tokens(parts, 8192)])
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
