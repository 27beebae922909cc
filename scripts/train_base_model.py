"""Train the embedded base model: a GPT-2 of two million parameters with its own tokenizer, from nothing, on one CPU.

    python scripts/train_base_model.py                        # 25 minutes on two cores; writes model/base_gpt2
    python scripts/train_base_model.py --architecture qwen2   # the same for a Qwen2, which vLLM puts adapters on
    python scripts/train_base_model.py --steps 200 --out /tmp/small
    python scripts/train_base_model.py --evaluate-only        # figures of the model that is there

The model reads fresh draws of the grammars in `scripts/make_data.py`, never a held-out prompt. It is left unfinished on
purpose, so that preference optimization and reinforcement learning have something to teach: it continues a review with
either sentiment, and it is meant to give most word problems a bare answer although it does better when it works them
out; `evaluate` measures how far that is so.
It knows nothing about DPO, GRPO, adapters or rewards other than the two truths of the data.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import make_data
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from groupwise.rewards.review_sentiment import review_sentiment

EOS = "<|endoftext|>"
ROOT = Path(__file__).resolve().parent.parent
Architecture = Literal["gpt2", "qwen2"]


@dataclass(frozen=True, slots=True)
class Document:
    """A prompt and what follows it; the tokenizer's end-of-text token comes after both."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the training run was: everything that the weights depend on, beside the grammars."""

    architecture: Architecture = "gpt2"
    steps: int = 2800
    rows_per_step: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    prompt_weight: float = 0.1  # weight of a prompt token in the loss; what a prompt says next is mostly chance
    review_share: float = 0.35  # documents that are reviews, drills aside
    drill_early: float = 0.45  # documents that are bare sums at the start; none after 60 % of the run
    worked_early: float = 0.95  # word problems that come with worked steps in the first part of the run
    worked_late: float = 0.50  # and in its last part; between the two the share falls in a line
    vocabulary: int = 1536
    width: int = 192
    layers: int = 4
    heads: int = 6
    positions: int = 512
    seed: int = 7


# --- text -------------------------------------------------------------------------------------------------------


def review_document(rng: random.Random) -> Document:
    """A review, positive or negative by the toss of a coin."""
    begin = make_data.opening(rng)
    return Document(begin.text, make_data.review_continuation(rng, begin, rng.choice((1, -1))))


def problem_document(rng: random.Random, worked_share: float) -> Document:
    """A word problem with worked steps, or with the bare answer."""
    problem = make_data.problem(rng)
    return Document(problem.prompt, problem.solution if rng.random() < worked_share else problem.bare_answer)


def drill_document(rng: random.Random, equations: int = 12) -> Document:
    """Equations as the worked solutions hold them, without their stories: many sums in few tokens."""
    lines: list[str] = []
    while len(lines) < equations:
        lines += make_data.problem(rng).solution.split("\n")[:-1]
    return Document("Sums:\n", "\n".join(lines[:equations]))


def corpus_document(rng: random.Random, recipe: Recipe, progress: float) -> Document:
    """A document as the corpus holds them at a progress in [0, 1]."""
    if rng.random() < recipe.drill_early * max(0.0, 1 - progress / 0.6):
        return drill_document(rng)
    if rng.random() < recipe.review_share:
        return review_document(rng)
    return problem_document(rng, worked_share_at(recipe, progress))


def unseen(draw: Callable[[random.Random], Document], rng: random.Random, heldout: frozenset[str]) -> Document:
    """A draw whose prompt is not held out."""
    while True:
        document = draw(rng)
        if document.prompt not in heldout:
            return document


def worked_share_at(recipe: Recipe, progress: float) -> float:
    """Share of word problems with worked steps, at a progress in [0, 1]: high for half of the run, falling for 15 %.

    >>> [round(worked_share_at(Recipe(worked_early=0.7, worked_late=0.3), x), 3) for x in (0.0, 0.5, 0.575, 0.65, 1.0)]
    [0.7, 0.7, 0.5, 0.3, 0.3]
    """
    fall = min(max((progress - 0.50) / 0.15, 0.0), 1.0)
    return recipe.worked_early + (recipe.worked_late - recipe.worked_early) * fall


def train_tokenizer(seed: int, vocabulary: int, positions: int, heldout: frozenset[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every digit is a token of its own."""
    rng = random.Random(f"tokenizer {seed}")
    draws: tuple[Callable[[random.Random], Document], ...] = (review_document, lambda r: problem_document(r, 0.3))
    documents = [unseen(draw, rng, heldout) for _ in range(4000) for draw in draws]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.prompt + document.completion for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=positions,
    )


def eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    return tokenizer.get_vocab()[EOS]


# --- training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Rows of one document each, padded at the end: ids [rows, length], and the weight of each token as a target."""

    ids: Tensor
    weights: Tensor


def batches(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, heldout: frozenset[str], *, pool_batches: int = 40
) -> list[TextBatch]:
    """Every batch of the run, in order; documents of like length share a batch, so that little is padding."""
    rng = random.Random(f"corpus {recipe.seed}")
    found: list[TextBatch] = []
    while len(found) < recipe.steps:
        progress = len(found) / recipe.steps
        documents = [
            unseen(lambda r: corpus_document(r, recipe, progress), rng, heldout)  # noqa: B023
            for _ in range(pool_batches * recipe.rows_per_step)
        ]
        assert not any(document.prompt in heldout for document in documents)
        prompts = tokenizer([document.prompt for document in documents])["input_ids"]
        completions = tokenizer([document.completion + EOS for document in documents])["input_ids"]
        rows = sorted(zip(prompts, completions, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        size = recipe.rows_per_step
        pool = [text_batch(rows[i : i + size], recipe.prompt_weight) for i in range(0, len(rows), size)]
        rng.shuffle(pool)
        found += pool
    return found[: recipe.steps]


def text_batch(rows: Sequence[tuple[list[int], list[int]]], prompt_weight: float) -> TextBatch:
    """One batch of (prompt ids, completion ids) rows."""
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int16)
    weights = torch.zeros(len(rows), length)
    for i, (prompt, completion) in enumerate(rows):
        ids[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        weights[i, : len(prompt)] = prompt_weight
        weights[i, len(prompt) : len(prompt) + len(completion)] = 1.0
    return TextBatch(ids, weights)


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> PreTrainedModel:
    """A network with fresh weights and no dropout. Both architectures have as many weights in their layers."""
    torch.manual_seed(recipe.seed)
    return (new_gpt2 if recipe.architecture == "gpt2" else new_qwen2)(tokenizer, recipe)


def new_qwen2(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Qwen2ForCausalLM:
    """Rotary positions, RMS norms, a gated inner layer, and a third of the heads for keys and values."""
    eos = eos_id(tokenizer)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=recipe.positions,
        hidden_size=recipe.width,
        intermediate_size=8 * recipe.width // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads // 3,
        initializer_range=0.04,
        attention_dropout=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def new_gpt2(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> GPT2LMHeadModel:
    """Learned positions, layer norms, as many heads for keys and values as for queries."""
    eos = eos_id(tokenizer)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.positions,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        initializer_range=0.04,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
        tie_word_embeddings=True,
    )
    return GPT2LMHeadModel(config)


def float32_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    """Causal attention in float32 under autocast: its bfloat16 backward is five times slower on a CPU.

    query, key, value: [rows, heads, length, width of a head]; returns [rows, length, heads, width of a head].
    """
    fewer = key.shape[1] < query.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, enable_gqa=fewer
        )
    return out.transpose(1, 2).contiguous(), None


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def loss_of(model: PreTrainedModel, batch: TextBatch, device: torch.device) -> Tensor:
    """The weighted mean negative log-probability of a batch's tokens, in nats."""
    ids = batch.ids.to(device, torch.long)
    weights = batch.weights.to(device)[:, 1:]
    # Rows are padded at the end, so the causal mask is enough; a mask of ones says that nothing else is masked.
    with torch.autocast(device.type, dtype=torch.bfloat16):
        hidden = model.base_model(ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1])).last_hidden_state
        logits = cast(torch.nn.Module, model.get_output_embeddings())(hidden[weights > 0])
    loss = F.cross_entropy(logits.float(), ids[:, 1:][weights > 0], reduction="none")
    return (loss * weights[weights > 0]).sum() / weights.sum()


def optimizers_of(model: PreTrainedModel, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms; one learning rate fits both."""
    inside = {name: p.dim() == 2 and (".h." in name or ".layers." in name) for name, p in model.named_parameters()}
    inner = [p for name, p in model.named_parameters() if inside[name]]
    others = [p for name, p in model.named_parameters() if not inside[name]]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return (
        torch.optim.Muon(inner, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    )


def train(model: PreTrainedModel, corpus: Iterable[TextBatch], recipe: Recipe, device: torch.device) -> float:
    """Run the whole schedule and return the mean loss of its last twentieth, in nats per token."""
    optimizers = optimizers_of(model, recipe)
    AttentionInterface.register("float32_causal", float32_attention)
    model.set_attn_implementation("float32_causal")
    model.train()
    began = time.monotonic()
    losses: list[float] = []
    for step, batch in enumerate(corpus):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(recipe, step)
        loss = loss_of(model, batch, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            recent = sum(losses[-50:]) / 50
            print(f"step {step + 1}/{recipe.steps}  loss {recent:.3f}  {time.monotonic() - began:.0f} s", flush=True)
    model.set_attn_implementation("sdpa")
    tail = losses[-max(1, len(losses) // 20) :]
    return sum(tail) / len(tail)


# --- evaluation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures on held-out prompts; shares in [0, 1]. `sampled` at temperature 1 from the whole distribution."""

    problems: int
    samples_per_problem: int
    greedy_accuracy: float
    sampled_accuracy: float
    sampled_worked_share: float
    accuracy_when_worked: float
    accuracy_when_bare: float
    problems_solved_sometimes: float  # neither always right nor always wrong: what a group can learn from
    reviews_sampled: int
    reviews_positive: float
    reviews_negative: float
    finished_share: float  # samples that ended by themselves


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[make_data.Problem],
    review_prompts: Sequence[str],
    *,
    seed: int = 0,
    samples: int = 4,
) -> Evaluation:
    """Greedy and sampled accuracy on word problems, and the sentiment of sampled reviews."""
    generator = torch.Generator().manual_seed(seed)
    asked = [problem.prompt for problem in problems]
    greedy = complete(model, tokenizer, asked, generator, greedy=True)
    texts = complete(model, tokenizer, [prompt for prompt in asked for _ in range(samples)], generator)
    right = [is_right(text, problems[i // samples]) for i, text in enumerate(texts)]
    worked = ["=" in text for text in texts]
    per_problem = [sum(right[i : i + samples]) for i in range(0, len(right), samples)]
    reviews = complete(model, tokenizer, [prompt for prompt in review_prompts for _ in range(2)], generator)
    scores = [review_sentiment(review) for review in reviews]
    return Evaluation(
        problems=len(problems),
        samples_per_problem=samples,
        greedy_accuracy=mean([is_right(text, problem) for text, problem in zip(greedy, problems, strict=True)]),
        sampled_accuracy=mean(right),
        sampled_worked_share=mean(worked),
        accuracy_when_worked=mean([r for r, w in zip(right, worked, strict=True) if w]),
        accuracy_when_bare=mean([r for r, w in zip(right, worked, strict=True) if not w]),
        problems_solved_sometimes=mean([0 < count < samples for count in per_problem]),
        reviews_sampled=len(reviews),
        reviews_positive=mean([score > 0 for score in scores]),
        reviews_negative=mean([score < 0 for score in scores]),
        finished_share=mean([text.endswith(EOS) for text in (*texts, *reviews)]),
    )


def is_right(text: str, problem: make_data.Problem) -> bool:
    """Whether a completion's last line states the answer."""
    return text.removesuffix(EOS).rpartition("\n")[2].strip() == f"#### {problem.answer}"


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    generator: torch.Generator,
    *,
    greedy: bool = False,
    most_tokens: int = 80,
) -> list[str]:
    """One completion of every prompt, in order, with the end-of-text token where it came.

    Prompts of one length are sampled together, so there is nothing to pad.
    """
    model.eval()
    device = model.device
    eos = eos_id(tokenizer)
    ids_of: list[list[int]] = tokenizer(list(prompts))["input_ids"]
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(ids_of):
        by_length.setdefault(len(ids), []).append(i)
    texts = [""] * len(prompts)
    for _, members in sorted(by_length.items()):
        step_ids = torch.tensor([ids_of[i] for i in members], device=device)
        written: list[list[int]] = [[] for _ in members]
        done = torch.zeros(len(members), dtype=torch.bool)
        cache = None
        for _ in range(most_tokens):
            output = model(input_ids=step_ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = output.logits[:, -1].float().cpu()
            chosen = (
                logits.argmax(-1)
                if greedy
                else torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
            )
            for row, token in enumerate(chosen.tolist()):
                if not done[row]:
                    written[row].append(token)
            done |= chosen == eos
            if bool(done.all()):
                break
            step_ids = chosen[:, None].to(device)
        for row, i in enumerate(members):
            texts[i] = str(tokenizer.decode(written[row]))
    return texts


# --- files ------------------------------------------------------------------------------------------------------


def heldout_of(data: Path) -> tuple[list[make_data.Problem], list[str]]:
    """The held-out problems and review prompts that the project ships."""
    rows = json.loads((data / "prompts.json").read_text(encoding="utf-8"))
    problems = [
        make_data.Problem(row["prompt"], row["answer"], row["solution"]) for row in rows if row["split"] == "heldout"
    ]
    lines = (data / "raw" / "reviews_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return problems, [json.loads(line)["prompt"] for line in lines]


def move(model: torch.nn.Module, device: torch.device) -> None:
    model.to(device)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights (safetensors, float32), tokenizer and configuration."""
    move(model, torch.device("cpu"))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def model_card(model: PreTrainedModel, recipe: Recipe, command: str, final_loss: float, figures: Evaluation) -> str:
    """The README beside the weights."""
    config = model.config
    kind = {"gpt2": "GPT-2", "qwen2": "Qwen2"}[recipe.architecture]
    place = {"gpt2": "the embedded default of this project", "qwen2": "the embedded default's twin of another family"}
    return f"""# base_{recipe.architecture}

A {kind} of {model.num_parameters() / 1e6:.2f} million parameters ({recipe.layers} layers, width {recipe.width},
{recipe.heads} heads, {recipe.positions} positions, {config.vocab_size} tokens), trained from nothing on text that
`scripts/make_data.py` makes up: short film reviews and arithmetic word problems. It is
{place[recipe.architecture]}:
small enough for a CPU, and unfinished in a way that can be measured.

- **Reviews**: it continues a neutral opening with either sentiment. DPO teaches it to prefer the positive one.
- **Word problems**: in the later part of its training {recipe.worked_late:.0%} of the problems came with worked steps
  and the others with a bare answer. The aim is a model that is mostly right when it works a problem out and mostly
  wrong when it answers at once, so that GRPO has a habit to teach. The figures say how near this copy is to that aim.

Outside these two grammars it knows nothing. A text is a prompt and its completion, without a token in front; `{EOS}`
ends every text and is also the padding token. A review prompt has no trailing space and its completion begins with one;
a word problem ends in a newline. Every digit is one token. Texts of the training end before position 150: what comes
later in the window of {recipe.positions} was never trained.

## Figures

On the held-out prompts of `data/`, which the training never draws. Sampling is at temperature 1 from the whole
distribution.

| figure | value |
|---|---|
| word problems, greedy | {figures.greedy_accuracy:.1%} right of {figures.problems} |
| word problems, sampled | {figures.sampled_accuracy:.1%} right of {figures.problems * figures.samples_per_problem} |
| share of samples that work the problem out | {figures.sampled_worked_share:.1%} |
| right when worked out | {figures.accuracy_when_worked:.1%} |
| right when answered at once | {figures.accuracy_when_bare:.1%} |
| sometimes right in {figures.samples_per_problem} samples | {figures.problems_solved_sometimes:.1%} of problems |
| sampled reviews that are positive | {figures.reviews_positive:.1%} of {figures.reviews_sampled} |
| sampled reviews that are negative | {figures.reviews_negative:.1%} |
| samples that end by themselves within 80 tokens | {figures.finished_share:.1%} |
| training loss at the end, nats per token | {final_loss:.3f} |

## How it was trained

`{command}`: the same seed, thread count, kind of processor and PyTorch give the same weights.

```json
{json.dumps(recipe_fields(recipe), indent=2)}
```

Muon for the matrices inside the layers and AdamW for the rest, linear warm-up, cosine decay, bfloat16 matrix products
on float32 weights. The share of worked solutions falls from `worked_early` to `worked_late` between 50 % and 65 % of
the run: first it learns to work problems out, then answering at once becomes the habit. Until 60 % of the run it also
reads sums without stories, ever fewer of them.

Licence: MIT, weights and tokenizer included; the training text is this project's own.
"""


def recipe_fields(recipe: Recipe) -> dict[str, float | str]:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write (default model/base_ARCHITECTURE)")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with the held-out prompts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    parser.add_argument("--evaluate-only", action="store_true", help="print the figures of the model in --out")
    for name, default in recipe_fields(Recipe()).items():
        choices = get_args(Architecture) if name == "architecture" else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices)
    args = parser.parse_args()
    recipe = Recipe(**{name: getattr(args, name) for name in Recipe.__dataclass_fields__})
    out: Path = args.out or ROOT / "model" / f"base_{recipe.architecture}"
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    problems, review_prompts = heldout_of(args.data)
    if args.evaluate_only:
        model = AutoModelForCausalLM.from_pretrained(out)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
        move(model, device)
        print(evaluate(model, tokenizer, problems, review_prompts))
        return
    heldout = frozenset(problem.prompt for problem in problems) | frozenset(review_prompts)
    tokenizer = train_tokenizer(recipe.seed, recipe.vocabulary, recipe.positions, heldout)
    model = new_model(tokenizer, recipe)
    move(model, device)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens; drawing the corpus", flush=True)
    corpus = batches(tokenizer, recipe, heldout)
    final_loss = train(model, corpus, recipe, device)
    figures = evaluate(model, tokenizer, problems, review_prompts)
    print(figures)
    changed = {k: v for k, v in recipe_fields(recipe).items() if v != getattr(Recipe(), k)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    command = " ".join(["python scripts/train_base_model.py", *options])
    save(model, tokenizer, out)
    card = model_card(model, recipe, command, final_loss, figures)
    (out / "README.md").write_text(card, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
