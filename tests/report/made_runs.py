"""Run folders that no training made: what a report reads, with whatever text a test wants in it."""

import json
from collections.abc import Sequence
from pathlib import Path

from groupwise.observe.statistics import mean_interval, proportion_interval

HOSTILE = (
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<img src=x onerror='window.hacked = 3'>",
    "<svg/onload=window.hacked=4>",
    '"><iframe srcdoc="<script>parent.hacked = 5</script>"></iframe>',
    "<a href='javascript:window.hacked=6' autofocus onfocus=window.hacked=6>click</a>",
    "{{ 7 * 7 }} {% raw %} ${window.hacked = 7} <!-- --> ]]>",
    "<style>@import 'http://192.0.2.1/x.css';</style><link rel=stylesheet href=http://192.0.2.1/y.css>",
    "<img src='http://192.0.2.1/pixel.png'><video poster=http://192.0.2.1/z.png>",
    "<meta http-equiv=refresh content='0;url=http://192.0.2.1/'><base href=http://192.0.2.1/>",
    "<form action=http://192.0.2.1/><button autofocus>send</button></form>",
    "\u2028window.hacked = 8;\u2029 \\u003cscript\\u003ewindow.hacked = 9\\u003c/script\\u003e",
    "<!--<script>\x00\x1b[31m\u202etxet desrever",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src onerror=window.hacked=10>'>",
)


def grpo_run(
    folder: Path,
    *,
    texts: Sequence[str] = ("#### 3", "1 + 2 = 3\n#### 3"),
    prompts: int = 12,
    steps: int = 30,
    samples: int = 4,
    right_after: float = 1.0,
    name: str = "made",
    beta: float = 0.04,
) -> Path:
    """A finished group-relative run; every second answer is right before, `right_after` of them after."""
    folder.mkdir(parents=True)
    config = {
        "model": {"path": "model/base"}, "data": {"train": [f"{name}.jsonl"]}, "steps": steps,
        "rewards": [{"name": "exact_answer"}], "loss": {"kl_coefficient": beta},
        "run": {"name": name}, "rollout": {"completions_per_prompt": samples}, "eval": {"samples_per_prompt": samples},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    _write(folder / "metrics.jsonl", [_metrics(step, steps, texts[0]) for step in range(1, steps + 1)])
    keys = [f"data.jsonl:{i}" if i else f"data.jsonl:{texts[0]}" for i in range(prompts)]
    evaluated = [max(1, round(part * steps / 5)) for part in range(1, 6)]
    _write(
        folder / "heldout.jsonl",
        [
            {"step": step, "keys": keys, "values": {"pass@1": [float((i + step) % 3 > 0) for i in range(prompts)]}}
            for step in evaluated
        ],
    )
    before = [[(i + j) % 2 == 0 for j in range(samples)] for i in range(prompts)]
    after = [[(i * samples + j) < right_after * prompts * samples for j in range(samples)] for i in range(prompts)]
    _write(
        folder / "samples.jsonl",
        [
            {
                "key": keys[i],
                "prompt": f"{texts[i % len(texts)]} prompt {i}",
                "before": {"sampled": [_answer(texts[(i + j) % len(texts)], before[i][j]) for j in range(samples)]},
                "after": {"sampled": [_answer(texts[(i + j + 1) % len(texts)], after[i][j]) for j in range(samples)]},
            }
            for i in range(prompts)
        ],
    )
    _write(
        folder / "transcripts.jsonl",
        [
            {
                "step": step, "key": keys[0], "phase": "train",
                **({"reason": f"all rewards are equal {texts[0]}"} if step % 2 else {}),
                "prompt": texts[step % len(texts)],
                "completions": [
                    {"text": text, "score": 1.0, "finished": True, "tokens": 5, "advantage": 0.5} for text in texts
                ],
            }
            for step in range(1, steps + 1)
        ],
    )  # fmt: skip
    rates = [[sum(own) / samples for own in part] for part in (before, after)]
    figures = [{"pass@1": mean_interval(rate), "greedy": proportion_interval(0, prompts)} for rate in rates]
    zero, some = mean_interval([0.0]), mean_interval([1.0, 1.5])
    parts = [figures[0] | {"kl/sequence": zero}, figures[1] | {"kl/sequence": some}]
    summary = {
        "verdict": {"kind": "gain", "text": f"It worked: {texts[0]}"},
        **{
            part: {key: figure.as_dict() for key, figure in own.items()}
            for part, own in zip(("before", "after"), parts, strict=True)
        },
        "data": {"train": {"rows_read": 5, "dropped": {texts[0]: 3}}},
        "hashes": {"base_model": "0123"},
        "versions": {"python": "3"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def _metrics(step: int, steps: int, name: str) -> dict[str, object]:
    part = step / steps
    held_out = {"eval/pass@1": part, "eval/pass@1/low": part - 0.1, "eval/pass@1/high": part + 0.1}
    return {
        "step": step, "reward": part, "kl": 0.01 * part, "entropy": 1.0, "grad_norm": 0.5, "learning_rate": 1e-3,
        "completions/mean_length": 20.0 + step % 3, "completions/clipped_ratio": 0.0, "frac_reward_zero_std": 0.1,
        "clip_ratio/low": 0.0, "clip_ratio/high": 0.0, "rewards/faults": 0, f"rewards/{name}/mean": part,
        "time/sample_s": 1.0, "time/score_s": 0.1, "time/forward_s": 0.5, "time/backward_s": 1.2, "time/step_s": 3.0,
        "tokens/completion": 100, "tokens/prompt": 50, "tokens_per_second": 50.0, "advantages/size": 0.9,
        "reward_std": 0.3, "loss": 0.0, "ratio": 1.0, "groups/used": 8, "groups/no_signal": 0,
        **(held_out if step % max(1, steps // 5) == 0 else {}),
    }  # fmt: skip


def _answer(text: str, right: bool) -> dict[str, object]:
    return {"text": text, "tokens": len(text), "finished": True, "score": float(right), "right": right}


def _write(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
