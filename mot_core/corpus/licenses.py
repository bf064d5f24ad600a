"""What a corpus or a student is made from, under which licences, and the one licence that its card may state.

Invariant: nothing is guessed. A licence that was not stated makes the whole unknown, and the card names what is missing.
Names and licences are text of others: they are cleaned here before they enter any YAML or Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The hub's own identifiers, lower case; it refuses a card with another one. Others become `other` with a license_name.
_HUB_LICENSES = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-openrail-m bsd bsd-2-clause bsd-3-clause "
    "bsd-3-clause-clear bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 "
    "epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 "
    "llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 "
    "pddl postgresql unlicense wtfpl zlib"
)
HUB_LICENSES = frozenset(_HUB_LICENSES.split())
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
_CHARACTERS = 200


@dataclass(frozen=True)
class Origin:
    """One thing that something was made from: what it is to it, its name, and its licence (None: not stated)."""

    role: str
    name: str
    license: str | None


def license_fields(origins: Sequence[Origin]) -> dict[str, Any]:
    """The licence as a card's front matter states it: one the hub knows, `other` with a name, or `unknown`."""
    stated = sorted({clean(one.license).lower() for one in origins if one.license and clean(one.license)})
    if missing_licenses(origins) or not stated:
        return {"license": "unknown"}
    if len(stated) == 1 and stated[0] in HUB_LICENSES:
        return {"license": stated[0]}
    slug = re.sub(r"[^a-z0-9.+]+", "-", "-and-".join(stated)).strip("-")
    return {"license": "other", "license_name": slug or "see-below"}


def missing_licenses(origins: Iterable[Origin]) -> list[Origin]:
    return [one for one in origins if not one.license or not clean(one.license)]


def license_section(what: str, origins: Sequence[Origin]) -> str:
    """The licences, each by name, and what is missing, as Markdown."""
    rows = [
        [one.role, one.name, one.license if one.license and clean(one.license) else "**missing**"] for one in origins
    ]
    told = table(
        ["made from", "name", "licence"],
        [[shown(a), shown(b), c if c == "**missing**" else shown(c)] for a, b, c in rows],
    )
    missing = [f"{shown(one.role)} {shown(one.name)}" for one in missing_licenses(origins)]
    if not missing:
        return f"{told}\n\nWhoever uses {what} has to keep to all of them."
    return (
        f"{told}\n\nNot stated: {', '.join(missing)}. So the licence of {what} is unknown; find out what is missing "
        "before you pass it on."
    )


def clean(text: str) -> str:
    """Text of others on one line: no control or invisible characters, white space single, clipped."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(visible.encode("utf-8", "replace").decode().split())[:_CHARACTERS]


def shown(text: str) -> str:
    """Text of others as Markdown that shows it and does nothing else, inside a table too."""
    escaped = clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", escaped)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [list(headers), ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def front_matter(fields: Mapping[str, Any]) -> str:
    """A card's YAML head."""
    import yaml

    written: str = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{written}---\n"
