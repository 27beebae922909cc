"""What a rollout costs the process that holds it, with no model at all: memory, reading what servers say, the way.

python -m benchmarks.scaling_host [--prompts 30] [--group 64] [--tokens 2048]

A process reads the answers that it asked for, finds advantages, cuts and packs its groups for the way to who learns
from them, and unpacks as much. Printed are CPU seconds of one thread, the least of three.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from groupwise.batch import cut_groups, pack, split_by_tokens
from groupwise.cost.network import parcel_bytes
from groupwise.cost.shapes import shapes_of
from groupwise.groups import Completion, Group, forward_tokens
from groupwise.model.drawing import SamplingParams
from groupwise.preflight.memory import resident_bytes
from groupwise.servers.answers import AnswerRules, Ask, read_completions
from groupwise.train.exchange import deal
from groupwise.train.share import StepTotals, packed, unpacked
from grpo.advantages import group_advantages

REPEATS = 3
PROMPT = 200  # tokens
TOKENS_PER_FORWARD = 16_384
FIELDS = 3  # numbers per token that are sent: log-probs as sampled and as drawn, advantages
Result = TypeVar("Result")


def made_up(prompts: int, n: int, tokens: int) -> list[Group]:
    """A rollout as it comes from servers: ids above 256, which Python does not share, and two log-probs a token."""
    generator = torch.Generator().manual_seed(0)
    groups: list[Group] = []
    for number in range(prompts):
        ids = torch.randint(1000, 100_000, (n, tokens), generator=generator)
        groups.append(
            Group(
                key=f"prompts.jsonl:{number}",
                prompt_ids=tuple(range(1000, 1000 + PROMPT)),
                completions=tuple(
                    Completion(
                        token_ids=tuple(own.tolist()),
                        finished=False,
                        score=float(own[0] % 2),
                        sampled_logp=torch.randn(tokens, generator=generator),
                        drawn_logp=torch.randn(tokens, generator=generator).abs().neg(),
                    )
                    for own in ids
                ),
            )
        )
    return groups


def timed(name: str, count: int, deed: Callable[[], Result]) -> Result:
    """What the deed gives; prints CPU seconds per 10,000 completions."""
    seconds: list[float] = []
    for _ in range(REPEATS - 1):
        started = time.process_time()
        deed()
        seconds.append(time.process_time() - started)
    started = time.process_time()
    result = deed()
    seconds.append(time.process_time() - started)
    print(f"| {name} | {min(seconds) / count * 1e4:.2f} s |", flush=True)
    return result


def reply_of(group: Group) -> str:
    """What a vLLM server says of a group, with all that it adds to what is asked for."""
    choices: list[object] = []
    for index, completion in enumerate(group.completions):
        assert completion.drawn_logp is not None
        logp: list[float] = completion.drawn_logp.tolist()
        words = [f" w{i % 1000}" for i in completion.token_ids]
        said = {
            "text_offset": list(range(0, 5 * len(words), 5)),
            "token_logprobs": logp,
            "tokens": words,
            "top_logprobs": [{word: value} for word, value in zip(words, logp, strict=True)],
        }
        choices.append(
            {
                "index": index,
                "text": "".join(words),
                "logprobs": said,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": completion.token_ids,
                "prompt_logprobs": None,
                "prompt_token_ids": group.prompt_ids,
            }
        )
    return json.dumps({"model": "version", "choices": choices})


def read(replies: list[str], group: Group) -> None:
    """Every reply as completions; all are of groups of one size."""
    tokens = len(group.completions[0].token_ids)
    ask = Ask(prompt_ids=group.prompt_ids, n=len(group.completions), seed=0, most_new_tokens=tokens)
    rules = AnswerRules(params=SamplingParams(max_new_tokens=tokens), end_ids=frozenset(), vocabulary=100_000)
    for reply in replies:
        read_completions(json.loads(reply), ask, rules, "version")


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
    parser.add_argument("--prompts", type=int, default=30, help="default %(default)s")
    parser.add_argument("--group", type=int, default=64, help="completions of each (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=2048, help="of each completion (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    count = args.prompts * args.group
    tokens = count * args.tokens
    before = resident_bytes()  # later the heap has holes that hide what is held
    groups = with_advantages(made_up(args.prompts, args.group, args.tokens))
    print(f"held: {(resident_bytes() - before) / tokens:.0f} bytes per completion token")
    few = groups[: max(1, args.prompts // 10)]
    replies = [reply_of(group) for group in few]
    print(f"{count} completions of {args.tokens} tokens\n| part | CPU per 10,000 completions |\n|---|---|")
    timed("read from servers' replies", len(few) * args.group, lambda: read(replies, groups[0]))
    groups = timed("advantages", count, lambda: with_advantages(groups))
    timed("counts of the step", count, lambda: StepTotals.of(groups))
    parts = timed(f"cut to {TOKENS_PER_FORWARD:,} tokens", count, lambda: cut_groups(groups, TOKENS_PER_FORWARD))
    timed("dealt to 64 processes", count, lambda: deal([forward_tokens(part) for part in parts], 64))
    placed = [((0, number), part) for number, part in enumerate(parts)]
    content = timed("packed for the way", count, lambda: packed(placed))
    timed("unpacked", count, lambda: unpacked(content))
    timed("packed into rows", count, lambda: [len(pack(p).keys) for p in split_by_tokens(parts, TOKENS_PER_FORWARD)])
    said = len(content) / parcel_bytes(shapes_of(parts), fields=FIELDS) - 1
    print(f"\non its way: {len(content) / tokens:.1f} bytes per completion token ({said:+.2%} of what the model says)")
    print(f"a reply: {sum(map(len, replies)) / (len(few) * args.group * args.tokens):.0f} bytes per completion token")


if __name__ == "__main__":
    main()
