"""Layers on dense sequences: one layer, two bidirectional ones, projection, other types."""

from timed import PACE, time_rows

pytestmark = PACE

bench_one_layer = time_rows("inference", "training")
bench_stacked = time_rows("stacked-inference", "stacked-training")
bench_one_way = time_rows("one-way-inference", "one-way-training")
bench_projection = time_rows("projection-inference", "projection-training")
bench_float64 = time_rows("float64-training")
bench_float16 = time_rows("float16-training")
bench_bfloat16 = time_rows("bfloat16-training")
