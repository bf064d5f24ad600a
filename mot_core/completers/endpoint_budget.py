"""What may still be spent at an endpoint, in tokens and in money.

Invariant: a request starts only if the budget holds the most that it may take beside what is spent and what is in
flight, so a budget is never exceeded by what the endpoint reports. Journaled answers count: a budget is a teacher's in a
store, not a run's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from mot_core.spec import Endpoint

TEMPLATE_TOKENS = 256
"""What a chat template may add to a prompt. A token is a byte at least, so bytes bound the rest."""


@dataclass(frozen=True)
class Tokens:
    """Tokens both ways."""

    prompt: float = 0
    completion: float = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> float:
        return self.prompt + self.completion


class Budget:
    """Spent and reserved tokens of one endpoint, against its limits."""

    def __init__(self, endpoint: Endpoint, spent: Mapping[str, float]) -> None:
        self.endpoint = endpoint
        self.spent = Tokens(spent.get("prompt_tokens", 0), spent.get("completion_tokens", 0))
        self._reserved = Tokens()
        self._num_reserved = 0
        self._settled = asyncio.Event()

    @property
    def is_limited(self) -> bool:
        return self.endpoint.max_total_tokens is not None or self.endpoint.max_cost is not None

    async def reserve(self, most: Tokens) -> bool:
        """Set aside the most that a request may take, once there is room; False if there will never be."""
        while self._lacks(self.spent + self._reserved + most):
            if self._num_reserved == 0:
                return False
            await self._settled.wait()
        self._reserved += most
        self._num_reserved += 1
        return True

    def record(self, tokens: Tokens) -> None:
        """Count what a reply reports."""
        self.spent += tokens

    def settle(self, most: Tokens) -> None:
        """Free what was set aside for a request that has ended."""
        self._reserved -= most
        self._num_reserved -= 1
        self._settled.set()
        self._settled = asyncio.Event()

    def cost(self, tokens: Tokens) -> float | None:
        """In the currency of the prices; None without them."""
        prompt_price = self.endpoint.price_per_million_prompt_tokens
        completion_price = self.endpoint.price_per_million_completion_tokens
        if prompt_price is None or completion_price is None:
            return None
        return (tokens.prompt * prompt_price + tokens.completion * completion_price) / 1e6

    def refusal(self, most: Tokens) -> str:
        """Which limit has no room for a request, what is spent, and which field to raise."""
        limit, cost = self.endpoint.max_total_tokens, self.cost(self.spent)
        if limit is not None and (self.spent + most).total > limit:
            return (
                f"{self.spent.total:,.0f} of max_total_tokens {limit:,} are spent and the next request may take "
                f"{most.total:,.0f}: raise endpoint.max_total_tokens"
            )
        return (
            f"{cost:.6g} of max_cost {self.endpoint.max_cost:g} are spent and the next request may take "
            f"{self.cost(most):.6g}: raise endpoint.max_cost"
        )

    def _lacks(self, wanted: Tokens) -> bool:
        limit, most_cost, cost = self.endpoint.max_total_tokens, self.endpoint.max_cost, self.cost(wanted)
        return (limit is not None and wanted.total > limit) or (
            most_cost is not None and cost is not None and cost > most_cost
        )
