"""Fields of a strategy that are set and change nothing in a run: they are refused by name."""

from collections.abc import Sequence

from clsim import plugins
from clsim.config import RunConfig
from clsim.data.streams import StreamInfo
from clsim.errors import RequestError
from clsim.field_values import defaults


def refuse(asked: RunConfig, info: StreamInfo, request: Sequence[RunConfig]) -> None:
    """Raises RequestError for a field that is set in `asked`, if no strategy of the whole request uses it.

    So ``--strategy ncm,linear lr=0.1`` is right, and ``--strategy ncm lr=0.1`` is a mistake. Values of presets and
    defaults are never refused, nor are `epochs` and `batch_size`, which are options of every run.
    """
    others = {each.strategy: each for each in request if each.strategy != asked.strategy}.values()
    for name, why in _unused(asked, info).items():
        if not any(name in each.strategy_fields and name not in _unused(each, info) for each in others):
            value, strategy = asked.strategy_fields[name], plugins.short_name(asked.strategy)
            raise RequestError(f"{name}={value} has no effect on {strategy}: {why}; leave it out")


def _unused(asked: RunConfig, info: StreamInfo) -> dict[str, str]:
    """The fields that are set and have no effect, with the reasons."""
    strategy = asked.make_strategy()
    settled = defaults(type(strategy)) | type(strategy).presets.get(asked.preset or "", {})
    return {
        name: why
        for name, why in strategy.unused(info).items()
        if name in settled and asked.strategy_fields[name] != settled[name]
    }
