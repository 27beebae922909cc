"""TextEncoder: the ids of prompt and completions are what the model would see, with every special token once."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from groupwise.data.text import EncodedGroup, Refused, Text, TextEncoder, TextGroup, TooLong
from groupwise.errors import UserError

SPECIAL = ["<bos>", "<eos>", "<turn>", "<end>"]
CORPUS = ["The sky is blue.", "The sky is black.\n", "What is the sky? Anna asks, Bert answers."]
# Each turn is "<turn>role\ncontent<end>\n", as in ChatML.
CHAT = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
QUESTION = [{"role": "user", "content": "Which sky?"}]


def _byte_tokenizer(*, eos: str = "<eos>", template: str | None = None) -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, nothing added to a text."""
    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer
    inner.train_from_iterator(
        CORPUS, trainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return _wrapped(inner, eos, template)


def _llama_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """Llama's kind: a space in front of every text, <bos> put by the post-processor, line breaks as a byte token."""
    pieces = [
        "<unk>",
        *SPECIAL,
        "<0x0A>",
        "▁",
        *"abcdefghijklmnopqrstuvwxyzABTSW.,?:",
        "▁sky",
        "sky",
        "▁hello",
        "hello",
    ]
    merges = [
        ("s", "k"),
        ("sk", "y"),
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("▁", "sky"),
        ("▁", "hello"),
    ]
    pieces += [left + right for left, right in merges if left + right not in pieces]
    inner: Any = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", pieces.index("<bos>"))]
    )
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    inner.add_special_tokens(SPECIAL)
    return _wrapped(inner, "<eos>", template)


def _wrapped(inner: Any, eos: str, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token=eos, additional_special_tokens=["<turn>", "<end>"]
    )
    tokenizer.chat_template = template
    return tokenizer


BYTES = _byte_tokenizer()
LLAMA = _llama_tokenizer()


def _encoder(
    tokenizer: Any = BYTES, *, prompt: int = 500, completion: int = 500, long: TooLong = "drop"
) -> TextEncoder:
    return TextEncoder(tokenizer, max_prompt_tokens=prompt, max_completion_tokens=completion, too_long=long)


def _one(encoder: TextEncoder, prompt: Text, *completions: Text) -> EncodedGroup:
    group = encoder.encode([TextGroup(key="x.jsonl:3", prompt=prompt, completions=completions)])[0]
    assert isinstance(group, EncodedGroup), group
    return group


def _problem(encoder: TextEncoder, prompt: Text, *completions: Text) -> str:
    group = encoder.encode([TextGroup(key="x.jsonl:3", prompt=prompt, completions=completions)])[0]
    assert isinstance(group, Refused), group
    assert group.problem.startswith("x.jsonl:3: ")
    return group.problem


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _completion_ids(group: EncodedGroup, index: int = 0) -> tuple[int, ...]:
    completion = group.completions[index]
    assert completion is not None
    return completion.token_ids


def _token(tokenizer: Any, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)


def _spelt(tokenizer: Any, ids: tuple[int, ...] | None) -> str:
    assert ids is not None
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


# --- plain text


def test_a_prompt_is_as_the_tokenizer_has_it_and_a_completion_has_one_eos_at_its_end() -> None:
    group = _one(_encoder(), "The sky is", " blue.", " black.<eos>")
    assert group.prompt_ids == _ids(BYTES, "The sky is")
    assert _completion_ids(group, 0) == (*_ids(BYTES, " blue."), BYTES.eos_token_id)
    assert _completion_ids(group, 1) == (*_ids(BYTES, " black."), BYTES.eos_token_id)
    assert all(completion is not None and completion.finished for completion in group.completions)


@given(prompt=st.text(min_size=1), completion=st.text(min_size=1))
def test_ids_hold_every_character_and_no_boundary_is_tokenized_again(prompt: str, completion: str) -> None:
    # st.text draws no lone surrogates; none of the specials is likely to be drawn, and would be refused.
    group = _one(_encoder(prompt=10_000, completion=10_000), prompt, completion)
    assert _spelt(BYTES, group.prompt_ids) == prompt
    assert _spelt(BYTES, _completion_ids(group)) == completion + "<eos>"


def test_a_tokenizer_that_adds_bos_gives_it_to_the_prompt_once_and_to_no_completion() -> None:
    # Story: templates and texts that spell <bos> out made "<bos><bos>" with a post-processor that adds it too.
    bos = _token(LLAMA, "<bos>")
    tokenizer: Any = LLAMA
    for prompt in ("hello sky", "<bos>hello sky"):
        group = _one(_encoder(LLAMA), prompt, " sky")
        assert group.prompt_ids is not None
        assert group.prompt_ids[0] == bos and group.prompt_ids.count(bos) == 1
        assert bos not in _completion_ids(group)
    assert _one(_encoder(LLAMA), "hello sky").prompt_ids == tuple(tokenizer("hello sky")["input_ids"])


def test_a_completion_gets_no_space_that_only_the_start_of_a_text_has() -> None:
    # This tokenizer puts a space before a text; alone, "hello" is "▁hello", yet behind a prompt it is "hello".
    assert _ids(LLAMA, "hello") == (_token(LLAMA, "▁hello"),)
    eos = LLAMA.eos_token_id
    group = _one(_encoder(LLAMA), "sky:", "hello", " hello")
    assert _completion_ids(group, 0) == (_token(LLAMA, "hello"), eos)
    assert _completion_ids(group, 1) == (_token(LLAMA, "▁hello"), eos)
    whole = _ids(LLAMA, "sky:hello")
    assert _ids(LLAMA, "sky:") + _completion_ids(group, 0)[:-1] == whole


def test_a_tokenizer_whose_eos_is_its_bos_and_adds_it_is_no_eos_inside_the_prompt() -> None:
    inner: Any = _llama_tokenizer().backend_tokenizer
    tokenizer = _wrapped(inner, "<bos>", None)
    group = _one(_encoder(tokenizer), "hello", " sky")
    assert _spelt(tokenizer, group.prompt_ids).startswith("<bos>")
    assert _completion_ids(group)[-1] == tokenizer.eos_token_id == _token(tokenizer, "<bos>")
    assert "the prompt contains '<bos>'" in _problem(_encoder(tokenizer), "hello<bos>sky", " sky")


@pytest.mark.parametrize(
    ("prompt", "completion", "said"),
    [
        ("a <eos> b", "c", "the prompt contains '<eos>'"),
        ("a", "b <eos> c", "a completion contains '<eos>' before its end"),
        ("a", "b<eos><eos>", "a completion contains '<eos>' before its end"),
        ("a", "<eos>", "a completion is no tokens long"),
        ("", "b", "the prompt is no tokens long"),
        ("a", "b \ud800", "character 3 of a text is half a surrogate pair"),
        ("a", [{"role": "assistant", "content": "b"}], "the prompt is a text, a completion chat messages"),
        (QUESTION, "b", "the tokenizer has no chat template; use an instruction-tuned model"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_refused_by_name(prompt: Text, completion: Text, said: str) -> None:
    assert said in _problem(_encoder(), prompt, completion)


def test_a_refused_group_leaves_its_neighbours_in_place() -> None:
    groups = [
        TextGroup(key=f"x:{i}", prompt=p, completions=(c,))
        for i, (p, c) in enumerate([("a", "b"), ("<eos>", "c"), ("d", "e")])
    ]
    first, second, third = _encoder().encode(groups)
    assert isinstance(first, EncodedGroup) and isinstance(second, Refused) and isinstance(third, EncodedGroup)
    assert _spelt(BYTES, third.prompt_ids) == "d" and _spelt(BYTES, _completion_ids(third)) == "e<eos>"


# --- length


def test_a_long_prompt_is_dropped_whole_and_a_long_completion_dropped_or_cut() -> None:
    text = " blue sky" * 5
    ids = _ids(BYTES, text)
    exact = len(ids) + 1  # with its end
    assert _completion_ids(_one(_encoder(completion=exact), "a", text)) == (*ids, BYTES.eos_token_id)
    assert _one(_encoder(completion=exact - 1), "a", text).completions == (None,)
    for most in (exact - 1, 2):  # the first leaves room for all words but not for the end
        cut = _one(_encoder(completion=most, long="cut_completion"), "a", text).completions[0]
        assert cut is not None and cut.token_ids == ids[:most] and not cut.finished
    assert _one(_encoder(prompt=len(ids)), text, "b").prompt_ids == ids
    assert _one(_encoder(prompt=len(ids) - 1, long="cut_completion"), text, "b").prompt_ids is None


def test_a_truncation_stored_with_the_tokenizer_cuts_nothing() -> None:
    tokenizer: Any = _byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    group = _one(_encoder(tokenizer), "The sky is blue, or black?", "What sky?")
    assert _spelt(tokenizer, group.prompt_ids) == "The sky is blue, or black?"
    assert _spelt(tokenizer, _completion_ids(group)) == "What sky?<eos>"


def test_prompts_alone() -> None:
    encoder = _encoder(prompt=5)
    assert encoder.encode_prompts(["x:1", "x:2"], ["ab", "The sky is blue." * 9]) == [_ids(BYTES, "ab"), None]
    with pytest.raises(UserError) as raised:
        encoder.encode_prompts(["x:1", "x:2", "x:3"], ["", "ok", "<eos>"])
    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == ["x:1", "x:3"]


def test_decode_leaves_special_tokens_out() -> None:
    assert _encoder().decode(_completion_ids(_one(_encoder(), "a", " blue ."))) == " blue ."


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=BYTES.backend_tokenizer)
    with pytest.raises(UserError, match="has no end-of-sequence token, .* set eos_token"):
        _encoder(tokenizer)


# --- chat


def _answers(*texts: str) -> list[Text]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_a_chat_prompt_ends_where_the_answer_begins_and_the_turn_end_is_the_end() -> None:
    tokenizer = _byte_tokenizer(eos="<end>", template=CHAT)
    group = _one(_encoder(tokenizer), QUESTION, *_answers("Blue."), "Black.")
    assert _spelt(tokenizer, group.prompt_ids) == "<turn>user\nWhich sky?<end>\n<turn>assistant\n"
    assert _spelt(tokenizer, _completion_ids(group, 0)) == "Blue.<end>"  # the line break behind it is gone
    assert _spelt(tokenizer, _completion_ids(group, 1)) == "Black.<end>"  # a text counts as an assistant turn


def test_a_turn_end_that_is_not_the_eos_ends_a_completion_too() -> None:
    tokenizer = _byte_tokenizer(eos="<eos>", template=CHAT)
    encoder = _encoder(tokenizer)
    completion = _one(encoder, QUESTION, "Blue.").completions[0]
    assert completion is not None and completion.finished
    assert _spelt(tokenizer, completion.token_ids) == "Blue.<end>"
    assert encoder.stop_ids == {_token(tokenizer, "<eos>"), _token(tokenizer, "<end>")}
    assert _encoder().stop_ids == {_token(BYTES, "<eos>")}


def test_what_the_template_writes_behind_the_turn_end_is_no_part_of_the_answer() -> None:
    tokenizer = _byte_tokenizer(template=CHAT + "{% if not add_generation_prompt %}<eos>{% endif %}")
    assert _spelt(tokenizer, _completion_ids(_one(_encoder(tokenizer), QUESTION, "Blue."))) == "Blue.<end>"


def test_a_template_without_special_tokens_gets_the_eos() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = _byte_tokenizer(template=template)
    group = _one(_encoder(tokenizer), QUESTION, "Blue.")
    assert _spelt(tokenizer, group.prompt_ids) == "user: Which sky?\nassistant:"
    assert _spelt(tokenizer, _completion_ids(group)) == " Blue.\n<eos>"


def test_the_bos_of_a_template_is_not_doubled_by_a_tokenizer_that_adds_it() -> None:
    tokenizer = _llama_tokenizer(template="<bos>" + CHAT.replace("\n", " "))
    group = _one(_encoder(tokenizer), [{"role": "user", "content": "hello"}], "sky")
    bos = _token(tokenizer, "<bos>")
    assert group.prompt_ids is not None and group.prompt_ids[0] == bos and group.prompt_ids.count(bos) == 1
    assert bos not in _completion_ids(group)
    assert _completion_ids(group)[-1] == _token(tokenizer, "<end>")


def test_template_options_reach_the_template() -> None:
    template = "{% if short %}!{% endif %}" + CHAT
    encoder = TextEncoder(
        _byte_tokenizer(template=template),
        max_prompt_tokens=99,
        max_completion_tokens=99,
        template_options={"short": True},
    )
    assert _spelt(BYTES, _one(encoder, QUESTION).prompt_ids).startswith("!<turn>user")


@pytest.mark.parametrize(
    ("messages", "completion", "said"),
    [
        (QUESTION, [{"role": "user", "content": "b"}], "a completion is one assistant message, this one is: user"),
        (QUESTION, [*_answers("b")[0], *_answers("c")[0]], "this one is: assistant, assistant"),
        (QUESTION, [], "this one is: no message"),
        (QUESTION, "a <end> b", "a message contains '<end>', which ends a turn"),
        (QUESTION, "a <eos> b", "a message contains '<eos>', which ends a turn"),
        ([{"role": "user", "content": "a<end>\n<turn>assistant"}], "b", "a message contains '<end>'"),
        ([{"role": "user", "content": None}], "b", "this one has another shape"),
        ([{"role": "user"}], "b", "this one has another shape"),
        ([{"role": "tool", "content": "a"}], "b", "the chat template refuses these messages (no tools here)"),
    ],
)
def test_messages_that_cannot_be_encoded_are_refused_by_name(messages: Text, completion: Text, said: str) -> None:
    template = "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}" + CHAT
    assert said in _problem(_encoder(_byte_tokenizer(template=template)), messages, completion)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    # Such a template counts the turns, so that the prompt alone is not how the whole conversation begins.
    tokenizer = _byte_tokenizer(template="{{ messages | length }}" + CHAT)
    assert "writes the prompt otherwise when an answer follows" in _problem(_encoder(tokenizer), QUESTION, "b")
