"""Layers that are given one step at a time (T=1), each time with their own last state."""

from timed import PACE, time_rows

pytestmark = PACE

bench_streaming = time_rows("streaming", "streaming-training")
