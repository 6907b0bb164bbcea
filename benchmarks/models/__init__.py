"""Models of the literature that are built around recurrent layers, in plain torch.nn.

Each file has one of them, and a `Subject` that says what it is trained on and used for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from models import actor_critic, forecaster, speech, tagger, transducer, translator
from models.subject import Subject


@dataclass(frozen=True)
class Model:
    """Makes a subject of given sizes: of a size as in the literature, or as small as can be."""

    subject: Callable[[Any], Subject]
    full: Any
    tiny: Any


MODELS = {
    "speech": Model(speech.Speech, speech.FULL, speech.TINY),
    "transducer": Model(transducer.Streaming, transducer.FULL, transducer.TINY),
    "forecaster": Model(forecaster.Forecast, forecaster.FULL, forecaster.TINY),
    "actor-critic": Model(actor_critic.Agent, actor_critic.FULL, actor_critic.TINY),
    "translator": Model(translator.Translation, translator.FULL, translator.TINY),
    "tagger": Model(tagger.Tagging, tagger.FULL, tagger.TINY),
}


def build(name: str, tiny: bool = False) -> Subject:
    """The subject of that name, the same at every call, on torch.nn's layers."""
    model = MODELS[name]
    torch.manual_seed(0)
    return model.subject(model.tiny if tiny else model.full)
