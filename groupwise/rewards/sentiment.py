"""The sentiment of short film reviews as a reward; the rules are in `review_sentiment.py`."""

from collections.abc import Mapping

from groupwise.rewards import review_sentiment as rules
from groupwise.rewards.protocol import Answer, Reward, each, prompt_text


def review_sentiment(with_prompt: bool = False) -> Reward:
    """Above 0 where the completion praises, below 0 where it blames, inside (-1, 1); 0 without an opinion.

    With `with_prompt` the prompt's text is read in front of the completion.

    >>> answers = [Answer(text=text, token_ids=(), finished=True, group=0) for text in ("A dull plot.", "Superb.")]
    >>> review_sentiment()([{"prompt": "I saw it. "}] * 2, answers)
    [-0.5, 0.5]
    """

    def score(row: Mapping[str, object], answer: Answer) -> float:
        return rules.review_sentiment(prompt_text(row) * with_prompt + answer.text)

    return each(score)
