"""Build what is taught from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gkd.argument_types import check_types
from gkd.detectors.entries import name_of
from gkd.errors import ConfigError, GKDError, did_you_mean, own_place, why_not_built
from gkd.knowledge.base import Knowledge
from gkd.knowledge.checks import check_built, check_class
from gkd.registry import KNOWLEDGE

if TYPE_CHECKING:
    from gkd.detectors import DetectorPair


def build_knowledge(config: dict, pair: DetectorPair) -> Knowledge:
    """Build a kind of knowledge from its config, with errors for people.

    Args:
        config: Its registered name as ``type``, and its settings.
        pair: Traits of teacher and student.

    Raises:
        ConfigError: The type or a setting is unknown, or the pair cannot be taught so.
    """
    settings = dict(config)
    kind = settings.pop('type', None)
    if not isinstance(kind, type):  # as in MMEngine's new style of configs
        kind = KNOWLEDGE.get(name_of(kind))
    if kind is None:
        raise ConfigError(f'model.knowledge: type {config.get("type")!r} is unknown; '
                          f'known are {sorted(KNOWLEDGE.module_dict)}.'
                          + did_you_mean(str(config.get('type')), KNOWLEDGE.module_dict))
    check_class(kind)
    check_types(kind.__init__, settings, kind.__name__)
    try:
        built = kind(pair=pair, **settings)
    except GKDError:
        raise
    except TypeError as error:
        raise ConfigError(f'model.knowledge: {why_not_built(error, kind)}') from error
    except Exception as error:
        place = own_place(error)
        raise ConfigError(f'model.knowledge: {kind.__name__} cannot be built: '
                          f'{type(error).__name__}: {error}'
                          + (f' (in {place})' if place else '')) from error
    check_built(built)
    # Whatever the method itself asks: the logits of other boxes would be compared in silence.
    advice = 'teach by methods that need none, such as PKD or CWD.'
    if built.needs.logits:
        pair.require_logits_of_positives(
            f'model.knowledge: {config["type"]} needs class logits', advice)
    if built.needs.proposals:
        pair.require_logits_of_proposals(
            f'model.knowledge: {config["type"]} needs class logits of proposals', advice)
    return built
