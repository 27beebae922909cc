"""Which rewards are built in, and how a name and its options become a reward. Knows nothing about processes.

A built-in is a factory: its keyword arguments are the options, what it returns is the reward. A user's function is the
reward itself, and gets the options as keyword arguments of every call.
"""

import functools
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import cast, get_type_hints

from groupwise.errors import UserError, nearest
from groupwise.rewards.protocol import (
    BadOption,
    Reward,
    looks_at_one_completion,
    per_completion,
    process_reward,
    scores_steps,
)
from groupwise.rewards.user_file import function_of, run_file, split_name

BUILT_IN = {
    "exact_answer": "answers",
    "numeric_answer": "answers",
    "math_answer": "math_answer",
    "worked_steps": "worked_steps",
    "regex_format": "form",
    "think_answer_format": "form",
    "length": "length",
    "soft_overlong": "length",
    "repetition": "repetition",
    "review_sentiment": "sentiment",
    "sequence_classifier": "classifier",
}
"""Name of every built-in reward -> the module of this package that holds its factory."""
GOLD_REWARDS = frozenset({"exact_answer", "numeric_answer", "math_answer", "worked_steps"})
"""Built-in rewards that compare a completion with a gold answer in its row, and refuse a row without one."""


def problems_before_loading(name: str, options: Mapping[str, object], key: str) -> list[str]:
    """What is wrong with a reward's section as far as it can be told without running a file of the user's."""
    problems = name_problems(name, key)
    try:
        json.dumps(options)
    except (TypeError, ValueError) as error:
        problems.append(f"{key}.options: must be made of text, numbers, true, false, null, lists and mappings: {error}")
    return problems or (option_problems(name, options, key) if name in BUILT_IN else [])


def name_problems(name: str, key: str) -> list[str]:
    """What is wrong with a reward's name, without running anything: [] or one message.

    >>> name_problems("exact_anser", "rewards[0]")
    ["rewards[0].name: there is no built-in reward 'exact_anser'; did you mean exact_answer?"]
    """
    if name in BUILT_IN or split_name(name) is not None:
        return []
    guess = nearest(name, BUILT_IN)
    remedy = f"did you mean {guess}?" if guess else f"give path/to/file.py:function, or one of {', '.join(BUILT_IN)}"
    return [f"{key}.name: there is no built-in reward {name!r}; {remedy}"]


def option_problems(name: str, options: Mapping[str, object], key: str) -> list[str]:
    """What is wrong with the options of a built-in reward, without making it: names and types.

    >>> option_problems("soft_overlong", {"max_tokens": 256, "cash_tokens": 64}, "rewards[0]")
    ['rewards[0].options.cash_tokens: unknown option; did you mean cache_tokens?', \
'rewards[0].options.cache_tokens: soft_overlong needs it']
    """
    factory = _factory(name)
    return [*_signature_problems(factory, name, options, key, positional=0), *_type_problems(factory, options, key)]


def make_reward(
    name: str, options: Mapping[str, object], key: str, files: dict[Path, ModuleType]
) -> tuple[Reward | None, list[str]]:
    """The reward of that name, or the problems that prevent it; a user's file is run unless `files` has it already."""
    try:
        if name in BUILT_IN:
            return cast(Reward, _factory(name)(**options)), []
        return _users_reward(name, options, key, files)
    except BadOption as error:
        return None, [f"{key}.options.{error.option}: {error}"]
    except UserError as error:
        return None, [str(error) if str(error).startswith(key) else f"{key}: {error}"]


def _factory(name: str) -> Callable[..., object]:
    return getattr(importlib.import_module(f"groupwise.rewards.{BUILT_IN[name]}"), name)


def _users_reward(
    name: str, options: Mapping[str, object], key: str, files: dict[Path, ModuleType]
) -> tuple[Reward | None, list[str]]:
    parts = split_name(name)
    assert parts is not None, "the name was checked before"
    path, attribute = parts
    if path not in files:
        files[path] = run_file(path, key=f"{key}.name")
    function = function_of(files[path], path, attribute, key=f"{key}.name")
    if isinstance(function, type):
        raise UserError(f"{key}.name: {name} is a class; name a function, or an object made from the class")
    if inspect.iscoroutinefunction(function):
        raise UserError(f"{key}.name: {name} is an async function; a reward is an ordinary function")
    problems = _signature_problems(function, name, options, key, positional=2)
    if problems:
        return None, problems
    reward = cast(Reward, functools.partial(function, **options))
    for is_marked, mark in ((looks_at_one_completion, per_completion), (scores_steps, process_reward)):
        if is_marked(function):
            mark(reward)
    return reward, []


def _signature_problems(
    function: Callable[..., object], name: str, options: Mapping[str, object], key: str, *, positional: int
) -> list[str]:
    """Options that the function does not take, and those it needs and did not get, after its positional arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []  # compiled functions may hide their signature
    taking_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(taking_position) < positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return [f"{key}.name: {name} must take (rows, completions), it takes {inspect.signature(function)}"]
    rest = [p for p in parameters if p not in taking_position[:positional]]
    named = {p.name: p for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    problems: list[str] = []
    if not any(p.kind is p.VAR_KEYWORD for p in rest):
        for option in options:
            if option not in named:
                guess = nearest(option, named)
                remedy = f"did you mean {guess}?" if guess else f"{name} takes {', '.join(named) or 'none'}"
                problems.append(f"{key}.options.{option}: unknown option; {remedy}")
    for parameter in named.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            problems.append(f"{key}.options.{parameter.name}: {name} needs it")
    return problems


def _type_problems(factory: Callable[..., object], options: Mapping[str, object], key: str) -> list[str]:
    # Imported here: only the program that reads a configuration comes this way, a worker starts without it.
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    hints = get_type_hints(factory)
    problems: list[str] = []
    for option, value in options.items():
        if option not in hints:
            continue
        adapter = TypeAdapter[object](hints[option], config=ConfigDict(strict=True, allow_inf_nan=False))
        try:
            adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Input ")
            problems.append(f"{key}.options.{option}: {reason[0].lower()}{reason[1:]}, got {value!r}")
    return problems
