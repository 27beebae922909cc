"""A reward model: its scores are the model's own, whatever the batch, and no text is cut to fit."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from groupwise.errors import UserError
from groupwise.rewards.classifier import sequence_classifier
from groupwise.rewards.protocol import Answer, BadOption
from groupwise.rewards.scorer import Scorer
from groupwise.sections import RewardSection, ScoringSection

PROMPT = "We saw it."
TEXTS = ["", " A film.", " The plot was dull and the music was loud.", " No.", " A warm and lovely film, I liked it."]
ROWS = [{"prompt": PROMPT}] * len(TEXTS)
ANSWERS = [Answer(text=text, token_ids=(), finished=True, group=0) for text in TEXTS]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, *, labels: int) -> GPT2ForSequenceClassification:
    torch.manual_seed(labels)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
    config.num_labels = labels
    model = GPT2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.score.weight)  # the default is so small that all scores look alike
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def judge(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, GPT2ForSequenceClassification]:
    folder = tmp_path_factory.mktemp("judge")
    return str(folder), save(folder, tokenizer, labels=1)


def logits(model: GPT2ForSequenceClassification, tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_the_models_own_one_text_at_a_time(
    judge: tuple[str, GPT2ForSequenceClassification], tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    path, model = judge
    found = sequence_classifier(path, batch_size=batch_size)(ROWS, ANSWERS)
    expected = [logits(model, tokenizer, PROMPT + text).item() for text in TEXTS]
    assert len(set(expected)) == len(TEXTS)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_label_gives_its_probability(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = save(tmp_path, tokenizer, labels=3)
    with pytest.raises(BadOption, match="3 outputs, choose one of LABEL_0, LABEL_1, LABEL_2"):
        sequence_classifier(str(tmp_path))
    with pytest.raises(BadOption, match="no label 'good'"):
        sequence_classifier(str(tmp_path), label="good")
    found = sequence_classifier(str(tmp_path), label="LABEL_2")(ROWS, ANSWERS)
    expected = [logits(model, tokenizer, PROMPT + text).softmax(0)[2].item() for text in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_text_too_long_gets_no_opinion(
    judge: tuple[str, GPT2ForSequenceClassification], tokenizer: PreTrainedTokenizerFast
) -> None:
    sizes = [len(tokenizer(PROMPT + text)["input_ids"]) for text in TEXTS]
    limit = sorted(sizes)[2]
    found = sequence_classifier(judge[0], max_tokens=limit)(ROWS, ANSWERS)
    assert [score is None for score in found] == [size > limit for size in sizes]
    # 64 positions are all that this model has
    answers = [Answer(text="!" * n, token_ids=(), finished=True, group=0) for n in (20, 200)]
    assert [score is None for score in sequence_classifier(judge[0])(ROWS[:2], answers)] == [False, True]


def test_the_chat_template_writes_both_turns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = save(tmp_path, tokenizer, labels=1)
    with pytest.raises(BadOption, match="no chat template"):
        sequence_classifier(str(tmp_path), template="chat")
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}]
    rows: list[dict[str, object]] = [{"prompt": PROMPT}, {"prompt": messages}]
    found = sequence_classifier(str(tmp_path), template="chat")(rows, ANSWERS[1:3])
    written = [f"[user]{PROMPT}[assistant]{TEXTS[1]}", f"[system]Be kind.[user]{PROMPT}[assistant]{TEXTS[2]}"]
    assert found == pytest.approx([logits(model, tokenizer, text).item() for text in written], abs=1e-5)
    with pytest.raises(UserError, match="set options.template to chat"):
        sequence_classifier(str(tmp_path))(rows, ANSWERS[1:3])


def test_it_computes_in_its_own_dtype(judge: tuple[str, GPT2ForSequenceClassification]) -> None:
    exact = sequence_classifier(judge[0], dtype="float64")(ROWS, ANSWERS)
    coarse = sequence_classifier(judge[0], dtype="bfloat16")(ROWS, ANSWERS)
    assert coarse == pytest.approx(exact, abs=0.3)
    assert all(float(torch.tensor(score, dtype=torch.bfloat16)) == score for score in coarse)


def test_it_runs_in_a_worker_and_a_wrong_path_is_told(
    judge: tuple[str, GPT2ForSequenceClassification], tmp_path: Path
) -> None:
    path, _ = judge
    here = sequence_classifier(path)(ROWS, ANSWERS)
    scoring = ScoringSection(time_limit=60.0)
    with Scorer([RewardSection(name="sequence_classifier", options={"path": path})], scoring) as scorer:
        assert scorer.score(ROWS, ANSWERS).totals == pytest.approx(here, abs=1e-5)
    wrong = RewardSection(name="sequence_classifier", options={"path": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"rewards\[0\].options.path: .*nowhere cannot be loaded"):
        Scorer([wrong], scoring)
