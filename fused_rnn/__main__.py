"""`python -m fused_rnn` prints the configuration."""

from .config import show_config

show_config()
