"""The search space: what each key may be, in Optuna's terms and back.

A domain says what one key may be. Optuna knows it by one parameter or several, whose names begin with the key.
`sample` is a value that Optuna suggests, `encode` Optuna's parameters of a value, `values_in_order` are all values,
and `edges` are some which, if they are right for a configuration, let expect that all are. What a domain does not have
is a ValueError whose text continues a sentence about the key.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from c2c_lightning.errors import UserError, meant

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Params = dict[str, Any]


@dataclass
class Choice:
    """One of some values, which may be lists or mappings."""

    values: list[Any]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("has no values")
        # As text, since to Optuna, as to Python, 0 and False are the same.
        self.labels = {as_text(value): value for value in self.values}

    def sample(self, key: str, trial: optuna.Trial | FrozenTrial) -> Any:
        return self.labels[trial.suggest_categorical(key, list(self.labels))]

    def encode(self, key: str, value: Any) -> Params:
        texts = [as_text(value)]
        if is_number(value):  # which may be written with a point or without
            texts += [text for text, known in self.labels.items() if is_number(known) and known == value]
        for text in texts:
            if text in self.labels:
                return {key: text}
        raise ValueError(f"is none of {', '.join(self.labels)}")

    def edges(self) -> list[Any]:
        return self.values

    def values_in_order(self) -> list[Any]:
        return self.values


@dataclass
class Number:
    """A number from low to high, both included."""

    low: float
    high: float
    log: bool = False
    step: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"goes from {self.low} to {self.high}: the first must be the smaller one")
        if self.whole and (self.low % 1 or self.high % 1):
            raise ValueError(f"goes from {self.low} to {self.high}: both must be whole numbers")
        if self.log and self.low <= 0:
            raise ValueError(f"is logarithmic and begins at {self.low}: it must be positive")
        if self.log and self.step is not None:
            raise ValueError("has both log and step: give one of them")
        if self.step is not None and self.step < 1:
            raise ValueError(f"has step {self.step}: it must be at least 1")
        if self.whole:
            self.low, self.high, self.step = int(self.low), int(self.high), self.step or 1
            self.high -= (self.high - self.low) % self.step  # the last one that the steps reach

    def sample(self, key: str, trial: optuna.Trial | FrozenTrial) -> Any:
        if self.whole:
            return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def encode(self, key: str, value: Any) -> Params:
        if not is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"does not lie in {self.low} to {self.high}")
        if not self.whole:
            return {key: value}
        if value % 1:
            raise ValueError("is no whole number")
        beyond = (value - self.low) % self.step
        if beyond:
            below = value - beyond
            raise ValueError(f"lies between the steps {below:g} and {below + self.step:g}")
        return {key: int(value)}

    def edges(self) -> list[Any]:
        return [self.low, self.high]

    def values_in_order(self) -> list[Any]:
        if not self.whole or self.log:
            raise ValueError("has endless values")
        return list(range(self.low, self.high + 1, self.step))


@dataclass
class Subset:
    """Some of the layers (or of anything): each is in or out, so that Optuna learns of each by itself."""

    members: list[Any]
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("has no layers")
        self.most = len(self.members) if self.most is None else self.most
        if self.least < 1:
            raise ValueError(f"has least {self.least}: it must be at least 1, as a fuser of no layer learns nothing")
        if not self.least <= self.most <= len(self.members):
            raise ValueError(f"asks for {self.least} to {self.most} of {len(self.members)}")
        if any(member in self.members[:place] for place, member in enumerate(self.members)):
            raise ValueError(f"has a layer twice in {self.members}")

    def sample(self, key: str, trial: optuna.Trial | FrozenTrial) -> Any:
        return self._bounded([trial.suggest_categorical(name, [True, False]) for name in self._names(key)])

    def encode(self, key: str, value: Any) -> Params:
        is_in = [isinstance(value, list) and member in value for member in self.members]
        if not self.least <= sum(is_in) <= self.most or sum(is_in) != len(value):
            raise ValueError(f"is not {self.least} to {self.most} of {self.members}")
        return dict(zip(self._names(key), is_in))

    def _bounded(self, is_in: list[bool]) -> list[Any]:
        """The members that are in; where too few or too many are, those nearest to the end decide."""
        for wanted, limit in ((True, self.least), (False, len(is_in) - self.most)):
            # The receiver's last layers are the likeliest to matter, and come in first.
            others = [i for i in reversed(range(len(is_in))) if is_in[i] != wanted]
            others = others if wanted else others[::-1]
            for i in others[: max(0, limit - is_in.count(wanted))]:
                is_in[i] = wanted
        return [member for member, kept in zip(self.members, is_in) if kept]

    def edges(self) -> list[Any]:
        return [self.members[: self.most], self.members[-self.least :]]

    def values_in_order(self) -> list[Any]:
        sizes = range(self.least, self.most + 1)
        return [list(subset) for size in sizes for subset in itertools.combinations(self.members, size)]

    def _names(self, key: str) -> list[str]:
        return [f"{key}[{member}]" for member in self.members]


def label(value: Any) -> str | int | float | bool | None:
    """A value as a table may have it: lists and mappings as text."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return as_text(value)


def as_text(value: Any) -> str:
    """A value as YAML in one line, so that different values have different texts."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; Python takes True for one, and nobody means it so."""
    return type(value) in (int, float) and math.isfinite(value)


Domain = Choice | Number | Subset
# Kind: the domain that it makes of a list, and which options it takes and of what type.
KINDS: dict[str, tuple[type[Domain], dict[str, type]]] = {
    "choice": (Choice, {}),
    "grid": (Choice, {}),
    "uniform": (Number, {}),
    "loguniform": (Number, {}),
    "int": (Number, {"step": int, "log": bool}),
    "layers": (Subset, {"least": int, "most": int}),
}
KIND_OF_VALUE = {int: "a whole number", bool: "true or false"}


def read_domain(spec: Mapping[str, Any]) -> Domain:
    """A domain as a sweep file states it; raises ValueError with what is wrong."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"is {spec!r}: give {{choice: [...]}} or another of {', '.join(KINDS)}")
    kinds = [kind for kind in spec if kind in KINDS]
    if len(kinds) != 1:
        hint = meant(str(next(iter(spec), "")), KINDS, f"Give one of {', '.join(KINDS)}.")
        raise ValueError(f"says {', '.join(map(str, spec)) or 'nothing'}. {hint}")
    (kind,) = kinds
    (domain, allowed), values = KINDS[kind], spec[kind]
    options = {name: value for name, value in spec.items() if name != kind}
    for name in sorted(options.keys() - allowed):
        raise ValueError(f"has {name!r} beside {kind}. {meant(name, allowed, 'Leave it out.')}")
    for name, value in options.items():
        if type(value) is not allowed[name]:
            raise ValueError(f"has {name}: {value!r}: give {KIND_OF_VALUE[allowed[name]]}")
    if not isinstance(values, list):
        raise ValueError(f"has {kind}: {values!r}: give a list")
    if domain is not Number:
        return domain(values, **options)
    if len(values) != 2 or not all(map(is_number, values)):
        raise ValueError(f"has {kind}: {values}: give the lowest and the highest number")
    return Number(*values, **{"log": kind == "loguniform", "whole": kind == "int", **options})


def sentence(text: str) -> str:
    """A text with a full stop, unless a hint has already ended it."""
    return text if text.endswith((".", "?")) else f"{text}."


class Space:
    """Domains by dotted configuration key.

    Args:
        specs: as a sweep file states them.

    Raises:
        UserError: a domain that is none, and why.
    """

    def __init__(self, specs: Mapping[str, Mapping[str, Any]]):
        self.domains: dict[str, Domain] = {}
        for key, spec in specs.items():
            try:
                self.domains[key] = read_domain(spec)
            except ValueError as error:
                raise UserError(sentence(f"space.{key} {error}")) from error
        self.grids = [key for key, spec in specs.items() if "grid" in spec]

    def sample(self, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
        """Values by key that Optuna suggests for a trial."""
        return {key: domain.sample(key, trial) for key, domain in self.domains.items()}

    def encode(self, point: Mapping[str, Any]) -> Params:
        """Optuna's parameters of a point, which may leave keys out.

        Raises:
            UserError: the space does not have it.
        """
        params: Params = {}
        for key, value in point.items():
            if key not in self.domains:
                raise UserError(f"first names {key}, which is not in space. {meant(key, self.domains)}".strip())
            try:
                params |= self.domains[key].encode(key, value)
            except ValueError as error:
                raise UserError(sentence(f"first has {key}: {value!r}, which {error}")) from error
        return params

    def grid(self) -> list[dict[str, Any]]:
        """Every point, the last key changing fastest.

        Raises:
            UserError: a key has endless values.
        """
        columns = []
        for key, domain in self.domains.items():
            try:
                columns.append(domain.values_in_order())
            except ValueError as error:
                raise UserError(f"search is grid, but space.{key} {error}.") from error
        return [dict(zip(self.domains, row)) for row in itertools.product(*columns)]

    def edges(self) -> list[dict[str, Any]]:
        """Points that between them have every edge of every key, and as few as can be."""
        columns = [domain.edges() for domain in self.domains.values()]
        rows = zip(*(itertools.islice(itertools.cycle(column), max(map(len, columns))) for column in columns))
        return [dict(zip(self.domains, row)) for row in rows]
