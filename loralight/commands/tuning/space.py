"""The settings that a search varies: Hydra's words for several values, as distributions of Optuna."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from loralight.config.composition import read_value
from loralight.errors import InputError

_NOT_SEARCHED = ("seed", "resume")
_RANKS = "2,4,8,16,32"
_AROUND = 10  # times and parts of a method's own rate that are searched if no setting is named


@dataclass(frozen=True, kw_only=True)
class Space:
    """The settings of all trials of a search.

    Args:
        fixed: overrides with a single value.
        varied: distributions by the name in an override; values of a choice are texts, as in an override.
    """

    fixed: Sequence[str]
    varied: Mapping[str, BaseDistribution]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Space":
        """The space that overrides of ``loralight train`` mean: those with several values are varied.

        Raises:
            InputError: a setting cannot be searched, or an interval is empty (``E-TUNE``).
            HydraException: a word is not an override.
        """
        parsed = {word: OverridesParser.create().parse_override(word) for word in words}
        swept = [one for one in parsed.values() if one.is_sweep_override()]
        if wrong := [one.input_line for one in swept if one.key_or_group in _NOT_SEARCHED]:
            raise InputError("E-TUNE", f"{wrong[0]}: this is no setting to search; give one value, or leave it out")
        fixed = [word for word, override in parsed.items() if not override.is_sweep_override()]
        return cls(fixed=fixed, varied={one.get_key_element(): _distribution(one) for one in swept})

    def with_usual(self, settings: Mapping[str, Any]) -> "Space":
        """The space with the method's rank and learning rate varied, unless they are fixed.

        Args:
            settings: of `loralight train`, as the fixed overrides give them.

        Raises:
            InputError: both are fixed, or the method has neither (``E-TUNE``).
        """
        given, adapter = {word.lstrip("+").partition("=")[0] for word in self.fixed}, settings["adapter"]
        words = [f"adapter.rank={_RANKS}"] if "rank" in adapter and "adapter.rank" not in given else []
        if not given & {"optimizer.lr", "adapter.lr"}:
            low, high = adapter["lr"] / _AROUND, adapter["lr"] * _AROUND
            words.append(f"optimizer.lr=tag(log, interval({low:.3g}, {high:.3g}))")
        if not words:
            raise InputError("E-TUNE", "no setting has several values: give some, such as adapter.dropout=0,0.1")
        return Space.of([*self.fixed, *words])

    def words(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides of a point of the space; numbers of an interval have three digits."""
        values = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in params.items()}
        return [f"{name}={values[name]}" for name in self.varied]

    def point_of(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point at which a run's settings, by dotted names, lie in the space; None if they lie outside."""
        names = {name: name.lstrip("+") for name in self.varied}
        values = {name: settings.get(bare, settings.get(f"names.{bare}")) for name, bare in names.items()}
        point = {name: _as_in(one, values[name], name) for name, one in self.varied.items()}
        return None if None in point.values() else point

    def corners(self) -> Iterator[list[str]]:
        """The overrides of the first point, and of those that differ from it in one setting; ends of intervals."""
        values = {name: _values(one) or [one.low, one.high] for name, one in self.varied.items()}  # type: ignore[attr-defined]
        first = {name: several[0] for name, several in values.items()}
        yield self.words(first)
        for name, several in values.items():
            yield from (self.words({**first, name: other}) for other in several[1:])

    @property
    def size(self) -> int | None:
        """The number of points; None if a setting is any number of an interval."""
        values = [_values(one) for one in self.varied.values()]
        return None if None in values else prod(len(several or []) for several in values)

    def untried(self, tried: set[tuple[str, ...]]) -> dict[str, Any] | None:
        """A point whose overrides are not among ``tried``; None if there is none, or points cannot be counted."""
        values = [_values(one) for one in self.varied.values()]
        points = product(*(several or [] for several in values)) if None not in values else iter(())
        found = (dict(zip(self.varied, point, strict=True)) for point in points)
        return next((point for point in found if tuple(self.words(point)) not in tried), None)

    def __str__(self) -> str:
        return ", ".join(f"{name} {_told(one)}" for name, one in self.varied.items())


def _distribution(override: Override) -> BaseDistribution:
    swept: Any = override.value()
    if isinstance(swept, Glob):
        raise InputError("E-TUNE", f"{override.input_line}: name the choices, such as adapter=lora,dora")
    if not isinstance(swept, IntervalSweep):
        return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))
    kind = IntDistribution if isinstance(swept.start, int) else FloatDistribution
    try:
        return kind(swept.start, swept.end, log="log" in swept.tags)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError("E-TUNE", f"{override.input_line}: {error}") from error


def _values(one: BaseDistribution) -> list[Any] | None:
    """All values; None if they are the numbers of an interval."""
    if isinstance(one, CategoricalDistribution):
        return list(one.choices)
    return list(range(one.low, one.high + 1)) if isinstance(one, IntDistribution) else None


def _as_in(one: BaseDistribution, value: Any, name: str) -> Any:
    """A setting's value as the distribution has it; None if it is outside."""
    if isinstance(one, CategoricalDistribution):
        return next((word for word in one.choices if read_value(f"{name}={word}") == value), None)
    assert isinstance(one, IntDistribution | FloatDistribution)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and one.low <= value <= one.high else None


def _told(one: BaseDistribution) -> str:
    if isinstance(one, CategoricalDistribution):
        return ",".join(map(str, one.choices))
    assert isinstance(one, IntDistribution | FloatDistribution)
    return f"{one.low:g} to {one.high:g}{' (log)' if one.log else ''}"
