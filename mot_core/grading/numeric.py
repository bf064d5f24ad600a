"""Exact and sampled values of expressions: what refutes an equality that a looser comparison would grant.

Math-Verify compares numbers after rounding, so 1/2^99 equals 1/2^98 there. Invariant: an exact comparison is exact, and
its work is bounded by bits, not by the expression (a tower of powers gives None); samples are the same in every run.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import factorial
from typing import Any

import sympy

MAX_BITS = 40_000
_DIGITS = 50
_LARGE = sympy.Float("1e30")
_MAX_DIGITS = 20_000
# Where free symbols are sampled: rationals without structure. The negative ones are left out if a symbol stands
# under a root, where it counts as positive.
_POSITIVE = (Fraction(137, 101), Fraction(263, 89), Fraction(71, 97), Fraction(409, 83))
_NEGATIVE = (Fraction(-151, 103), Fraction(-79, 107))
_STRIDE = (Fraction(29, 31), Fraction(37, 41), Fraction(43, 47), Fraction(53, 59))


class Undecided(ArithmeticError):
    """Two values too large to be told apart within the limits: no verdict, rather than a guess."""


def exact_value(expression: Any) -> Fraction | None:
    """The value of an expression of rational arithmetic; None if it is anything else, or too large."""
    if expression.is_Float:
        # A decimal is what its digits say: 0.1 is a tenth, not the nearest binary fraction.
        return Fraction(str(expression)) if abs(expression) < sympy.Float("1e300") else None
    if expression.is_Rational:
        return Fraction(int(expression.p), int(expression.q))
    if isinstance(expression, sympy.UnevaluatedExpr):
        return exact_value(expression.args[0])
    if not (expression.is_Add or expression.is_Mul or expression.is_Pow or isinstance(expression, sympy.factorial)):
        return None
    values: list[Fraction] = []
    for argument in expression.args:
        value = exact_value(argument)
        if value is None:
            return None
        values.append(value)
    if expression.is_Pow:
        return _power(*values)
    if isinstance(expression, sympy.factorial):
        return Fraction(factorial(int(values[0]))) if values[0].denominator == 1 and 0 <= values[0] <= 3000 else None
    return _folded(values, add=expression.is_Add)


def _folded(values: list[Fraction], add: bool) -> Fraction | None:
    result = Fraction(0 if add else 1)
    for value in values:
        result = result + value if add else result * value
        if max(result.numerator.bit_length(), result.denominator.bit_length()) > MAX_BITS:
            return None
    return result


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base ** int(exponent) if bits * abs(exponent) <= MAX_BITS else None


def has_decimals(*expressions: Any) -> bool:
    """Whether an expression holds a decimal, which is approximate unless it is exactly right."""
    return any(expression.has(sympy.Float) for expression in expressions)


def agree(gold: Any, answer: Any) -> bool | None:
    """Whether two expressions have the same value wherever they are sampled; None if that can't be told.

    Numbers without decimals are told apart to 40 digits, or exactly where both are rational.
    """
    names = sorted({symbol.name for expression in (gold, answer) for symbol in expression.free_symbols})
    loose = has_decimals(gold, answer)
    if not names:
        left, right = exact_value(gold), exact_value(answer)
        if left is not None and right is not None:
            return True if left == right else _near(left, right) if loose else False
        return _same_number(gold, answer, loose)
    told: bool | None = None
    for point in sample_points(names, rooted_symbols(gold, answer)):
        same = _compare(_value(gold, point), _value(answer, point), loose)
        if same is False:
            return False
        told = same if told is None or same is None else told
        if same is None:
            return None
    return told


def _near(left: Fraction, right: Fraction) -> bool | None:
    # None: near enough to leave it to the caller, who rounds to six places.
    return None if abs(left - right) <= max(abs(left), abs(right)) * Fraction(1, 100_000) else False


def sample_points(names: list[str], rooted: set[str]) -> list[dict[str, Fraction]]:
    """Values for symbols by name; a symbol of `rooted` is positive everywhere."""
    points = []
    for place, start in enumerate(_POSITIVE + _NEGATIVE):
        if start < 0 and rooted.issuperset(names):
            continue
        stride = _STRIDE[place % len(_STRIDE)]
        point = {}
        for index, name in enumerate(names):
            value = abs(start) + index * stride
            point[name] = value if start > 0 or name in rooted else -value
        points.append(point)
    return points


def rooted_symbols(*expressions: Any) -> set[str]:
    """The names of symbols under a root or inside a logarithm, in any of the expressions."""
    found: set[str] = set()
    for expression in expressions:
        for part in sympy.preorder_traversal(expression):
            root = isinstance(part, sympy.Pow) and part.exp.is_Rational and not part.exp.is_Integer
            if root or isinstance(part, sympy.log) or (isinstance(part, sympy.Pow) and part.exp.free_symbols):
                found |= {symbol.name for symbol in part.free_symbols}
    return found


def _same_number(gold: Any, answer: Any, loose: bool) -> bool | None:
    left, right = _value(gold, {}), _value(answer, {})
    same = _compare(left, right, loose)
    if not same or loose or max(abs(left), abs(right)) < _LARGE:
        return same
    # 50 digits don't reach the ones of a large number: 10^60 and 10^60 + 1 agree so far.
    digits = int(sympy.log(max(abs(left), abs(right)), 10)) + _DIGITS
    if digits > _MAX_DIGITS:
        raise Undecided(f"both values agree to {_DIGITS} digits and have more than {_MAX_DIGITS}")
    left, right = _value(gold, {}, digits), _value(answer, {}, digits)
    return None if left is None or right is None else bool(abs(left - right) < sympy.Float("1e-20"))


def _value(expression: Any, point: Mapping[str, Fraction], digits: int = _DIGITS) -> Any:
    """The expression's number at a point; None if it has none, or if digits cancelled so that it is not known."""
    values = {
        symbol: sympy.Rational(point[symbol.name].numerator, point[symbol.name].denominator)
        for symbol in expression.free_symbols
        if symbol.name in point
    }
    try:
        number = sympy.N(expression, digits, subs=values) if values else sympy.N(expression, digits)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None
    parts = number.as_real_imag() if number.is_number else (sympy.nan,)
    return number if all(part.is_Number and part.is_finite and _accurate(part) for part in parts) else None


def _accurate(part: Any) -> bool:
    # sympy marks a result whose digits all cancelled by a precision of one bit.
    return not part.is_Float or part._prec > 100 or part == 0


def _compare(left: Any, right: Any, loose: bool) -> bool | None:
    if left is None or right is None:
        return None
    size = max(abs(left), abs(right))
    if size == 0:
        return True
    distance = abs(left - right) / size
    if distance < sympy.Float("1e-40"):
        return True
    if loose:
        return None if distance <= sympy.Float("1e-5") else False
    # Between the two, digits may have been lost on the way.
    return False if distance > sympy.Float("1e-25") else None
