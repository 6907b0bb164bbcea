"""Layers on packed sequences, of lengths from T/4 to T."""

from timed import PACE, time_rows

pytestmark = PACE

bench_packed = time_rows("packed-inference", "packed-training")
