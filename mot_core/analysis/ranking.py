"""Many arms against one reference: the rows, the two panels and the sentence that such studies share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mot_core.analysis.drawing import bars, differences, look, panels
from mot_core.analysis.outcomes import Arm, Difference, Estimate, Outcomes, corrected
from mot_core.analysis.wording import counted, described, estimated, listing, sizes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass
class Ranking:
    """Named arms, and the one that the others are compared with; differences are Holm-corrected over the table."""

    outcomes: Outcomes
    arms: Mapping[str, Arm]
    reference: str

    def __post_init__(self) -> None:
        self.values: dict[str, Estimate] = {name: self.outcomes.estimate(arm) for name, arm in self.arms.items()}
        assert self.reference in self.arms, "studies check their reference before anything runs"
        others = [name for name in self.arms if name != self.reference]
        base = self.arms[self.reference]
        found = corrected([self.outcomes.difference(self.arms[name], base) for name in others])
        self.found: dict[str, Difference] = dict(zip(others, found, strict=True))

    def rows(self, **more: Mapping[str, Any]) -> pd.DataFrame:
        """A row an arm: accuracy and difference from the reference; `more` are further columns by arm name."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "what": name + (" (reference)" if name == self.reference else ""),
                    **{title.replace("_", " "): values.get(name, "") for title, values in more.items()},
                    "home": estimated(self.values[name]),
                    f"against {self.reference}": described(self.found[name]) if name in self.found else "",
                }
                for name in self.arms
            ]
        )  # fmt: skip

    def figure(self, title: str) -> Figure:
        """Left: accuracy; right: differences from the reference."""
        names = list(self.arms)
        drawn, (left, right) = panels(2, height=1.3 + 0.22 * len(names))
        looks = {name: look(5 if name == self.reference else 0) for name in names}
        bars(left, names, list(self.values.values()), looks, names)
        left.axvline(100 * self.values[self.reference].mean, color="#767676", linewidth=0.8, linestyle=":")
        left.set_xlabel("accuracy (%)")
        left.set_title(f"{title} (home, test)")
        differences(right, list(self.found.values()), list(self.found))
        right.set_title(f"Minus {self.reference}")
        return drawn

    def sentences(self) -> str:
        """Which are above and below the reference, which is highest, and how many could not be told apart."""
        reference, values = self.values[self.reference], self.values
        best = max(values, key=lambda name: values[name].mean)
        parts = [
            f"{self.reference} reaches {estimated(reference)}; the highest mean, picked afterwards, is that of {best}, {estimated(values[best])}."
        ]
        for verdict, words in (("higher", "Higher"), ("lower", "Lower")):
            of = [f"{name} ({described(one)})" for name, one in self.found.items() if one.verdict == verdict]
            parts.append(
                f"{words} than {self.reference} at the 5 % level: {listing(of)}."
                if of
                else f"{words} than it at the 5 % level: none."
            )
        still = [name for name, one in self.found.items() if one.verdict == "open"]
        parts.append(f"Not decided: {listing(still)}." if still else "")
        parts.append(
            f"{sizes(list(values.values())).capitalize()}; Holm's correction over {counted(len(self.found), 'difference')}."
        )
        return " ".join(part for part in parts if part)
