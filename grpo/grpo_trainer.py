"""A GRPO run from configuration to adapter and summary: puts the pieces together.

Knows no file formats (grpo/dataset_utils.py), no formula (grpo/losses/), no sampling (grpo/rollouts.py) and no loop
(groupwise/train/).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence

from rich.console import Console

from groupwise.config import settings
from groupwise.model.sampler import Sampler
from groupwise.observe.alarms import Alarms
from groupwise.observe.figure import learning_curve
from groupwise.observe.metrics import read_metrics
from groupwise.observe.progress import Progress, make_progress
from groupwise.report.renew import renew_report
from groupwise.rewards.scorer import Scorer
from groupwise.train.interrupt import StopSignals
from groupwise.train.loop import FitResult, Judging, Watch, fit
from groupwise.train.run import Run, open_run
from groupwise.train.run_folder import RunFolder, write_json
from groupwise.train.summary import print_figures, print_health, run_facts, stored_figures
from grpo.config import GrpoConfig
from grpo.dataset_utils import Prompt
from grpo.eval import Comparison, before_and_after, check_names, evaluate, labels
from grpo.faults import FaultLog
from grpo.lessons import Lessons
from grpo.objective import GrpoObjective
from grpo.prepare import Prepared, load_reward_model, prepare
from grpo.report import DRIFTING, LEARNING, WATCHED, record
from grpo.reward_model import RewardModel
from grpo.rollouts import Rollouts
from grpo.samplers import look_at_servers, make_sampler

HEADLINE = (
    "reward",
    "frac_reward_zero_std",
    "completions/mean_length",
    "kl",
    "entropy",
    "grad_norm",
    "eval/pass@1",
    "time/step_s",
)


def train(config: GrpoConfig, *, console: Console | None = None) -> RunFolder:
    """Run GRPO as configured; the run's folder then holds adapter, metrics, transcripts, summary and learning curve.

    Continues a run that was stopped, and only shows the figures of one that is finished. Raises UserError for anything
    the user can mend, before anything is written.
    """
    console = console or Console()
    folder = RunFolder.of(config.run)
    run = open_run(config, config.run, folder, console)
    if run is None:
        print_figures(*stored_figures(folder), labels(config), console=console)
        return folder
    with run, Scorer(config.rewards, config.scoring) as scorer:
        run.hold()  # servers are spoken to before `begin`
        check_names(config, scorer)
        progress = make_progress(run.console, headline=HEADLINE)
        faults = FaultLog(folder.faults, progress.line, writes=run.runtime.is_main)
        prepared = prepare(config, scorer, run.runtime, faults)
        about_servers = look_at_servers(config, prepared.engine, prepared.train, run.runtime)
        reward_model = load_reward_model(config, prepared.engine.policy, run.runtime)
        identity = {
            "base model": prepared.engine.policy.base_fingerprint(),  # reads all weights, so once
            "training data": _fingerprint(prepared.train),
            "held-out data": _fingerprint(prepared.heldout),
            "file of a reward": scorer.fingerprint(),
            "model of the reward model": "" if reward_model is None else reward_model.base_fingerprint(),
        }
        run.begin(config, identity, [*prepared.notes, *about_servers])
        sampler = make_sampler(config, prepared.engine, prepared.encoder.stop_ids, run.runtime, progress.line)
        with contextlib.closing(sampler):
            result, fault_count = _learn(config, prepared, identity, scorer, sampler, reward_model, progress, run)
        prepared.engine.policy.save(folder.adapter, writes=run.runtime.is_main)
        judged = before_and_after(config, prepared, scorer, folder=folder)
        if run.runtime.is_main:
            _draw_curve(folder)
            facts = run_facts(
                result,
                attention=prepared.engine.method,
                seed=config.run.seed,
                processes=run.runtime.processes,
                sharding=config.run.sharding,
                base_model=identity["base model"],
                sources=(*config.data.train, *config.data.heldout),
                reports={part: report.as_dict() for part, report in prepared.reports.items()},
            )
            figures = judged.as_dict(folder, [alarm.name for alarm in result.alarms])
            write_json(folder.summary, {**figures, "reward_faults": fault_count, **facts})
            _show(config, judged, result, run)
            print_health(result, figures, run.say)
            renew_report(config.run, lambda: record(folder, config), run.say)
    return folder


def _learn(
    config: GrpoConfig,
    prepared: Prepared,
    identity: Mapping[str, str],
    scorer: Scorer,
    sampler: Sampler,
    reward_model: RewardModel | None,
    progress: Progress,
    run: Run,
) -> tuple[FitResult, int]:
    """Rollouts and training; also how many faults rewards had in the rollouts."""
    engine = prepared.engine
    source = Rollouts(
        prepared.train,
        config=config,
        engine=engine,
        encoder=prepared.encoder,
        scorer=scorer,
        runtime=run.runtime,
        faults=prepared.faults,
        sampler=sampler,
        lessons=_lessons(config, reward_model, run, progress),
    )
    stop = StopSignals(progress.line)
    sampler.heed(lambda: stop.received)
    objective = GrpoObjective(
        config.loss,
        config.loss.constant_length or config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
    )
    run.runtime.start_trackers("grpo", {one.key: one.value for one in settings(config)})
    result = fit(
        objective,
        source,
        engine=engine,
        optimizer_section=config.optimizer,
        run=config.run,
        runtime=run.runtime,
        folder=run.folder,
        identity=identity,
        judging=Judging(
            evaluate=lambda step: evaluate(config, prepared, scorer),
            every=config.eval.every,
            evaluated=lambda: renew_report(config.run, lambda: record(run.folder, config), progress.line),
            best=WATCHED.held_out.removeprefix("eval/"),
        ),
        watch=Watch(
            progress=progress,
            title=f"GRPO of {config.model.path}",
            alarms=Alarms(config.alarms, WATCHED),
            stop=stop,
        ),
    )
    return result, source.faults


def _lessons(config: GrpoConfig, model: RewardModel | None, run: Run, progress: Progress) -> Lessons | None:
    """What a reward model is taught on the way, where there is one."""
    if model is None or config.reward_model is None:
        return None
    tokens = config.run.tokens_per_forward
    return Lessons(model, config.reward_model, runtime=run.runtime, tokens_per_forward=tokens, say=progress.line)


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """SHA-256 over ids and columns of all prompts in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.prompt_ids} {json.dumps(prompt.row, sort_keys=True, default=str)}\n".encode())
    return digest.hexdigest()


def _draw_curve(folder: RunFolder) -> None:
    """The learning curve; what a run never logged, because nothing could be learned or scored, is left out."""
    logged = {name for row in read_metrics(folder.metrics) for name in row}
    drawn = [panel for panel in (*LEARNING, *DRIFTING) if logged.issuperset(panel.lines.values())]
    learning_curve(folder.metrics, folder.curve, panels=drawn, title=f"GRPO: {folder.path.name}")


def _show(config: GrpoConfig, judged: Comparison, result: FitResult, run: Run) -> None:
    """The table, and what a person should know of the figures."""
    folder = run.folder
    print_figures(judged.before, judged.after, labels(config), console=run.console)
    if sum(judged.unjudged):
        run.say(f"warning: {sum(judged.unjudged)} held-out answers could not be judged and are in no figure")
    shares = {judged.before["pass@1"].value, judged.after["pass@1"].value}
    if shares in ({0.0}, {1.0}):
        worth = "right" if shares == {1.0} else "wrong"
        run.say(
            f"warning: every judged sample is {worth}, before and after; is eval.threshold {config.eval.threshold:g} "
            "what this reward gives a right answer?"
        )
    for line in (
        f"greedy answers that became right: {len(judged.became_right)}, that became wrong: {len(judged.became_wrong)}",
        f"adapter: {folder.adapter}",
        f"summary: {folder.summary}",
        f"report: {folder.report}",
    ):
        run.say(line)
