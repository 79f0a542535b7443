"""Options that only the service's settings and the model can judge."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import InvalidOptionError
from service.pipeline import Wishes
from service.schemas import PredictOptions


def check_options(options: PredictOptions, *, max_faces: int, labels: Sequence[str]) -> None:
    """Raises InvalidOptionError where more than `max_faces` or a class not in `labels` is asked."""
    if options.max_faces is not None and options.max_faces > max_faces:
        raise InvalidOptionError(f"max_faces may be at most {max_faces} here.", "max_faces")
    if options.class_ is None:
        return
    if options.explain != "evidence":
        raise InvalidOptionError("class needs explain=evidence.", "class")
    if options.class_ not in labels:
        raise InvalidOptionError(f"class must be one of {', '.join(labels)}.", "class")


def wishes_of(options: PredictOptions, *, whole: bool = False) -> Wishes:
    """What these options ask of the pipeline; `whole`: every pixel is wanted in the result."""
    return Wishes(options.max_faces, options.min_score, options.search, whole)
