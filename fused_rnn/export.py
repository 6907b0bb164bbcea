"""Whether an exported program holds torch's operators or this package's."""

from collections.abc import Iterator
from contextlib import contextmanager

fused = False


@contextmanager
def fused_export() -> Iterator[None]:
    """Within it, programs that torch.export records hold this package's operators.

    They are as fast as the modules, and keep time and batch dynamic all the way through
    AOTInductor, but load and run only where fused_rnn is imported. Without it torch.export records
    torch's own operators, which need torch alone. Calls that would not be fused are recorded with
    torch's operators in any case.

        with fused_rnn.fused_export():
            program = torch.export.export(model, args)
    """
    global fused
    before = fused
    fused = True
    try:
        yield
    finally:
        fused = before
