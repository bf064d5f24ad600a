"""mergekit's YAML (0.1) read as a recipe, for the rules that both have: linear, task_arithmetic, ties, dare_linear,
dare_ties, slerp.

Values by layer (lists that are interpolated) and by tensor (filters) are understood, as are slices that take every
layer of every model in place. What would give another model than mergekit's is refused, with its name; what does not
change the result (where and how fast it is computed) is passed over.

Known differences: sums are in float64 here. DARE's rescaling divides by the density, as its paper does, where mergekit
matches the L1 norm; its draws are others anyway. TIES keeps values that tie with the smallest it keeps. SLERP has no
threshold above which it becomes linear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mot_core.errors import SpecError
from mot_core.merging.recipe import Recipe, branch_name
from mot_core.spec import local_directory
from mot_core.spec_files import spec_from_document

_RULES = {
    "linear": "weighted_mean", "task_arithmetic": "task_arithmetic", "ties": "ties", "dare_linear": "dare",
    "dare_ties": "dare_ties", "slerp": "slerp",
}  # fmt: skip
_FIELDS = (
    "models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source", "name",
)  # fmt: skip
# Parameters of each method beside weight and density.
_SHARED: dict[str, tuple[str, ...]] = {
    "linear": ("normalize",), "slerp": ("t",),
    "task_arithmetic": ("normalize", "lambda", "rescale"), "ties": ("normalize", "lambda", "rescale"),
    "dare_linear": ("normalize", "lambda", "rescale"), "dare_ties": ("normalize", "lambda", "rescale"),
}  # fmt: skip
_WITHOUT_EFFECT = ("int8_mask",)
_NORMALIZES = {"linear": True, "ties": True}
_RESCALES = {"dare_linear": True, "dare_ties": True}
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def is_mergekit(document: Mapping[str, Any]) -> bool:
    return "merge_method" in document


@dataclass(frozen=True)
class Resolved:
    """One tensor's rule parameters, and per branch its weight and own parameters."""

    parameters: dict[str, Any]
    weights: list[float]
    own: list[dict[str, float]]


@dataclass(frozen=True)
class ByTensor:
    """mergekit's settings, resolved tensor by tensor. `sources` are the branches' own, after the shared ones."""

    where: str
    method: str
    shared: Mapping[str, Any]
    sources: Sequence[Mapping[str, Any]]
    num_layers: int
    base_is_first: bool = False

    def of(self, key: str) -> Resolved:
        """The settings of a tensor; a layer's place is between 0 (first) and 1 (last), outside layers it is 0."""
        match = _LAYER.search(key)
        t = 0.0
        if match:
            t = int(match.group(1)) / (self.num_layers - 1) if self.num_layers > 1 else 1.0
        if self.method == "slerp":
            mixed = float(self._shared("t", key, t, None))
            weights = [1.0 - mixed, mixed] if self.base_is_first else [mixed, 1.0 - mixed]
            return Resolved({"of": "weights"}, weights, [{}, {}])
        weights = [float(self._own(place, "weight", key, t)) for place in range(len(self.sources))]
        normalize = bool(self._shared("normalize", key, t, _NORMALIZES.get(self.method, False)))
        if self.method == "linear":
            return Resolved({}, self._scaled(weights) if normalize else weights, [{} for _ in weights])
        parameters: dict[str, Any] = {"scale": float(self._shared("lambda", key, t, 1.0))}
        own: list[dict[str, float]] = [{} for _ in weights]
        if self.method in ("ties", "dare_ties"):
            parameters["normalize"] = normalize
        elif normalize:
            weights = self._scaled(weights)
        if self.method != "task_arithmetic":
            own = [{"density": float(self._own(place, "density", key, t, 1.0))} for place in range(len(weights))]
        if self.method.startswith("dare"):
            parameters["rescale"] = bool(self._shared("rescale", key, t, _RESCALES[self.method]))
        elif self._shared("rescale", key, t, False):
            raise SpecError(f"{self.where}: rescale is not read for {self.method}; leave it out")
        return Resolved(parameters, weights, own)

    def _scaled(self, weights: list[float]) -> list[float]:
        total = sum(weights)
        if abs(total) < 1e-8:
            raise SpecError(f"{self.where}: weights {weights} sum to 0 and cannot be normalized")
        return [weight / total for weight in weights]

    def _shared(self, name: str, key: str, t: float, default: Any) -> Any:
        value = _at(self.shared.get(name), key, t)
        value = default if value is None else value
        if value is None:
            raise SpecError(f"{self.where}: parameters.{name} is required by merge_method {self.method!r}")
        return value

    def _own(self, place: int, name: str, key: str, t: float, default: Any = None) -> Any:
        value = _at(self.sources[place].get(name), key, t)
        return self._shared(name, key, t, default) if value is None else value


def read_mergekit(document: Mapping[str, Any], where: str) -> tuple[Recipe, ByTensor]:
    """The recipe and the settings by tensor.

    Raises:
        SpecError: a method or feature that is not read, by name.
    """
    method = document["merge_method"]
    if method not in _RULES:
        raise SpecError(f"{where}: merge_method {method!r} is not read; read are {', '.join(_RULES)}")
    for field in document:
        if field not in _FIELDS:
            raise SpecError(f"{where}: {field!r} is not read; of mergekit's fields are read {', '.join(_FIELDS)}")
    sources = _sources(document, where)
    base = document.get("base_model")
    models = [item["model"] for item in sources]
    if method == "slerp":
        if base not in models or len(models) != 2:
            raise SpecError(f"{where}: slerp needs two models, one of them the base_model")
    elif method != "linear":
        if base is None:
            raise SpecError(f"{where}: merge_method {method!r} needs base_model")
        # The base has no update of its own, and no weight.
        sources = [item for item in sources if item["model"] != base]
    shared = dict(document.get("parameters") or {})
    allowed = {*_SHARED[method], *_WITHOUT_EFFECT, *(() if method == "slerp" else ("weight", "density"))}
    for name in {*shared, *(name for item in sources for name in item["parameters"])}:
        if name not in allowed:
            raise SpecError(f"{where}: parameter {name!r} is not read for {method!r}; read are {sorted(allowed)}")
    fields: dict[str, Any] = {
        "rule": _RULES[method], "branches": _branches(sources),
        "base": base if method not in ("linear", "slerp") else None,
        "dtype": document.get("out_dtype") or document.get("dtype"),
        "tokenizer": _tokenizer(document.get("tokenizer_source"), sources, base, method, where),
    }  # fmt: skip
    recipe = spec_from_document(fields, where, Recipe)
    own = [item["parameters"] for item in sources]
    layers = _num_layers(str(sources[0]["model"]), where) if _by_layer([shared, *own]) else 1
    return recipe, ByTensor(where, method, shared, own, layers, models[0] == base)


def _branches(sources: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, item in enumerate(sources, 1):
        found.append({"name": branch_name(str(item["model"]), place, found), "model": item["model"]})
    return found


def _sources(document: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The models in order; slices that take all layers of all models count as such."""
    if ("models" in document) == ("slices" in document):
        raise SpecError(f"{where}: expected exactly one of models, slices")
    items = document.get("models")
    if items is None:
        slices = document["slices"]
        if len(slices) != 1:
            raise SpecError(f"{where}: {len(slices)} slices stack layers, which is no merge of branches; expected one")
        items = slices[0]["sources"]
        for item in items:
            first, last = item["layer_range"]
            if first != 0 or last != _num_layers(item["model"], where):
                raise SpecError(f"{where}: layer_range {[first, last]} of {item['model']} is not all of its layers")
    found = []
    for item in items:
        unknown = set(item) - {"model", "parameters", "layer_range"}
        if unknown or not isinstance(item.get("model"), str):
            raise SpecError(f"{where}: expected model (as text) and parameters of each model, got {item}")
        found.append({"model": item["model"], "parameters": dict(item.get("parameters") or {})})
    return found


def _tokenizer(source: Any, sources: Sequence[Mapping[str, Any]], base: Any, method: str, where: str) -> str | None:
    if source is None or (source == "base" and method in ("linear", "slerp")):
        return None
    if source == "base" or source == base:
        return "base"
    for item, named in zip(sources, _branches(sources), strict=True):
        if item["model"] == source:
            return str(named["name"])
    raise SpecError(f"{where}: tokenizer_source {source!r} is not read; expected base or one of the models")


def _by_layer(settings: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(value, (list, dict)) for own in settings for value in own.values())


def _num_layers(model: str, where: str) -> int:
    directory = local_directory(model)
    path = directory / "config.json" if directory is not None else Path("absent")
    if not path.is_file():
        raise SpecError(f"{where}: values by layer need {model} in a local directory, to count its layers")
    return int(json.loads(path.read_text())["num_hidden_layers"])


def _at(setting: Any, key: str, t: float) -> Any:
    """A setting's value for a tensor: a scalar, a list over layers, or the first filter that the key holds."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if all(isinstance(item, (bool, int, float)) for item in setting):
        scaled = t * (len(setting) - 1)
        low = min(int(scaled), len(setting) - 1)
        high = min(low + 1, len(setting) - 1)
        return setting[low] + (scaled - low) * (setting[high] - setting[low])
    for item in setting:
        if item.get("filter") in (None, "*") or item["filter"] in key:
            return _at(item["value"], key, t)
    return None
