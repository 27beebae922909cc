"""The sentiment of a short film review, clause by clause, from a fixed lexicon.

This is the ground truth of the embedded review task: `scripts/make_data.py` writes its reviews from the word lists
below, so on those texts the score has the sign of the intended label. Any other text is scored by the same rules.

It knows nothing about irony, comparison ("better than"), wishes ("could have been funny"), questions, who holds an
opinion, words outside its lists, words with two senses ("the love story" counts as love), spelling mistakes, or whether
a text is grammatical or readable: a list of different words of praise, each behind its own comma, scores as high as an
honest review of the same opinions.
"""

import re
from dataclasses import dataclass

POSITIVE_ADJECTIVES = (
    "absorbing", "beautiful", "bold", "brilliant", "charming", "clever", "compelling", "confident", "convincing",
    "delightful", "elegant", "excellent", "fresh", "funny", "graceful", "gripping", "heartfelt", "honest", "impressive",
    "inspired", "lively", "magical", "masterful", "memorable", "moving", "polished", "remarkable", "rich", "sharp",
    "splendid", "stunning", "subtle", "superb", "tender", "thrilling", "touching", "vivid", "warm", "witty",
    "wonderful",
)  # fmt: skip
NEGATIVE_ADJECTIVES = (
    "awful", "awkward", "bland", "boring", "careless", "cheap", "clumsy", "confusing", "disappointing", "dreadful",
    "dreary", "dull", "empty", "feeble", "flat", "forced", "forgettable", "grating", "hollow", "lazy", "lifeless",
    "messy", "muddled", "painful", "pointless", "pompous", "predictable", "shallow", "silly", "sloppy", "slow", "stale",
    "tedious", "terrible", "tired", "tiresome", "trite", "ugly", "weak", "wooden",
)  # fmt: skip
POSITIVE_NOUNS = ("delight", "gem", "joy", "marvel", "masterpiece", "pleasure", "treat", "triumph")
NEGATIVE_NOUNS = ("bore", "chore", "disaster", "failure", "letdown", "mess", "nuisance", "waste")
POSITIVE_QUALITIES = ("charm", "depth", "energy", "grace", "heart", "tension", "warmth", "wit")
NEGATIVE_QUALITIES = ("boredom", "cliches", "clutter", "confusion", "laziness", "nonsense", "padding", "vanity")
POSITIVE_FEELINGS = ("amused", "delighted", "enchanted", "hooked", "inspired", "thrilled", "touched", "uplifted")
NEGATIVE_FEELINGS = ("annoyed", "bored", "disappointed", "irritated", "restless", "sleepy", "unmoved", "weary")
# Verbs as (base form, third person, past): the reviewer's own verdicts, then what one part does to the whole film.
POSITIVE_VERDICTS = (
    ("admire", "admires", "admired"), ("adore", "adores", "adored"), ("enjoy", "enjoys", "enjoyed"),
    ("love", "loves", "loved"), ("recommend", "recommends", "recommended"), ("praise", "praises", "praised"),
)  # fmt: skip
NEGATIVE_VERDICTS = (
    ("despise", "despises", "despised"), ("dislike", "dislikes", "disliked"), ("hate", "hates", "hated"),
    ("loathe", "loathes", "loathed"), ("regret", "regrets", "regretted"), ("resent", "resents", "resented"),
)  # fmt: skip
POSITIVE_EFFECTS = (
    ("enrich", "enriches", "enriched"), ("lift", "lifts", "lifted"), ("redeem", "redeems", "redeemed"),
    ("rescue", "rescues", "rescued"), ("save", "saves", "saved"),
)  # fmt: skip
NEGATIVE_EFFECTS = (
    ("cripple", "cripples", "crippled"), ("ruin", "ruins", "ruined"), ("sink", "sinks", "sank"),
    ("spoil", "spoils", "spoiled"), ("wreck", "wrecks", "wrecked"),
)  # fmt: skip

LEXICON: dict[str, int] = {
    word: sign
    for sign, lists, verbs in (
        (
            1,
            (POSITIVE_ADJECTIVES, POSITIVE_NOUNS, POSITIVE_QUALITIES, POSITIVE_FEELINGS),
            (*POSITIVE_VERDICTS, *POSITIVE_EFFECTS),
        ),
        (
            -1,
            (NEGATIVE_ADJECTIVES, NEGATIVE_NOUNS, NEGATIVE_QUALITIES, NEGATIVE_FEELINGS),
            (*NEGATIVE_VERDICTS, *NEGATIVE_EFFECTS),
        ),
    )
    for words in (*lists, *verbs)
    for word in words
}
"""Every opinion word, in lower case, and its sign."""

CONCEDED_WEIGHT = 1 / 3
"""What a conceded clause weighs ("the plot is weak, but ..."), against 1 for an asserted one."""

# Phrases are folded into one word before the clauses are read, so that their parts do not count by themselves.
_PHRASES: tuple[tuple[str, str], ...] = (
    (r"not (?:only|just|merely)", ""),  # adds, does not deny
    (r"but also", "and"),  # the other half of "not only"
    (r"no (?:doubt|question|wonder)", ""),
    (r"without (?:a )?doubt", ""),
    (r"anything but|far from|free of|fail(?:s|ed)? to", "not"),
    (r"no longer|by no means|in no way|at no point", "not"),
    (r"even (?:though|if)|in spite of", "although"),
)
_PHRASE_PATTERNS = tuple((re.compile(rf"\b(?:{pattern})\b"), word) for pattern, word in _PHRASES)
# fmt: off
_NEGATORS = frozenset({
    "not", "no", "never", "hardly", "barely", "scarcely", "neither", "without", "nothing", "nobody", "none", "cannot",
    "lack", "lacks", "lacked",
})
_CONCESSIONS = frozenset({"although", "though", "despite"})
_SENTENCE_CONTRASTS = frozenset({"but", "still", "however", "nevertheless", "nonetheless"})
# "and", "or" end a clause only before one of these: "not dull and slow" is one clause, "not dull and it is warm" two.
_CLAUSE_OPENERS = frozenset({
    "i", "you", "he", "she", "it", "we", "they", "this", "that", "these", "those", "the", "a", "an", "its", "his",
    "her", "their", "my", "our", "every", "each", "everyone", "nobody", "there",
})
# fmt: on
_SENTENCE_END = re.compile(r"[.!?\n]+")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[,;:()]|--")


@dataclass(frozen=True, slots=True)
class Clause:
    """The opinions of one clause, each a (word, sign after negation), and what the clause weighs."""

    opinions: tuple[tuple[str, int], ...]
    weight: float


def review_sentiment(text: str) -> float:
    """The sentiment of a text in [-1, 1]: positive above 0, negative below, 0 for no opinion or a balance.

    A negation flips the opinions after it in its clause; two flip back. What "but", "although", "despite" or a
    sentence opening with "Still," concedes weighs a third of what is asserted. A clause counts once however many
    opinion words it holds, by their mean; an opinion voiced before (same word, same sign) adds nothing. With P and N
    the weights of the positive and negative clauses the score is (P - N) / (P + N + 1): one clear clause scores 1/2,
    more of them approach 1.

    >>> round(review_sentiment("The plot is weak, but the acting saves it."), 3)
    0.286
    >>> review_sentiment("It is not at all dull."), review_sentiment("dull"), review_sentiment("We saw it on a Friday.")
    (0.5, -0.5, 0.0)
    """
    heard: set[tuple[str, int]] = set()
    positive = negative = 0.0
    # What is asserted is heard first, so that conceding it elsewhere cannot make it weigh less.
    for clause in sorted(clauses(text), key=lambda clause: -clause.weight):
        new = set(clause.opinions) - heard
        if not new:
            continue
        heard |= new
        value = clause.weight * sum(sign for _, sign in new) / len(new)
        positive += max(value, 0.0)
        negative += max(-value, 0.0)
    return (positive - negative) / (positive + negative + 1)


def clauses(text: str) -> list[Clause]:
    """The clauses of a text that voice an opinion, in order, negation and concession applied.

    >>> clauses("Although the script is not dull, it is slow.")
    [Clause(opinions=(('dull', 1),), weight=0.3333333333333333), Clause(opinions=(('slow', -1),), weight=1.0)]
    """
    sentences: list[list[Clause]] = []
    for sentence in _SENTENCE_END.split(_fold(text)):
        words = _TOKEN.findall(sentence)
        if not words:
            continue
        if words[0] in _SENTENCE_CONTRASTS and sentences:
            sentences[-1] = [_conceded(clause) for clause in sentences[-1]]
        sentences.append(_clauses_of_sentence(words))
    return [clause for sentence in sentences for clause in sentence if clause.opinions]


def _fold(text: str) -> str:
    """Lower-case text with "n't" as a word of its own and fixed phrases replaced by what they mean."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not").replace("\u2014", " -- ")
    for pattern, word in _PHRASE_PATTERNS:
        text = pattern.sub(word, text)
    return text


def _clauses_of_sentence(words: list[str]) -> list[Clause]:
    done: list[Clause] = []
    current: list[str] = []
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if word == "but" or (word == "yet" and i > 0 and words[i - 1] == ","):
            done = [_conceded(clause) for clause in (*done, _read_clause(current))]
            current = []
        elif not word.isalpha() and "'" not in word:  # punctuation inside the sentence
            done.append(_read_clause(current))
            current = []
        elif word in _CONCESSIONS:
            done.append(_read_clause(current))
            current = [word]
        elif word in ("and", "or") and following in _CLAUSE_OPENERS:
            done.append(_read_clause(current))
            current = [first for first in current[:1] if first in _CONCESSIONS]
        else:
            current.append(word)
    return [*done, _read_clause(current)]


def _read_clause(words: list[str]) -> Clause:
    sign = 1
    opinions: list[tuple[str, int]] = []
    for word in words:
        if word == "nor":  # carries on the denial before it, does not undo it
            sign = -1
        elif word in _NEGATORS:
            sign = -sign
        elif word in LEXICON:
            opinions.append((word, sign * LEXICON[word]))
    conceded = bool(words) and words[0] in _CONCESSIONS
    return Clause(tuple(opinions), CONCEDED_WEIGHT if conceded else 1.0)


def _conceded(clause: Clause) -> Clause:
    return Clause(clause.opinions, clause.weight * CONCEDED_WEIGHT)
