"""`python grpo/train_grpo.py --check`: all that can be known before a GRPO run begins. Writes nothing, trains nothing.

Legend: T completion tokens.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console

from groupwise.batch import pack
from groupwise.cost.shapes import GroupShape, ModelShape, cut
from groupwise.data.text import TextEncoder
from groupwise.groups import Completion, Group, forward_tokens, overlapping_prompts
from groupwise.model.captured import check_capturable
from groupwise.model.engine import LogprobEngine, reference_logprobs
from groupwise.model.loading import precision_doubts, quiet_libraries
from groupwise.model.policy import Policy
from groupwise.observe.progress import duration
from groupwise.preflight.fit import check_memory
from groupwise.preflight.folder import check_folder
from groupwise.preflight.lengths import histogram
from groupwise.preflight.memory import sampling_bytes
from groupwise.preflight.model import TrialStep, load_model, trial_step
from groupwise.preflight.report import Report, own_terminal
from groupwise.preflight.sources import check_sources
from groupwise.preflight.texts import check_ends, check_template, tell_leaks
from groupwise.preflight.timing import Speed, repeated, tell_network, tell_servers
from groupwise.rewards.scorer import Scorer
from groupwise.train.checkpoint_keeper import state_bytes
from groupwise.train.runtime import Runtime
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt, PromptReport, hold_out, load_prompts
from grpo.eval import check_names
from grpo.objective import GrpoObjective
from grpo.prepare import check_positions, doubts, load_reward_model, make_encoder
from grpo.reward_model import RewardModel
from grpo.samplers import look_at_servers
from grpo.trial import Trial, check_probes, roll_out


def check(config: GrpoConfig, *, console: Console | None = None, memory: int | None = None) -> int:
    """Look at everything, show what is found; returns the exit code. `memory` stands for the bytes there are."""
    report = Report(console or own_terminal())
    quiet_libraries()
    with report.part("configuration and folder"):
        report.ok("the configuration holds no unknown key and no value out of range")
        report.notes([*doubts(config), *precision_doubts(config.model, config.lora)])
        check_folder(config, config.run, report)
    scorer = _load_rewards(config, report)
    with contextlib.nullcontext() if scorer is None else scorer:
        if scorer is not None:
            with report.part("measure of success"):
                check_names(config, scorer)
                measure = config.eval.correct or scorer.names[0]
                report.ok(f"an answer is right with at least {config.eval.threshold:g} of {measure}")
        _check_rest(config, scorer, report, memory)
    return report.finish()


def _load_rewards(config: GrpoConfig, report: Report) -> Scorer | None:
    """The rewards in their workers, or None, said, where one cannot be loaded."""
    with report.part("rewards"):
        scorer = Scorer(config.rewards, config.scoring)
        report.ok(f"loaded: {', '.join(scorer.names)}")
        return scorer
    return None


def _check_rest(config: GrpoConfig, scorer: Scorer | None, report: Report, memory: int | None) -> None:
    """Model, data, and with both of them rollouts, memory, loss and time."""
    loaded = load_model(
        config.model,
        config.lora,
        config.run,
        lambda policy: make_encoder(policy, config),
        report,
        keep_base=config.steps_run_base,
    )
    if loaded is None:
        check_sources((*config.data.train, *config.data.heldout), report)
        return
    train, heldout = _check_data(config, loaded.policy, loaded.encoder, scorer, report)
    if not train or not loaded.sound:
        return
    engine = LogprobEngine(loaded.policy, config.model.attention, autocast=loaded.runtime.autocast)
    if config.sampling.captured and not _can_be_captured(engine, report):
        return
    report.notes(engine.notices)
    if config.sampling.engine == "vllm":
        with report.part("servers"):
            report.notes(look_at_servers(config, engine, [*train, *heldout], loaded.runtime))
    trial: Trial | None = None
    if config.source == "data":
        report.ok("the rows' own answers are learned from, so no answers were drawn")
    elif scorer is not None:
        with report.part("rewards of the base model's answers"):
            trial = roll_out(config, engine, loaded.encoder, scorer, train, report)
            check_probes(config, loaded.encoder, scorer, trial, report)
    reward_model: RewardModel | None = None
    if config.reward_model is not None:
        with report.part("reward model"):
            reward_model = load_reward_model(config, loaded.policy, loaded.runtime)
            report.ok("it can be loaded, reads the policy's ids, and is held in memory from here on")
        if reward_model is None:
            return
    with report.part("memory, loss and time"):
        _check_step(config, engine, loaded.runtime, train, heldout, trial, reward_model, report, memory)


def _can_be_captured(engine: LogprobEngine, report: Report) -> bool:
    with report.part("captured sampling"):
        check_capturable(engine)
        report.ok("decoding steps of this model have a fixed shape")
        return True
    return False


def _check_data(
    config: GrpoConfig, policy: Policy, encoder: TextEncoder, scorer: Scorer | None, report: Report
) -> tuple[list[Prompt], list[Prompt]]:
    """Both parts of the data; empty where a part cannot be used."""
    data = config.data
    train: list[Prompt] = []
    heldout: list[Prompt] = []
    with report.part("training data"):
        train, account = load_prompts(
            data.train, encoder, data, split=data.split, answer_column=config.rollout.answer_column
        )
        _tell_account(account, report)
    if data.heldout:
        with report.part("held-out data"):
            heldout, account = load_prompts(data.heldout, encoder, data, split=data.heldout_split)
            heldout = heldout[: data.heldout_prompts]
            _tell_account(account, report)
    elif train:
        with report.part("held-out data"):
            train, heldout = hold_out(train, data.heldout_prompts, seed=config.run.seed)
            report.ok(f"{len(heldout)} prompts are taken from the training data, {len(train)} stay")
    if not train or not heldout:
        return [], []
    everything = [*train, *heldout]
    usable = False
    with report.part("texts"):
        tell_leaks(overlapping_prompts(train, heldout), len(heldout), report)
        check_ends([_bare(prompt) for prompt in everything], encoder, policy.model.config, report, answered=False)
        if encoder.tokenizer.chat_template and (data.chat or any(isinstance(p.row["prompt"], list) for p in train)):
            check_template(encoder, report)
        check_positions(policy, everything, config)
        if scorer is not None:
            scorer.check_rows([prompt.row for prompt in everything], [prompt.key for prompt in everything])
        report.show(histogram([len(p.prompt_ids) for p in everything], "prompt tokens", console=report.console))
        usable = True
    return (train, heldout) if usable else ([], [])


def _bare(prompt: Prompt) -> Group:
    """A prompt as a group, its only answer an empty one, for what looks at prompts of groups."""
    return Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=(_EMPTY,))


_EMPTY = Completion(token_ids=(0,), finished=False, score=0.0)


def _tell_account(account: PromptReport, report: Report) -> None:
    report.notes(account.lines())
    if account.repeated:
        report.warning(f"{account.repeated} prompts are exact duplicates of others: they are asked more often")


def _check_step(
    config: GrpoConfig,
    engine: LogprobEngine,
    runtime: Runtime,
    train: Sequence[Prompt],
    heldout: Sequence[Prompt],
    trial: Trial | None,
    reward_model: RewardModel | None,
    report: Report,
    there: int | None,
) -> None:
    """Memory first; what fits is then tried.

    A reward model is counted with what is loaded; its own passes take less than the policy's, for it has no head.
    """
    n, most = config.rollout.completions_per_prompt, config.sampling.max_new_tokens
    longest = max(train, key=lambda prompt: len(prompt.prompt_ids))
    texts = trial.answers if trial else [Completion(token_ids=longest.prompt_ids, finished=False, score=0.0)]
    prompts = config.run.groups_per_step * config.rollout.minibatches
    sampling = max(
        sampling_bytes(
            engine,
            config.sampling,
            prompts=count,
            longest=max(len(p.prompt_ids) for p in [*train, *heldout]),
            n=each,
            state=state_bytes(engine.policy.trainable().values()),
        )
        for count, each in ((prompts, n), (len(heldout), config.eval.samples_per_prompt), (len(heldout), 1))
    )
    whole = config.run.groups_per_step * (len(longest.prompt_ids) + n * (most - 1))
    fit = check_memory(
        engine,
        config.optimizer,
        lambda size: [_filled(longest, texts, n=n, most=most, tokens=min(size, whole))],
        tokens=config.run.tokens_per_forward,
        sampling=sampling,
        several=whole > config.run.tokens_per_forward,
        later=0 if reward_model is None else reward_model.update_bytes,
        report=report,
        there=there,
    )
    if fit.tokens is None:
        report.warning("no forward pass was tried, for it would not fit")
        return
    if trial is not None:
        _check_start(config, engine, trial, report)
    part = _filled(longest, texts, n=n, most=most, tokens=min(fit.tokens, whole))
    # Policy, sampler and reference are one function now, so one pass gives the log-probs of all.
    part = reference_logprobs(
        engine, part, tokens_per_forward=config.run.tokens_per_forward, temperature=config.sampling.temperature
    )
    objective = GrpoObjective(config.loss, config.loss.constant_length or most, temperature=config.sampling.temperature)
    step = trial_step(objective, _as_rollout(part), engine=engine, runtime=runtime, report=report)
    if trial is not None:
        _say_time(config, len(heldout), trial, step, engine, runtime, report)


def _filled(longest: Prompt, texts: Sequence[Completion], *, n: int, most: int, tokens: int) -> list[Group]:
    """The largest micro-batch that can occur: the longest prompt, and answers of the full length made of real ones.

    The last group's answers are shorter where the whole ones would leave the row unfilled.
    """
    prompt = len(longest.prompt_ids)
    ids = [i for completion in texts for i in completion.token_ids]
    ids *= -(-most // len(ids))
    groups: list[Group] = []
    left = tokens
    while not groups or left >= prompt + n:
        length = min(most, max(2, (left - prompt) // n + 1))
        completion = Completion(token_ids=tuple(ids[:length]), finished=False, score=0.0)
        groups.append(Group(key=longest.key, prompt_ids=longest.prompt_ids, completions=(completion,) * n))
        left -= forward_tokens(groups[-1])
    return groups


def _as_rollout(groups: Sequence[Group]) -> list[Group]:
    """As if the policy had drawn these answers and every other one were worse: a step with a gradient."""
    return [group.replace_completions([_drawn(c, j) for j, c in enumerate(group.completions)]) for group in groups]


def _drawn(completion: Completion, place: int) -> Completion:
    """Every other answer is worse and a token shorter: equal texts of opposite advantage would cancel.

    All are better where they are single tokens, which cannot be told apart.
    """
    length = len(completion.token_ids)
    worse = place % 2 == 1 and length > 1
    length -= worse
    known = completion.reference_logp
    logp = None if known is None else known[:length]
    return replace(
        completion,
        token_ids=completion.token_ids[:length],
        sampled_logp=logp,
        drawn_logp=logp,
        reference_logp=logp,
        advantage=torch.full((length,), -1.0 if worse else 1.0),
    )


def _check_start(config: GrpoConfig, engine: LogprobEngine, trial: Trial, report: Report) -> None:
    """Before the first step sampler, policy and reference are one function: every ratio is 1 and every KL 0."""
    groups = [
        Group(key=prompt.key, prompt_ids=prompt.prompt_ids, completions=tuple(own[:2]))
        for prompt, own in list(zip(trial.prompts, trial.drawn, strict=True))[:4]
    ]
    temperature = config.sampling.temperature
    scored = reference_logprobs(
        engine, groups, tokens_per_forward=config.run.tokens_per_forward, temperature=temperature
    )
    batch = pack(scored).to(engine.policy.device)
    assert batch.sampled_logp_T is not None and batch.reference_logp_T is not None
    with torch.no_grad():
        logp_T = engine.score(batch, temperature=temperature).logp_T
    allowed = engine.rounding * max(1.0, logp_T.abs().max().item())
    for what, other_T in (("sampler", batch.sampled_logp_T), ("reference", batch.reference_logp_T)):
        gap = (logp_T - other_T).abs().max().item()
        if gap <= allowed:
            report.ok(f"policy and {what} agree to {gap:.1g} nats in a token's log-prob")
        else:
            report.error(
                f"policy and {what} differ by {gap:.2g} nats in a token's log-prob before the first step; try "
                "model.attention repeat"
            )


def _say_time(
    config: GrpoConfig,
    heldout: int,
    trial: Trial,
    step: TrialStep,
    engine: LogprobEngine,
    runtime: Runtime,
    report: Report,
) -> None:
    """By the cost model, at the speed of the trial, with answers as long as the trial's."""
    answered = [
        GroupShape(len(p.prompt_ids), tuple(len(c.token_ids) for c in own))
        for p, own in zip(trial.prompts, trial.drawn, strict=True)
    ]
    speed = Speed.of_trial(
        ModelShape.of(engine.policy.model),
        engine.policy.device.type,
        learned=(step.groups, step.seconds),
        drawn=(answered, trial.sample_s),
        tokens_per_forward=config.run.tokens_per_forward,
        rows_at_once=config.sampling.rows_at_once,
        recompute=config.model.gradient_checkpointing,
        processes=runtime.processes,
        sharding=config.run.sharding,
    )
    rollout = config.run.groups_per_step * config.rollout.minibatches
    rollouts = config.steps / (config.rollout.updates * config.rollout.minibatches)
    groups, servers = repeated(answered, rollout), len(config.sampling.servers)
    parts = cut(groups, config.run.tokens_per_forward)
    scoring = -(-rollout // runtime.processes) * trial.score_s / len(trial.prompts)
    drawing = speed.served(groups, servers) if servers else speed.sampling(groups)
    # Servers' answers are read once more, for the log-probs that this program gives them.
    read = parts * (config.loss.reads_reference_logp + bool(servers))
    learned = cut(repeated(answered, config.run.groups_per_step), config.run.tokens_per_forward)
    learning = speed.learning(learned) * config.steps + (rollouts * speed.reading(read) if read else 0.0)
    evaluations = config.steps // config.eval.every if config.eval.every else 0
    judged = -(-heldout // runtime.processes)
    greedy, sampled = (
        speed.sampling(repeated(answered, heldout, n=count)) + judged * count * trial.score_s / len(trial.answers)
        for count in (1, config.eval.samples_per_prompt)
    )
    judging = (evaluations + 2) * greedy + 2 * sampled
    ahead = bool(config.sampling.ahead)
    rolling = rollouts * (drawing + scoring)
    whole = max(rollouts * drawing, learning + rollouts * scoring) if ahead else rolling + learning
    report.ok(
        f"time, with answers as long as these: {duration(whole + judging)} for {config.steps} steps and "
        f"{evaluations} evaluations (rollouts {duration(rolling)}, learning {duration(learning)}"
        f"{', both at the same time' if ahead else ''}, evaluation {duration(judging)})"
    )
    tell_network(
        speed,
        report,
        learned=learned,
        read=read,
        gathers=0 if servers else 1,
        sent=parts,
        fields=2 + bool(servers) + config.loss.kl_in_reward,
    )
    if servers:
        tell_servers(
            speed,
            report,
            groups=groups,
            servers=servers,
            at_once=config.sampling.groups_per_server,
            answer_limit=config.sampling.answer_limit,
        )
