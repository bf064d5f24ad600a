r"""A mathematical answer's text, brought into the form that the LaTeX parser reads; pure text, no algebra.

The parser's own normaliser strips units by bare letters (`2c` becomes 2, `\frac{1}{\mathrm{e}}` becomes `\frac{1}{`),
drops primes and reads `10 000` as 10 × 0. Invariant: what is removed here never changes the value; what has no
definite value (an ellipsis) is told apart, so that it is never half read.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from mot_core.grading.answers import plain_text, unwrap

_TYPOGRAPHY = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "/",
        "⁄": "/", "∕": "/", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ",
        "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ",
        "ℝ": "\\mathbb{R}", "°": "^\\circ ", "′": "'", "’": "'", "…": "\\ldots ", "⋯": "\\ldots ", "√": "\\sqrt ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2002": " ", "\u2003": " ",
        # Invisible, and harmless to what a reader sees. Marks that reorder text are not harmless; they stay and fail.
        "\u200b": None, "\u200c": None, "\u200d": None, "\u2060": None, "\ufeff": None,
    }
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_STYLE = re.compile(r"\\(?:mathbf|boldsymbol|bm|mathsf|mathit|mathtt|pmb|textbf|textit|emph)\s*\{([^{}]*)\}")
_LETTER = re.compile(r"\\(?:mathrm|text|operatorname|rm)\s*\{\s*([eid])\s*\}|\{\\rm\s+([eid])\}")
# Not after a backslash: `\\ ` ends a matrix's row.
_SPACES = re.compile(
    r"(?<!\\)\\[,;:!> ]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)space(?![A-Za-z])|~|\\phantom\{[^{}]*\}"
)
_THOUSANDS = re.compile(r"(?<![\d.,A-Za-z}])(\d{1,3})((?:(?:\{,\}|\\!,\\!|\\!,|,\\!|\\,|\\!|\\ |[ ])\d{3})+)(?![\d])")
_SCIENTIFIC = re.compile(r"(?<![\w.\\}])(\d{1,30}(?:\.\d{1,60})?|\.\d{1,60})[eE]([+-]?\d{1,5})(?![\w.])")
_REPEATING = re.compile(
    r"(?<![\w.])(\d{0,30})\.(\d{0,30})(?:\\(?:overline|bar|dot)\s*\{(\d{1,30})\}|\\(?:overline|bar|dot)\s*(\d)|\((\d{1,30})\))(?![\d])"
)
_RUNNING_ON = re.compile(r"(?<![\w.])(\d{1,30})\.(\d{0,30}?)(\d)\3\3+\s*(?:\\[lcd]?dots[cbmio]?|\.\.\.)$")
_ELLIPSIS = re.compile(r"\\(?:ldots|cdots|dots[cbmio]?|vdots|ddots)(?![A-Za-z])|\.\.\.")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z]))")
_ANGLE = re.compile(rf"(\d{{1,9}}(?:\.\d{{1,9}})?){_DEGREES.pattern}")
_PRIME = re.compile(r"(?<=[A-Za-z)}])'|\\prime(?![A-Za-z])")
_BASE = re.compile(
    r"\(?([0-9A-Fa-f]{1,200})\)?_\{?\s*(?:\\text\s*\{\s*)?([2-9]|[12]\d|3[0-6]|two|eight|ten|sixteen)\s*\}{0,2}"
)
_LEAD_IN = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*(?:\bis|:|=|equals)\s*\}\s*(?=\S)", re.IGNORECASE)
_EMPTY_SET = re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}")
_BARE_ROOT = re.compile(r"\\sqrt\s*\(([^()]{1,200})\)")
_WORD = re.compile(r"[^\W\d_]+(?:[ ,.'-]{1,2}\w+)*")
# Names that models write without their backslash.
_FUNCTION_NAME = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|pi|infinity)(?![A-Za-z])",
    re.IGNORECASE,
)
_ORDER = re.compile(r"[<>]|\\(?:le|ge|leq|geq|ne|neq|lt|gt|leqslant|geqslant)(?![A-Za-z])")
_MIXED = re.compile(r"(-?\d{1,30})\s+(\d{1,30})/(\d{1,30})")
_TEXT_GROUP = re.compile(r"\\(?:text|mathrm|mbox|textrm|textnormal)\s*\{")


@dataclass(frozen=True)
class Tidy:
    """A text ready to be parsed, with what was set aside: a unit, a percent sign, a number's base."""

    text: str
    unit: str = ""
    percent: bool = False
    base: str = ""
    words: str = ""
    """The text in normal form if it is words, which are compared as words."""
    ellipsis: bool = False
    note: str = ""
    """Words after something other than a number (`n \\text{ even}`); they belong to the answer."""
    primes: int = 0
    """How many derivatives are marked: the parser drops the marks, so `f'(x)` would equal `f(x)`."""


def tidy(text: str) -> Tidy:
    """What an answer's text says, without what only typesets it."""
    plain = _letters(unwrap(_characters(text)))
    words = words_of(text)
    if words:
        return Tidy(plain, words=words)
    plain = _LEAD_IN.sub("", plain, count=1) if _LEAD_IN.match(plain) else plain
    plain = re.sub(r"^\s*(?:=|\\approx(?![A-Za-z]))\s*", "", plain)
    base = _BASE.fullmatch(plain)
    if base:
        named = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
        return Tidy(base[1].upper(), base=named.get(base[2], base[2]))
    plain = _numbers(plain)
    if _ELLIPSIS.search(plain):
        return Tidy(" ".join(_ELLIPSIS.sub("…", plain).split()), ellipsis=True)
    plain, unit, note = split_unit(plain)
    percent = re.search(r"(?:\\?%|\b(?:percent|pct))$", plain.rstrip())
    plain = plain.rstrip()[: percent.start()].rstrip() if percent else plain
    plain = _ANGLE.sub(r"(\1\\cdot\\frac{\\pi}{180})", plain)
    return Tidy(unwrap(plain), unit, percent is not None, note=note, primes=len(_PRIME.findall(plain)))


def connective(text: str) -> str:
    """`or` or `and` if relations are joined by one; the parser reads both as a comma."""
    if not _ORDER.search(text):
        return ""
    found = re.search(r"\b(or|and)\b|\\(lor|vee|land|wedge)(?![A-Za-z])", text)
    return "" if found is None else "or" if (found[1] or found[2]) in ("or", "lor", "vee") else "and"


def words_of(text: str) -> str:
    """The normal form of an answer in words, such as \\text{Yes} or `even`; empty for anything else.

    Bare letters are a product (`xy`) unless there are four of them: as products, `listen` and `silent` are equal.
    """
    plain = plain_text(text)
    if not _WORD.fullmatch(plain) or _FUNCTION_NAME.search(plain):
        return ""
    wrapped = _TEXT_GROUP.match(text.strip("$* \t\n`")) is not None
    longest = max(len(word) for word in re.findall(r"[^\W\d_]+", plain))
    return plain if longest >= 4 or (wrapped and longest >= 2) else ""


def _characters(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[¼½¾⅐-⅞]", lambda one: _vulgar(one[0]), text)
    return unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY)).translate(_TYPOGRAPHY)


def _vulgar(character: str) -> str:
    fraction = Fraction(unicodedata.numeric(character)).limit_denominator(10)
    return f"\\frac{{{fraction.numerator}}}{{{fraction.denominator}}}"


def _letters(text: str) -> str:
    before = None
    while before != text:
        before = text
        text = _STYLE.sub(r"\1", text)
        text = unwrap(_LETTER.sub(lambda letter: f" {letter[1] or letter[2]} ", text))
    text = text.replace("**", "").replace("\\imath", "i").replace("\\operatorname*", "\\operatorname")
    text = re.sub(r"\\operatorname\s*\{(sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)\}", r"\\\1 ", text)
    text = re.sub(r"\\lg(?![A-Za-z])", r"\\log", text)
    text = _FUNCTION_NAME.sub(
        lambda name: "\\infty " if name[1].lower() == "infinity" else f"\\{name[1].lower()} ", text
    )
    text = re.sub(r"\\langle(?![A-Za-z])", "(", re.sub(r"\\rangle(?![A-Za-z])", ")", text))
    text = _EMPTY_SET.sub(lambda _: "\\emptyset ", text)
    return _BARE_ROOT.sub(lambda root: f"\\sqrt{{{root[1]}}}", text)


def _numbers(text: str) -> str:
    text = _THOUSANDS.sub(lambda number: number[1] + re.sub(r"\D", "", number[2]), text)
    text = _RUNNING_ON.sub(lambda run: _repeating(run[1], run[2], run[3]), text)
    text = _REPEATING.sub(lambda run: _repeating(run[1], run[2], run[3] or run[4] or run[5]), text)
    if mixed := _MIXED.fullmatch(text.strip()):  # as a product it would be 1 × 1/2
        text = f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    text = _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text)
    return _SPACES.sub(" ", text)


def _repeating(whole: str, fixed: str, period: str) -> str:
    """`whole.fixed` with `period` for ever, as a fraction."""
    scale = 10 ** len(fixed)
    value = Fraction(int((whole + fixed) or 0), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


# Units that differ are different answers; a unit missing on one side is not. Names that are no unit here (apples,
# ways, students) are dropped and never compared: they have too many synonyms.
_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre",
    "m": "m meter metre", "km": "km kilometer kilometre", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard",
    "mi": "mi mile", "mg": "mg milligram", "g": "g gm gram", "kg": "kg kilogram", "lb": "lb lbs", "oz": "oz ounce",
    "s": "s sec second", "ms": "ms millisecond", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week",
    "month": "month", "year": "yr year", "ml": "ml mL milliliter millilitre", "l": "l L liter litre",
    "degree": "degree deg °", "radian": "rad radian", "dollar": "dollar usd $", "cent": "cent ¢", "euro": "euro eur €",
    "gbp": "£ gbp", "rupee": "rupee rs inr ₹", "mph": "mph",
    "unit": "unit pound",  # a pound is a weight or money
}  # fmt: skip
UNITS = {
    name: canonical for canonical, names in _NAMES.items() for word in names.split() for name in (word, f"{word}s")
}
_POWER = r"(?:\s*\^\s*\{?\s*([23])\s*\}?)?"
_BARE = "|".join(sorted((re.escape(name) for name in UNITS if len(name) > 1 and name.isalpha()), key=len, reverse=True))
_UNIT = (
    rf"(?:\\(?:text|mathrm|mbox|textrm|textnormal|operatorname)\s*\{{[^{{}}]*\}}{_POWER}"
    rf"|(?<![A-Za-z\\])(?:(?:square|sq|cubic|cu)\s+)?(?:{_BARE})(?![A-Za-z]){_POWER})"
)
_UNIT_TAIL = re.compile(
    rf"(?<=[^\s{{(,;=+*/^-])\s*({_UNIT}(?:\s*(?:/|\\cdot|\bper\b)?\s*{_UNIT}){{0,3}}(?:\s*/\s*[hs](?![A-Za-z]){_POWER})?)\s*$"
)
_LETTER_TAIL = re.compile(r"(?<=[\d}])\s+([msghlLd])$")
_CURRENCY = re.compile(r"^\s*(-?)\s*(?:US\s*)?(\\\$|[€£¥₹¢])\s*(?=[\d.\\])")
_DEGREE_TAIL = re.compile(rf"(?<=\S){_DEGREES.pattern}\s*$")
_NO_UNIT = re.compile(
    r"\\(?:text|mathrm|mbox)\s*\{\s*[^{}]*\b(?:and|or|if|for|where|when|mod|least|most|more|less|fewer|than|not)\b|\\(?:sin|cos|tan)[^+-]*$"
)


def split_unit(text: str) -> tuple[str, str, str]:
    """`(text without what follows it, the unit's canonical name, words that are no unit)`.

    Words after a number are what it counts, and are dropped; words after anything else are kept as a note.
    """
    if currency := _CURRENCY.match(text):
        symbol = currency[2].removeprefix("\\")
        return currency[1] + text[currency.end() :], UNITS.get(symbol, ""), ""
    text = text.replace("\\$", "")
    degrees = _DEGREE_TAIL.search(text)
    if degrees and not re.search(r"\\(?:sin|cos|tan|cot)", text):
        return text[: degrees.start()], "degree", ""
    tail = _UNIT_TAIL.search(text)
    if tail and not _NO_UNIT.search(tail[1]) and not re.fullmatch(r"[A-Za-z ]{2,}", text[: tail.start()].strip()):
        rest, unit = text[: tail.start()].rstrip(), canonical_unit(tail[1])
        note = "" if unit or not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", rest)) else plain_text(tail[1])
        return rest, unit, note
    if letter := _LETTER_TAIL.search(text):
        return text[: letter.start()], UNITS.get(letter[1], ""), ""
    return text, "", ""


def canonical_unit(text: str) -> str:
    r"""A unit's canonical name: `\text{ square centimetres}` and `\mathrm{cm}^2` are `cm^2`; empty if unknown."""
    plain = re.sub(r"\\(?:text|mathrm|mbox|textrm|textnormal|operatorname|cdot)\s*|[{}]", " ", text)
    plain = re.sub(r"\b(?:square|sq)\.?\s+(\w+)", r"\1^2", plain)
    plain = re.sub(r"\b(?:cubic|cu)\.?\s+(\w+)", r"\1^3", plain)
    plain = re.sub(r"\s*\^\s*", "^", plain.replace(" per ", "/"))
    parts = []
    for part in re.split(r"\s*/\s*", plain.strip()):
        name, _, power = part.strip().rstrip(".").partition("^")
        canonical = UNITS.get(name.strip()) or UNITS.get(name.strip().lower())
        if canonical is None:
            return ""
        parts.append(canonical + (f"^{power.strip()}" if power.strip() else ""))
    return "/".join(parts)


def same_unit(gold: str, answer: str) -> bool:
    """Whether two canonical units may stand for the same; `unit` and an unknown or missing one may be anything."""
    return gold == answer or not gold or not answer or "unit" in gold or "unit" in answer
