"""Cells in a Python loop over time."""

from timed import PACE, time_rows

pytestmark = PACE

bench_cells = time_rows("cells-inference", "cells-training")
