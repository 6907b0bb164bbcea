"""Recurrent layers for PyTorch on fused CPU kernels, in place of those of torch.nn.

    from fused_rnn import LSTM            # instead of torch.nn.LSTM
    model = fused_rnn.accelerate(model)   # or: swap the layers of an existing model
    model = fused_rnn.freeze(model)       # for inference: weights that no longer change

T is time, B batch, I input size, H hidden size, P projection size, L layers, D directions.
"""

from . import (
    _fake,  # noqa: F401  (registers shapes for tracing)
    _flops,  # noqa: F401  (registers counts of operations)
    _vmap,  # noqa: F401  (registers rules for batched derivatives)
    functional,
    reference,
)
from .cells import GRUCell, LSTMCell, RNNCell
from .config import show_config
from .convert import accelerate, freeze, restore, thaw
from .dispatch import explain
from .export import fused_export, onnx_translations
from .layers import GRU, LSTM, RNN

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "accelerate",
    "explain",
    "freeze",
    "functional",
    "fused_export",
    "onnx_translations",
    "reference",
    "restore",
    "show_config",
    "thaw",
]
