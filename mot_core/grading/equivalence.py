r"""The grader `math`: whether two mathematical answers are equal, by Math-Verify with both kinds of its mistakes caught.

Math-Verify rounds (1/2^99 equals 1/2^98), reads `1, 2, \ldots, n` as 2, sorts letters (`listen` equals `silent`), and does
not know that symbols under roots are positive. So kinds are told apart here; an equality that sampling refutes is
never granted, and one that samples and algebra over positive symbols show is not refused. The rest is its `verify`.

The kinds call each other (sets of equations, equations of sets), so they stand in one file, longer than most.

Only workers import this module: sympy can take any time and memory, and the pool holds the limits. Math-Verify's own
limit is switched off, since it needs SIGALRM and so the main thread.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.logic import And
from math_verify import grader as math_verify_grader
from math_verify import verify
from sympy.core.relational import Eq, Ne, Relational

from mot_core.grading.answers import plain_text
from mot_core.grading.latex import Tidy, connective, same_unit, tidy
from mot_core.grading.numeric import Undecided, agree, exact_value, sample_points
from mot_core.grading.verdicts import UngradableGold

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

# Units and nits by Math-Verify's normaliser change values (see mot_core.grading.latex).
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
# Deeper than any answer; the parser's time grows with the cube of the depth (15 brackets: 0.9 s, 30: 5 s, measured).
_MAX_DEPTH = 15
_SUBSCRIPTED_NUMBER = re.compile(r"\d\s*_")
_STEPS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}
_INTEGER = re.compile(r"-?[0-9]{1,1000}")
_FLIPPED = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}

# Math-Verify takes any exception inside `simplify` and `solve` for 'not equal', even one that says that memory ran out.
_breakdowns: list[BaseException] = []


def _noting(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            return function(*args, **keywords)
        except (MemoryError, RecursionError) as error:
            _breakdowns.append(error)
            raise

    return call


for _name in ("simplify", "solve", "safe_sympy_doit"):
    setattr(math_verify_grader, _name, _noting(getattr(math_verify_grader, _name)))


def same_math(family: str, gold: str, answer: str) -> bool:
    """Whether an answer equals the reference answer.

    Raises:
        UngradableGold: a reference answer that cannot be parsed or has no definite value.
    """
    expected = read_gold(gold)
    wanted, stated = tidy(gold), tidy(answer)
    if wanted.words or stated.words:
        return plain_text(gold) == plain_text(answer)
    if wanted.note != stated.note or {connective(gold), connective(answer)} == {"and", "or"}:
        return False
    if wanted.text == stated.text and wanted.base == stated.base and wanted.percent == stated.percent:
        return same_unit(wanted.unit, stated.unit)
    if stated.ellipsis or not same_unit(wanted.unit, stated.unit) or wanted.primes != stated.primes:
        return False
    if wanted.base or stated.base:
        # A base left out is like a unit left out; the digits have to be the same.
        return wanted.text.upper() == stated.text.upper() and (
            not wanted.base or not stated.base or wanted.base == stated.base
        )
    if _INTEGER.fullmatch(wanted.text) and _INTEGER.fullmatch(stated.text) and wanted.percent == stated.percent:
        return int(wanted.text) == int(stated.text)
    return _same_values(expected, wanted, stated)


def _same_values(expected: Any, wanted: Tidy, stated: Tidy) -> bool:
    if ":" in wanted.text and ":" in stated.text:
        return _same_ratio(wanted.text, stated.text)
    given = parse(stated.text)
    if given is None or _undefined(given):
        return False
    if equal(expected, given):
        return True
    # Like Math-Verify: 50 % may be written 50 or 0.5.
    if wanted.percent != stated.percent and _plain(expected) and _plain(given):
        return equal(expected / 100, given) if wanted.percent else equal(expected, given / 100)
    return False


@functools.lru_cache(maxsize=512)
def read_gold(gold: str) -> Any:
    """The parsed reference answer; None for words.

    Raises:
        UngradableGold: it cannot be parsed, or has no definite value.
    """
    wanted = tidy(gold)
    if wanted.words:
        return None
    if not wanted.text:
        raise UngradableGold("the reference answer is empty")
    if wanted.ellipsis:
        raise UngradableGold(f"the reference answer {gold[:80]!r} has an ellipsis, so it has no definite value")
    expected = parse(wanted.text)
    if expected is None and ":" in wanted.text and all(parse(part) is not None for part in wanted.text.split(":")):
        return sympy.nan
    if expected is None:
        raise UngradableGold(f"the reference answer {gold[:80]!r} cannot be parsed as mathematics or read as words")
    if _undefined(expected) and ":" not in wanted.text:
        raise UngradableGold(f"the reference answer {gold[:80]!r} is undefined")
    return expected


def parse(text: str) -> Any:
    """A text's expression; None if it is none. What breaks the parser itself (memory, recursion) is raised."""
    text = normalize_latex(text, _NORMALIZATION)
    if max(itertools.accumulate(_STEPS.get(character, 0) for character in text), default=0) > _MAX_DEPTH:
        raise Undecided(f"brackets more than {_MAX_DEPTH} deep")
    if _SUBSCRIPTED_NUMBER.search(text):  # the parser reads 1_000 as 1
        return None
    try:
        parsed = latex2sympy(text, is_real=True, convert_degrees=False, normalization_config=None)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None
    return _conventions(parsed)


def _conventions(parsed: Any) -> Any:
    """`i` is the imaginary unit, and an odd root of a negative number is real."""
    if not isinstance(parsed, sympy.Basic):
        return parsed
    units = {symbol: sympy.I for symbol in parsed.free_symbols if getattr(symbol, "name", "") == "i"}
    parsed = parsed.xreplace(units) if units else parsed
    roots = {}
    for part in parsed.atoms(sympy.Pow):
        base = exact_value(part.base)
        if base is not None and base < 0 and part.exp.is_Rational and part.exp.p == 1 and part.exp.q % 2 == 1:
            roots[part] = -sympy.Pow(sympy.Rational(-base.numerator, base.denominator), part.exp)
    return parsed.xreplace(roots) if roots and not parsed.has(sympy.I) else parsed


def equal(gold: Any, answer: Any) -> bool:
    """Whether two parsed answers are equal, kind by kind."""
    gold, answer = _unwrap_equations(gold, answer)
    if answer is None:
        return False
    if _relation(gold) and _relation(answer):
        return _same_relation(gold, answer)
    if _relation(gold) or _relation(answer):
        return _same_region(gold, answer)
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return gold.shape == answer.shape and all(map(equal, gold.flat(), answer.flat()))
    if isinstance(gold, (sympy.Set, sympy.Tuple)) or isinstance(answer, (sympy.Set, sympy.Tuple)):
        return _same_collection(gold, answer)
    return _same_expression(gold, answer)


def _same_expression(gold: Any, answer: Any) -> bool:
    if gold == answer:
        return True
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return _verified(gold, answer)
    same = agree(gold, answer)
    if same is not None:
        return same
    return _verified(gold, answer) or _verified(*(_positive(expression) for expression in (gold, answer)))


def _positive(expression: Any) -> Any:
    names = {symbol: sympy.Symbol(symbol.name, positive=True) for symbol in expression.free_symbols}
    return expression.xreplace(names)


def _verified(gold: Any, answer: Any) -> bool:
    """Math-Verify's word on it. What it swallows as 'not equal', though it broke down, is raised."""
    _breakdowns.clear()
    try:
        right = verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    except ValueError as error:
        if "zip()" in str(error):  # relations of different length: not equal
            return False
        raise
    if not right and _breakdowns:
        raise _breakdowns[0]
    return bool(right)


def _undefined(expression: Any) -> bool:
    if not isinstance(expression, sympy.Basic):
        return False
    if _plain(expression) and expression.has(sympy.oo) and not expression.has(sympy.Sum, sympy.Integral, sympy.Limit):
        expression = expression.doit()  # ∞ − ∞
    return bool(expression.has(sympy.nan, sympy.zoo))


def _plain(expression: Any) -> bool:
    return isinstance(expression, sympy.Expr) and not expression.free_symbols


def _relation(expression: Any) -> bool:
    return isinstance(expression, (Relational, And))


def _links(expression: Any) -> list[Any]:
    return list(expression._unsorted_args) if isinstance(expression, And) else [expression]


def _unwrap_equations(gold: Any, answer: Any) -> tuple[Any, Any]:
    """`x = 5` and 5 are the same answer; `x + 1 = 5` and 5 are not, and neither are `x = 5` and `y = 5`.

    The answer is None if the two cannot be equal.
    """
    gold_chain, answer_chain = _equations(gold), _equations(answer)
    if gold_chain and answer_chain:
        left, right = gold_chain[0].lhs, answer_chain[0].lhs
        if _named(left) and _named(right):
            return (gold_chain[-1].rhs, answer_chain[-1].rhs) if left == right else (gold, None)
        return gold, answer
    if answer_chain:
        left, value = answer_chain[0].lhs, answer_chain[-1].rhs
        if _relation(gold) and not (_named(left) and isinstance(value, sympy.Set)):
            return gold, answer
        return gold, value if _named(left) or (_plain(left) and equal(left, value)) else None
    if gold_chain and (not _relation(answer) or isinstance(gold_chain[-1].rhs, sympy.Set)):
        return (gold_chain[-1].rhs, answer) if _named(gold_chain[0].lhs) else (gold, None)
    return gold, answer


def _equations(expression: Any) -> list[Any]:
    """The links of an equation or a chain of them, else nothing."""
    links = _links(expression) if _relation(expression) else []
    return links if all(isinstance(link, Eq) for link in links) else []


def _named(expression: Any) -> bool:
    """Whether a left side only names what follows: `x`, `f(x)`, `A_1`, `(x, y)`."""
    if isinstance(expression, sympy.Interval):
        return _named(expression.start) and _named(expression.end)
    if isinstance(expression, (sympy.Symbol, sympy.Tuple)) or expression.is_Function:
        return isinstance(expression, sympy.Symbol) or all(_named(argument) for argument in expression.args)
    return bool(expression.is_Mul and all(argument.is_Symbol for argument in expression.args))


def _same_relation(gold: Any, answer: Any) -> bool:
    """Chains link by link, in either direction; else the sets of numbers that they describe."""
    left, right = _links(gold), _links(answer)
    if len(left) == len(right) and (all(map(_same_link, left, right)) or all(map(_same_link, left, reversed(right)))):
        return True
    return not _equations(gold) and not _equations(answer) and _same_region(gold, answer)


def _same_link(gold: Any, answer: Any) -> bool:
    """Whether two relations say the same: their differences are proportional, by a positive factor if order matters."""
    if gold == answer:
        return True
    (kind, left), (other, right) = _standard(gold), _standard(answer)
    if kind is not other or left is None or right is None:
        return False
    names = sorted({symbol.name for symbol in left.free_symbols | right.free_symbols})
    ratios = []
    for point in sample_points(names, set()):
        values = [
            expression.xreplace(
                {s: sympy.Rational(point[s.name].numerator, point[s.name].denominator) for s in expression.free_symbols}
            )
            for expression in (left, right)
        ]
        numbers = [sympy.N(value, 40) for value in values]
        if not all(number.is_number and number.is_finite for number in numbers) or numbers[1] == 0:
            return _verified(gold, answer)
        ratios.append(numbers[0] / numbers[1])
    constant = all(abs(ratio - ratios[0]) < abs(ratios[0]) * sympy.Float("1e-25") for ratio in ratios)
    return bool(constant and ratios[0] != 0 and (kind in (Eq, Ne) or ratios[0].is_positive))


def _standard(relation: Any) -> tuple[Any, Any]:
    """`(kind, left − right)` with `>` turned into `<`; the difference is None where sides cannot be subtracted."""
    sides = (relation.lhs, relation.rhs)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return type(relation), None
    kind = type(relation)
    if kind in _FLIPPED:
        return _FLIPPED[kind], sides[1] - sides[0]
    return kind, sides[0] - sides[1]


def _same_region(gold: Any, answer: Any) -> bool:
    """`1 < x < 2` and `(1, 2)`: relations in one variable as the sets of numbers that satisfy them."""
    regions = []
    for expression in (gold, answer):
        region = expression
        if _relation(expression):
            if len(expression.free_symbols) != 1:
                return False
            try:
                region = sympy.And(*_links(expression)).as_set()
            except (NotImplementedError, TypeError, ValueError, AttributeError):
                return False
        if not isinstance(region, sympy.Set):
            return False
        regions.append(region)
    return _same_set(*regions)


def _same_collection(gold: Any, answer: Any) -> bool:
    """Tuples in order; sets, and lists written like sets, in any order; a pair may look like an open interval."""
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        ends = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
        return ends and equal(gold.start, answer.start) and equal(gold.end, answer.end)
    left, right = _elements(gold), _elements(answer)
    if left is None or right is None:
        return isinstance(gold, sympy.Set) and isinstance(answer, sympy.Set) and _same_set(gold, answer)
    if len(left) != len(right):
        return False
    labels = {link.lhs for link in left if isinstance(link, Eq)}
    labelled_answer = any(isinstance(link, Eq) for link in right)
    ordered = not isinstance(gold, sympy.FiniteSet) or (len(labels) > 1 and not labelled_answer)
    if ordered:
        return all(map(equal, left, right))
    for element in left:
        match = next((place for place, other in enumerate(right) if equal(element, other)), None)
        if match is None:
            return False
        right.pop(match)
    return True


def _elements(collection: Any) -> list[Any] | None:
    """The elements as they were written; a single value is a collection of one; None for infinite sets."""
    if isinstance(collection, sympy.Tuple):
        return list(collection.args)
    if isinstance(collection, sympy.FiniteSet):
        return list(getattr(collection, "_unsorted_args", collection.args))
    if isinstance(collection, sympy.Interval) and collection.left_open and collection.right_open:
        return [collection.start, collection.end]
    return None if isinstance(collection, sympy.Set) else [collection]


def _same_set(gold: Any, answer: Any) -> bool:
    if gold == answer or gold.doit() == answer.doit():
        return True
    try:
        return bool(gold.symmetric_difference(answer).is_empty)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return _verified(gold, answer)


def _same_ratio(gold: str, answer: str) -> bool:
    """`3:4`, `1:2:3`, `12:30`: part by part, or in proportion unless a part is written like minutes."""
    left, right = ([parse(part) for part in text.split(":")] for text in (gold, answer))
    if len(left) != len(right) or any(part is None or not isinstance(part, sympy.Expr) for part in [*left, *right]):
        return False
    if all(map(equal, left, right)):
        return True
    clock = re.search(r":\s*0\d|:00", gold + answer)
    if clock or equal(left[0], sympy.Integer(0)) or equal(right[0], sympy.Integer(0)):
        return False
    return all(equal(first * right[0], second * left[0]) for first, second in zip(left, right, strict=True))
