"""Problem families with exact answers, drawn by seed: the laboratory's benchmarks and training problems.

They replace data sets that cannot be shipped or fetched: a family is an endless supply of short questions
whose answers are known. Invariant: the split of a problem is a function of the hash of its canonical key (the
problem up to the order of its terms), so no two splits can share a problem, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mot_core.lab.answers import same_integer, same_integer_list, same_time, same_word
from mot_core.lab.expressions import Term, evaluate, render_expression
from mot_core.lab.times import MINUTES_A_DAY, TimeTerm, render_time, render_times, running_times
from mot_core.problems import Problem

HOME: tuple[str, ...] = ("sums", "products")
PANEL: tuple[str, ...] = ("reverse", "sort", "count", "largest")
# The easy ends of the home families. Students grow up on them; they are no benchmarks.
PRIMERS: tuple[str, ...] = ("short-sums", "short-products")
# The later laboratory's, added when the first was frozen and its methods had been compared.
LATER_HOME: tuple[str, ...] = ("clock",)
LATER_PRIMERS: tuple[str, ...] = ("short-clock",)

SPLITS: tuple[str, ...] = ("train", "dev", "test")
_TRAIN_PERCENT, _DEV_PERCENT = 80, 10

# A split is called exhausted after this many draws in a row that bring nothing new.
_FRUITLESS_DRAWS = 20_000


@dataclass(frozen=True)
class Draft:
    """A problem before it has an id; two drafts with one `key` are the same problem in another guise."""

    key: str
    question: str
    answer: str


@dataclass(frozen=True)
class Family:
    """A named supply of problems: `stream(seed)` yields drafts for ever, of every split, with repeats."""

    name: str
    description: str
    stream: Callable[[int], Iterator[Draft]]
    same_answer: Callable[[str, str], bool]


def split_of(family: str, key: str) -> str:
    """The split that a canonical key falls into: 80 % train, 10 % dev, 10 % test."""
    bucket = int(hashlib.sha256(f"split\x00{family}\x00{key}".encode()).hexdigest()[:8], 16) % 100
    if bucket < _TRAIN_PERCENT:
        return "train"
    return "dev" if bucket < _TRAIN_PERCENT + _DEV_PERCENT else "test"


def draw_problems(family: str, split: str, num_problems: int, seed: int) -> list[Problem]:
    """`num_problems` distinct problems of one split, in an order fixed by the seed.

    A shorter draw is a prefix of a longer one with the same seed. ValueError for an unknown family or split,
    a count that is not positive, or a family that does not have as many problems.
    """
    _check_request(family, split, num_problems)
    problems: list[Problem] = []
    seen: set[str] = set()
    fruitless = 0
    for draft in FAMILIES[family].stream(_stream_seed(family, seed)):
        if draft.key in seen or split_of(family, draft.key) != split:
            fruitless += 1
            if fruitless >= _FRUITLESS_DRAWS:
                raise ValueError(
                    f"family {family!r}, split {split!r}: expected {num_problems} distinct problems, found "
                    f"only {len(problems)} before {_FRUITLESS_DRAWS} draws in a row brought nothing new; "
                    "ask for fewer"
                )
            continue
        fruitless = 0
        seen.add(draft.key)
        problems.append(Problem.of(family, draft.question, draft.answer))
        if len(problems) == num_problems:
            break
    return problems


def check_answer(family: str, gold: str, answer: str) -> bool:
    """Whether `answer` states the same value as `gold`; any text is safe, none is evaluated."""
    if family not in FAMILIES:
        raise ValueError(_unknown("family", family, tuple(FAMILIES)))
    return FAMILIES[family].same_answer(gold, answer)


def _check_request(family: str, split: str, num_problems: int) -> None:
    if family not in FAMILIES:
        raise ValueError(_unknown("family", family, tuple(FAMILIES)))
    if split not in SPLITS:
        raise ValueError(_unknown("split", split, SPLITS))
    if isinstance(num_problems, bool) or not isinstance(num_problems, int) or num_problems < 1:
        raise ValueError(f"num_problems: expected a positive whole number, got {num_problems!r}")


def _unknown(what: str, got: object, known: tuple[str, ...]) -> str:
    return f"unknown {what} {got!r}: expected one of {', '.join(known)}; correct the name in the spec"


def _stream_seed(family: str, seed: int) -> int:
    # reasoning-gym seeds item i with seed + i, so neighbouring seeds would share all items but one.
    return int(hashlib.sha256(f"stream\x00{family}\x00{seed}".encode()).hexdigest()[:12], 16)


def _gym_items(dataset: str, seed: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """The metadata of a reasoning-gym dataset's items, one after another."""
    # Imported here: it takes 1.1 s, and reading a spec needs no generator.
    from reasoning_gym import create_dataset  # type: ignore[import-untyped, unused-ignore]

    items = create_dataset(dataset, seed=seed, size=1, **settings)
    index = 0
    while True:
        metadata: dict[str, Any] = items[index]["metadata"]
        yield metadata
        index += 1


def expression_draft(terms: list[Term]) -> Draft:
    """The draft of a sum of terms; every order of the same terms has the same key."""
    # Terms commute, so the key sorts them: a sum and its reordering must not sit in two splits.
    key = " ".join(sorted(f"{term.sign:+d}*{term.multiplier}*{term.number}" for term in terms))
    return Draft(key, render_expression(terms), str(evaluate(terms)))


def _sums_stream(min_terms: int, max_terms: int) -> Callable[[int], Iterator[Draft]]:
    def stream(seed: int) -> Iterator[Draft]:
        settings = {"min_terms": min_terms, "max_terms": max_terms, "min_digits": 2, "max_digits": 2}
        for metadata in _gym_items("chain_sum", seed, **settings):
            signs_and_numbers = ["+", *str(metadata["expression"]).split()]
            terms = [
                Term(1 if sign == "+" else -1, 1, int(number))
                for sign, number in zip(signs_and_numbers[::2], signs_and_numbers[1::2], strict=True)
            ]
            if _stays_above_zero(terms):
                yield expression_draft(terms)

    return stream


def _products_stream(min_terms: int, max_terms: int, max_products: int) -> Callable[[int], Iterator[Draft]]:
    def stream(seed: int) -> Iterator[Draft]:
        rng = random.Random(seed)
        while True:
            num_terms = rng.randint(min_terms, max_terms)
            products = set(rng.sample(range(num_terms), rng.randint(1, min(num_terms, max_products))))
            terms = []
            for position in range(num_terms):
                sign = 1 if position == 0 else rng.choice((1, -1))
                if position in products:
                    terms.append(Term(sign, rng.randint(2, 5), rng.randint(11, 49)))
                else:
                    terms.append(Term(sign, 1, rng.randint(10, 99)))
            if _stays_above_zero(terms):
                yield expression_draft(terms)

    return stream


def _stays_above_zero(terms: list[Term]) -> bool:
    # Totals below zero are more arithmetic to learn. Adopted together with the wider initialiser, never measured alone.
    return all(evaluate(terms[: end + 1]) >= 0 for end in range(len(terms)))


# Times are whole fives of minutes: a step is then as easy as one on two-digit numbers.
_CLOCK_GRID = 5
_LONGEST_CHANGE = 4 * 60 + 55


def clock_draft(terms: list[TimeTerm]) -> Draft:
    """The draft of times added and taken away; every order of the same terms has the same key."""
    key = " ".join(sorted(f"{term.value:+d}" for term in terms))
    return Draft(key, render_times(terms), render_time(running_times(terms)[-1]))


def _clock_stream(min_terms: int, max_terms: int) -> Callable[[int], Iterator[Draft]]:
    def stream(seed: int) -> Iterator[Draft]:
        rng = random.Random(seed)
        while True:
            terms = [TimeTerm(1, rng.randrange(0, MINUTES_A_DAY, _CLOCK_GRID))]
            for _ in range(rng.randint(min_terms, max_terms) - 1):
                change = rng.randrange(_CLOCK_GRID, _LONGEST_CHANGE + 1, _CLOCK_GRID)
                terms.append(TimeTerm(rng.choice((1, -1)), change))
            if all(0 <= total < MINUTES_A_DAY for total in running_times(terms)):
                yield clock_draft(terms)

    return stream


def _reverse_stream(seed: int) -> Iterator[Draft]:
    for metadata in _gym_items("spell_backward", seed, min_word_len=3, max_word_len=6):
        word = str(metadata["word"])
        if word.isascii() and word.isalpha() and word.islower():
            yield Draft(word, f"reverse {word}", word[::-1])


def _numbers(seed: int, min_numbers: int, max_numbers: int, max_value: int) -> Iterator[list[int]]:
    settings = {"min_numbers": min_numbers, "max_numbers": max_numbers, "min_decimals": 0, "max_decimals": 0}
    for metadata in _gym_items("number_sorting", seed, min_value=10.0, max_value=float(max_value), **settings):
        yield [int(float(number)) for number in metadata["original_numbers"]]


def _sort_stream(seed: int) -> Iterator[Draft]:
    for numbers in _numbers(seed, 3, 4, 99):
        answer = " ".join(str(number) for number in sorted(numbers))
        yield Draft(answer, f"sort {' '.join(map(str, numbers))}", answer)


def _largest_stream(seed: int) -> Iterator[Draft]:
    for numbers in _numbers(seed, 3, 5, 99):
        key = " ".join(str(number) for number in sorted(numbers))
        yield Draft(key, f"largest {' '.join(map(str, numbers))}", str(max(numbers)))


def _count_stream(seed: int) -> Iterator[Draft]:
    rng = random.Random(seed)
    for metadata in _gym_items("letter_counting", seed, min_words=1, max_words=2):
        span, letter = " ".join(metadata["span"]).lower(), str(metadata["target_letter"])
        if len(span) > 12 or not letter.isalpha() or not span.isascii():
            continue
        answer = span.count(letter)
        # 85 % of the raw items have the answer 1, and a constant reply would pass; after this about 45 %.
        if answer == 1 and rng.random() < 0.85:
            continue
        yield Draft(f"{letter} {span}", f"count {letter} in {span}", str(answer))


def _all_families() -> dict[str, Family]:
    families = (
        Family("sums", "4 to 6 two-digit terms, never below zero on the way", _sums_stream(4, 6), same_integer),
        Family(
            "products",
            "3 or 4 terms, 1 or 2 of them products, never below zero",
            _products_stream(3, 4, 2),
            same_integer,
        ),
        Family("reverse", "a word of 3 to 6 letters, backward", _reverse_stream, same_word),
        Family("sort", "3 or 4 two-digit numbers, ascending", _sort_stream, same_integer_list),
        Family("count", "how often a letter occurs in a few words", _count_stream, same_integer),
        Family("largest", "the largest of 3 to 5 two-digit numbers", _largest_stream, same_integer),
        Family("short-sums", "the sums of 2 or 3 terms", _sums_stream(2, 3), same_integer),
        Family("short-products", "1 or 2 terms, one a product", _products_stream(1, 2, 1), same_integer),
        Family("clock", "3 or 4 times added and taken away, within one day", _clock_stream(3, 4), same_time),
        Family("short-clock", "the clock problems of 2 terms", _clock_stream(2, 2), same_time),
    )
    return {family.name: family for family in families}


FAMILIES: dict[str, Family] = _all_families()
