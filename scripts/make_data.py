"""Write the embedded data: film reviews of known sentiment, and arithmetic word problems with worked solutions.

    python scripts/make_data.py                    # data/raw/reviews.jsonl, reviews_heldout.jsonl, data/prompts.json
    python scripts/make_data.py --out elsewhere

Everything comes from two small grammars and a seed: the same command writes the same bytes. The base model is trained
on fresh draws of the same grammars (`scripts/train_base_model.py`), never on the held-out prompts.
It knows nothing about models or tokenizers; how a review is scored is the business of
`groupwise.rewards.review_sentiment`, which owns the opinion words.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from groupwise.rewards import review_sentiment as lexicon

SEED = 20230529
OPENING_WORDS = (5, 15)
REVIEW_PIECES = (10, 26)  # words and punctuation marks of one continuation, fewest and most

# --- reviews ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReviewPair:
    """The neutral beginning of a review, and one continuation of each sentiment (each begins with a space)."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Opening:
    """A neutral beginning. `expects`: what grammar must follow: "sentence", "clause" or "verb" (after `subject`)."""

    text: str
    expects: str
    subject: "Subject"


@dataclass(frozen=True, slots=True)
class Subject:
    text: str
    plural: bool = False


ASPECTS = (
    Subject("the acting"), Subject("the plot"), Subject("the script"), Subject("the music"), Subject("the ending"),
    Subject("the dialogue"), Subject("the camera work"), Subject("the cast"), Subject("the story"),
    Subject("the editing"), Subject("the direction"),
    Subject("the opening scene"), Subject("the lead actor"), Subject("the lead actress"),
    Subject("the final act"), Subject("the set design"), Subject("the soundtrack"), Subject("the humour"),
    Subject("the middle part"), Subject("the romance"), Subject("the costumes", True), Subject("the characters", True),
    Subject("the songs", True), Subject("the jokes", True), Subject("the fight scenes", True),
    Subject("the supporting roles", True), Subject("the special effects", True), Subject("the locations", True),
)  # fmt: skip
WATCHED = ("watched", "saw", "went to see", "finally saw", "rented", "sat through", "caught", "streamed")
WHO = ("I", "We", "My brother and I", "My sister and I", "Two friends and I", "My parents and I", "Our film club")
KINDS = (
    "film", "movie", "thriller", "comedy", "drama", "western", "cartoon", "musical", "crime story", "war film",
    "sequel", "remake", "road movie", "ghost story", "documentary", "spy film",
)  # fmt: skip
TOPICS = (
    "a lighthouse keeper", "two bank robbers", "a retired teacher", "a young chess player", "a fishing village",
    "a night train", "three sisters", "a travelling circus", "a lost letter", "a small hotel", "an old boxer",
    "a mountain guide", "a family bakery", "a stolen painting", "a school orchestra", "a desert town", "a taxi driver",
    "a village doctor", "a space station", "a court case",
)  # fmt: skip
WHEN = (
    "last night", "on Friday", "yesterday", "on the plane", "at the local cinema", "over the weekend", "this morning",
    "with my neighbours", "on a rainy evening", "at a festival", "at home", "with the whole family", "last summer",
)  # fmt: skip
LEADS_TO_CLAUSE = (
    "and I have to say that", "and in my view", "and I think that", "and to me", "and I must say that", "and for me",
    "and we all agreed that", "and this is what I noticed:",
)  # fmt: skip
REVIEWER_TAILS = (
    "",
    "",
    " from start to finish",
    " most of the time",
    " in every scene",
    " throughout",
    " to the very end",
)
ADVERBS = ("", "", "", "very ", "really ", "truly ", "quite ", "rather ", "often ")
DENIALS = ("not", "not at all", "never", "hardly", "far from", "anything but", "by no means", "in no way")


def opening(rng: random.Random) -> Opening:
    """A neutral beginning of 5 to 15 words: a whole sentence, or one broken off where an opinion must follow."""
    while True:
        begin = any_opening(rng)
        if OPENING_WORDS[0] <= len(begin.text.split()) <= OPENING_WORDS[1]:
            return begin


def any_opening(rng: random.Random) -> Opening:
    """A neutral beginning of any length."""
    who, watched, kind, when = rng.choice(WHO), rng.choice(WATCHED), rng.choice(KINDS), rng.choice(WHEN)
    about = f" about {rng.choice(TOPICS)}" if rng.random() < 0.6 else ""
    frame = rng.randrange(3)
    if frame == 0:
        text = f"{who} {watched} this {kind}{about} {when}"
    elif frame == 1:
        text = f"{capital(when)} {who_inside(who)} {watched} a {kind}{about}"
    else:
        text = f"This is a {kind}{about or ' about ' + rng.choice(TOPICS)} that {who_inside(who)} {watched} {when}"
    expects = rng.choice(("sentence", "sentence", "clause", "verb"))
    subject = rng.choice(ASPECTS)
    if expects == "sentence":
        text += "."
    elif expects == "clause":
        text += f", {rng.choice(LEADS_TO_CLAUSE)}"
    else:
        text += f", and {subject.text}"
    return Opening(text, expects, subject)


def who_inside(who: str) -> str:
    """The viewers as they read in the middle of a sentence."""
    return who if who == "I" else who[0].lower() + who[1:]


class ReviewWriter:
    """Writes one continuation of one sentiment, never with the same opinion word twice."""

    def __init__(self, rng: random.Random, tense: str) -> None:
        self.rng = rng
        self.present = tense == "present"
        self.used: set[str] = set()

    def write(self, begin: Opening, sign: int, pieces: int) -> str:
        """A continuation of about `pieces` words and punctuation marks, from where the opening leaves off."""
        if begin.expects == "verb":
            self.used.add(begin.subject.text)
            text = f" {self.sentence(sign, begin.subject)}."
        elif begin.expects == "clause":
            text = f" {self.sentence(sign)}."
        else:
            text = f" {capital(self.sentence(sign))}."
        while count_pieces(text) < pieces - 4:
            text += f" {capital(self.sentence(sign))}."
        return text

    def sentence(self, sign: int, subject: Subject | None = None) -> str:
        """One sentence without its full stop; with `subject`, only what follows that subject."""
        form = self.rng.random()
        if form < 0.06:
            return f"{self.clause(-sign, subject)}, but {self.clause(sign)}"
        if form < 0.09:
            return f"{self.clause(sign, subject)}, {self.rng.choice(('although', 'even though'))} {self.clause(-sign)}"
        if form < 0.11:
            return f"{self.clause(sign, subject)} despite {self.some_fault(-sign)}"
        if form < 0.13:
            contrast = self.rng.choice(("Still", "However", "Nevertheless"))
            return f"{self.clause(-sign, subject)}. {contrast}, {self.clause(sign)}"
        if form < 0.27:
            return f"{self.clause(sign, subject)} and {self.clause(sign)}"
        if form < 0.30 and subject is None:
            return f"although {self.clause(-sign)}, {self.clause(sign)}"
        return self.clause(sign, subject)

    def clause(self, sign: int, subject: Subject | None = None) -> str:
        """One clause of the given sentiment; with `subject`, only its predicate."""
        if subject is not None:
            return self.predicate(sign, subject)
        form = self.rng.random()
        if form < 0.18:
            return self.verdict(sign)
        if form < 0.30:
            return f"it {self.noun_phrase(sign)}"
        subject = self.aspect()
        return f"{subject.text} {self.predicate(sign, subject)}"

    def predicate(self, sign: int, subject: Subject) -> str:
        """What is said of a part of the film."""
        rng = self.rng
        be = self.be(subject)
        has = self.verb(("have", "has", "had"), subject)
        tail = rng.choice(REVIEWER_TAILS)
        form = rng.randrange(24)
        if form > 13 or form < 4:
            return f"{be} {rng.choice(ADVERBS)}{self.adjective(sign)}{tail}"
        if form < 7:
            return f"{be} {rng.choice(DENIALS)} {self.adjective(-sign)}{tail}"
        if form == 7:
            return f"{be} {self.adjective(sign)} and {self.adjective(sign)}"
        if form == 8:
            return f"{be} neither {self.adjective(-sign)} nor {self.adjective(-sign)}"
        if form == 9:
            return f"{be} not only {self.adjective(sign)} but also {self.adjective(sign)}"
        if form == 10:
            quality = self.quality(sign)
            return rng.choice((f"{be} full of {quality}", f"{has} plenty of {quality}", f"{be} not without {quality}"))
        if form == 11:
            quality = self.quality(-sign)
            lacks = self.verb(("lack", "lacks", "lacked"), subject)
            return rng.choice((f"{be} free of {quality}", f"{has} no {quality}", f"{lacks} {quality}"))
        if form == 12:
            leave = self.verb(("leave", "leaves", "left"), subject)
            never = rng.random() < 0.4
            return f"{'never ' if never else ''}{leave} me {self.feeling(-sign if never else sign)}"
        return f"{self.verb(self.effect(sign), subject)} the {rng.choice(('film', 'whole film', 'evening'))}"

    def verdict(self, sign: int) -> str:
        """What the reviewer did with the film."""
        rng = self.rng
        if rng.random() < 0.2:
            denied = rng.choice(("did not", "could not", "would not", "never"))
            verb = self.verdict_verb(-sign)
            form = verb[2] if denied == "never" else verb[0]
            return f"I {denied} {form} {rng.choice(('it', 'this film', 'a single scene'))}"
        return f"I {self.verdict_verb(sign)[2]} {rng.choice(('it', 'every minute', 'every scene', 'the whole thing'))}"

    def noun_phrase(self, sign: int) -> str:
        """What the film is, after "it"."""
        be = "is" if self.present else "was"
        form = self.rng.randrange(8)
        if form == 0:
            return f"{be} {self.rng.choice(('not', 'hardly', 'by no means', 'anything but'))} a {self.noun(-sign)}"
        if form == 1:
            return f"{be} simply a {self.noun(sign)}"
        return f"{be} a {self.adjective_before_noun(sign)} {self.noun(sign)}"

    def some_fault(self, sign: int) -> str:
        """A part of the film and what it is like, as "despite" takes it."""
        return f"the {self.adjective(sign)} {self.aspect().text.removeprefix('the ')}"

    def aspect(self) -> Subject:
        """A part of the film that this text has not judged."""
        name = self.fresh([subject.text for subject in ASPECTS])
        return next(subject for subject in ASPECTS if subject.text == name)

    def be(self, subject: Subject) -> str:
        return self.verb(("are", "is", "were" if subject.plural else "was"), subject)

    def verb(self, forms: tuple[str, str, str], subject: Subject) -> str:
        plural, singular, past = forms
        return past if not self.present else plural if subject.plural else singular

    def adjective(self, sign: int) -> str:
        return self.fresh(lexicon.POSITIVE_ADJECTIVES if sign > 0 else lexicon.NEGATIVE_ADJECTIVES)

    def adjective_before_noun(self, sign: int) -> str:
        """An adjective that "a" fits."""
        words = lexicon.POSITIVE_ADJECTIVES if sign > 0 else lexicon.NEGATIVE_ADJECTIVES
        return self.fresh([word for word in words if word[0] not in "aeiou" and word != "honest"])

    def noun(self, sign: int) -> str:
        return self.fresh(lexicon.POSITIVE_NOUNS if sign > 0 else lexicon.NEGATIVE_NOUNS)

    def quality(self, sign: int) -> str:
        return self.fresh(lexicon.POSITIVE_QUALITIES if sign > 0 else lexicon.NEGATIVE_QUALITIES)

    def feeling(self, sign: int) -> str:
        return self.fresh(lexicon.POSITIVE_FEELINGS if sign > 0 else lexicon.NEGATIVE_FEELINGS)

    def effect(self, sign: int) -> tuple[str, str, str]:
        return self.fresh_verb(lexicon.POSITIVE_EFFECTS if sign > 0 else lexicon.NEGATIVE_EFFECTS)

    def verdict_verb(self, sign: int) -> tuple[str, str, str]:
        return self.fresh_verb(lexicon.POSITIVE_VERDICTS if sign > 0 else lexicon.NEGATIVE_VERDICTS)

    def fresh(self, words: Sequence[str]) -> str:
        """One of the words that this text has not used."""
        word = self.rng.choice([word for word in words if word not in self.used] or words)
        self.used.add(word)
        return word

    def fresh_verb(self, verbs: Sequence[tuple[str, str, str]]) -> tuple[str, str, str]:
        chosen = self.fresh([forms[0] for forms in verbs])
        return next(forms for forms in verbs if forms[0] == chosen)


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def count_pieces(text: str) -> int:
    """Words and punctuation marks of a text: near the number of tokens, without knowing a tokenizer."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def review_continuation(rng: random.Random, begin: Opening, sign: int) -> str:
    """A continuation of the given sentiment (+1, -1); both sentiments have the same forms, hence the same lengths."""
    while True:
        writer = ReviewWriter(rng, rng.choice(("past", "present")))
        text = writer.write(begin, sign, rng.randint(*REVIEW_PIECES))
        if REVIEW_PIECES[0] <= count_pieces(text) <= REVIEW_PIECES[1]:
            return text


def review_pair(rng: random.Random) -> ReviewPair:
    """One neutral beginning with a positive and a negative continuation."""
    begin = opening(rng)
    return ReviewPair(begin.text, review_continuation(rng, begin, 1), review_continuation(rng, begin, -1))


# --- word problems ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem: its text (ending in a newline), the answer in digits, and the worked solution that ends in it."""

    prompt: str
    answer: str
    solution: str

    @property
    def bare_answer(self) -> str:
        """The solution without its working."""
        return f"#### {self.answer}"

    @property
    def steps(self) -> int:
        """How many equations the worked solution has."""
        return self.solution.count("\n")


@dataclass(frozen=True, slots=True)
class Scene:
    """A kind of thing that can be counted, and what happens to it; {n} the number, {x} the other person."""

    things: tuple[str, ...]
    have: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    container: str
    question: str


NAMES = {
    "She": ("Mia", "Anna", "Lucy", "Sara", "Emma", "Nora", "Ruth", "Ida", "Clara", "Zoe"),
    "He": ("Tom", "Ben", "Jack", "Paul", "Omar", "Leo", "Karl", "Sam", "Hugo", "Max"),
}
SCENES = (
    Scene(
        ("apples", "pears", "lemons", "plums", "oranges", "nuts"), "has",
        ("picks {n} more", "buys {n} more", "gets {n} from {x}", "finds {n} more"),
        ("eats {n}", "gives {n} to {x}", "sells {n}", "drops {n}", "throws away {n}"),
        "baskets", "How many {things} does {name} have now?",
    ),
    Scene(
        ("stamps", "cards", "marbles", "coins", "stickers", "shells", "beads"), "has",
        ("buys {n} more", "finds {n} more", "wins {n}", "gets {n} from {x}"),
        ("loses {n}", "gives {n} to {x}", "sells {n}", "trades away {n}"),
        "boxes", "How many {things} does {name} have left?",
    ),
    Scene(
        ("loaves", "rolls", "muffins", "pies", "cookies"), "bakes",
        ("bakes {n} more", "makes {n} more"),
        ("sells {n}", "burns {n}", "gives {n} to {x}", "eats {n}"),
        "trays", "How many {things} are left?",
    ),
    Scene(
        ("books", "letters", "chairs", "bottles", "lamps", "pens"), "stores",
        ("receives {n} more", "orders {n} more", "gets {n} from {x}"),
        ("sends {n} to {x}", "sells {n}", "breaks {n}", "lends {n} to {x}"),
        "crates", "How many {things} does {name} still have?",
    ),
    Scene(
        ("dollars", "euros"), "has",
        ("earns {n} more", "saves {n} more", "wins {n}", "gets {n} from {x}"),
        ("spends {n}", "pays {x} {n}", "loses {n}", "gives away {n}"),
        "envelopes", "How many {things} does {name} have in the end?",
    ),
)  # fmt: skip
CONNECTIVES = ("Then", "Later", "After that", "The next day", "In the evening", "Soon after", "On Monday")
STEP_SHARES = {1: 0.06, 2: 0.30, 3: 0.40, 4: 0.24}
LARGEST_TOTAL = 60


def problem(rng: random.Random) -> Problem:
    """A word problem of one to four steps, mostly three."""
    steps = rng.choices(list(STEP_SHARES), weights=list(STEP_SHARES.values()))[0]
    kinds: tuple[Callable[[random.Random, int], Problem], ...] = (
        story_problem,
        story_problem,
        story_problem,
        bus_problem,
    )
    if steps in (2, 3):
        kinds = (*kinds, comparison_problem)
    return rng.choice(kinds)(rng, steps)


def story_problem(rng: random.Random, steps: int) -> Problem:
    """Somebody has a number of things, and gains and loses some."""
    scene = rng.choice(SCENES)
    pronoun = rng.choice(sorted(NAMES))
    name, other = rng.choice(NAMES[pronoun]), rng.choice(NAMES["He" if pronoun == "She" else "She"])
    things = rng.choice(scene.things)
    lines: list[str] = []
    if rng.random() < 0.2:
        groups, each = rng.randint(2, 5), rng.randint(3, 9)
        total = groups * each
        lines.append(f"{groups} * {each} = {total}")
        sentences = [f"{name} {scene.have} {groups} {scene.container} of {each} {things} each."]
    else:
        total = rng.randint(11, 49)
        sentences = [f"{name} {scene.have} {total} {things}."]
    while len(lines) < steps:
        gain, number = change(rng, total)
        event = rng.choice(scene.gains if gain else scene.losses).format(n=number, x=other)
        total, line = (total + number, f"{total} + {number} = ") if gain else (total - number, f"{total} - {number} = ")
        lines.append(f"{line}{total}")
        opener = f"{rng.choice(CONNECTIVES)} {pronoun.lower()}" if rng.random() < 0.5 else pronoun
        sentences.append(f"{opener} {event}.")
    sentences.append(scene.question.format(things=things, name=name))
    return finished(rng, story_problem, steps, sentences, lines, total)


def change(rng: random.Random, total: int) -> tuple[bool, int]:
    """What happens next to a total: whether it grows, and by how much; it stays above 0."""
    gain = rng.random() < (1.0 if total < 8 else 0.7 if total < 20 else 0.3 if total > 45 else 0.5)
    return gain, rng.randint(2, 12) if gain else rng.randint(2, min(12, total - 1))


def bus_problem(rng: random.Random, steps: int) -> Problem:
    """People get on and off along a line."""
    carrier, enter, leave = rng.choice(
        (("bus", "get on", "get off"), ("tram", "step in", "step out"), ("ferry", "come aboard", "go ashore"))
    )
    total = rng.randint(11, 49)
    place = rng.choice(("stop", "halt"))
    sentences = [f"A {carrier} carries {total} people."]
    lines: list[str] = []
    for ordinal in ("first", "second", "third", "fourth")[:steps]:
        gain, number = change(rng, total)
        sentences.append(f"At the {ordinal} {place} {number} {enter if gain else leave}.")
        total, line = (total + number, f"{total} + {number} = ") if gain else (total - number, f"{total} - {number} = ")
        lines.append(f"{line}{total}")
    sentences.append(f"How many people are on the {carrier} now?")
    return finished(rng, bus_problem, steps, sentences, lines, total)


def comparison_problem(rng: random.Random, steps: int) -> Problem:
    """Two or three people have more or fewer than one another; how many together? Two or three steps."""
    pronoun = rng.choice(sorted(NAMES))
    name, other = rng.choice(NAMES[pronoun]), rng.choice(NAMES["He" if pronoun == "She" else "She"])
    things = rng.choice(rng.choice(SCENES).things)
    first, number = rng.randint(12, 25), rng.randint(2, 9)
    more = rng.random() < 0.5
    second = first + number if more else first - number
    lines = [f"{first} {'+' if more else '-'} {number} = {second}", f"{first} + {second} = {first + second}"]
    total = first + second
    sentences = [
        f"{name} has {first} {things}.",
        f"{other} has {number} {'more' if more else 'fewer'} than {name}.",
    ]
    if steps == 3:
        sold = rng.randint(2, 12)
        sentences.append(f"Together they sell {sold}.")
        lines.append(f"{total} - {sold} = {total - sold}")
        total -= sold
    sentences.append(f"How many {things} do they have together{' now' if steps == 3 else ''}?")
    return finished(rng, comparison_problem, steps, sentences, lines, total)


def finished(
    rng: random.Random,
    again: Callable[[random.Random, int], Problem],
    steps: int,
    sentences: list[str],
    lines: list[str],
    total: int,
) -> Problem:
    """The problem, or another of its kind where a total grew beyond what the task keeps to."""
    totals = [int(line.rpartition(" ")[2]) for line in lines]
    if max(totals) > LARGEST_TOTAL:
        return again(rng, steps)
    return Problem(" ".join(sentences) + "\n", str(total), "\n".join([*lines, f"#### {total}"]))


T = TypeVar("T", ReviewPair, Problem)

# --- files ------------------------------------------------------------------------------------------------------


def distinct(draw: Callable[[random.Random], T], rng: random.Random, count: int) -> list[T]:
    """`count` draws with distinct prompts."""
    found: dict[str, T] = {}
    while len(found) < count:
        item = draw(rng)
        found.setdefault(item.prompt, item)
    return list(found.values())


def reviews(seed: int, train: int, heldout: int) -> tuple[list[ReviewPair], list[ReviewPair]]:
    """The training and the held-out preference pairs."""
    pairs = distinct(review_pair, random.Random(f"reviews {seed}"), train + heldout)
    return pairs[heldout:], pairs[:heldout]


def problems(seed: int, train: int, heldout: int) -> tuple[list[Problem], list[Problem]]:
    """The training and the held-out word problems."""
    drawn = distinct(problem, random.Random(f"problems {seed}"), train + heldout)
    return drawn[heldout:], drawn[:heldout]


def longer_wins_auc(pairs: Sequence[ReviewPair]) -> float:
    """How often a random chosen text is longer than a random rejected one, ties half: 0.5 says length tells nothing."""
    chosen, rejected = (
        [len(text) for text in side] for side in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
    )
    wins = sum((c > r) + (c == r) / 2 for c in chosen for r in rejected)
    return wins / (len(chosen) * len(rejected))


def write(out: Path, *, seed: int, train_pairs: int, train_problems: int, heldout: int) -> str:
    """Write all three files under `out` and say what they hold."""
    pairs, heldout_pairs = reviews(seed, train_pairs, heldout)
    asked, heldout_asked = problems(seed, train_problems, heldout)
    (out / "raw").mkdir(parents=True, exist_ok=True)
    for name, part in (("reviews.jsonl", pairs), ("reviews_heldout.jsonl", heldout_pairs)):
        lines = "".join(json.dumps(asdict(pair)) + "\n" for pair in part)
        (out / "raw" / name).write_text(lines, encoding="utf-8", newline="\n")
    rows = [
        json.dumps({**asdict(item), "split": split})
        for split, items in (("train", asked), ("heldout", heldout_asked))
        for item in items
    ]
    (out / "prompts.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8", newline="\n")
    return (
        f"{len(pairs)} + {len(heldout_pairs)} preference pairs, longer-wins AUC {longer_wins_auc(pairs):.3f}; "
        f"{len(asked)} + {len(heldout_asked)} word problems; in {out}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent.parent / "data", help="folder to write"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--train-pairs", type=int, default=6000)
    parser.add_argument("--train-problems", type=int, default=2000)
    parser.add_argument("--heldout", type=int, default=256, help="held-out pairs, and held-out problems")
    args = parser.parse_args()
    counts = {"train_pairs": args.train_pairs, "train_problems": args.train_problems, "heldout": args.heldout}
    print(write(args.out, seed=args.seed, **counts))


if __name__ == "__main__":
    main()
