"""What this installation is and what it would run."""

import platform

import torch

from ._ops import extension


def show_config() -> None:
    """Prints versions, compiler, instruction sets, threads and CUDA, a line each."""
    from . import __version__

    config = extension.config()
    rows = {
        "fused_rnn": __version__,
        "torch": f"{torch.__version__} (built against {config['torch_built']})",
        "python": f"{platform.python_version()} on {platform.machine()}",
        "compiler": config["compiler"],
        "instruction sets built": ", ".join(config["isa_built"]),
        "instruction sets available": ", ".join(config["isa_available"]),
        "instruction set active": f"{config['isa_active']} ({config['isa_reason']})",
        "bfloat16": "multiplied" if config["bfloat16_products"] else "computed as float32",
        "threads": f"{torch.get_num_threads()} (OpenMP: {'yes' if config['openmp'] else 'no'})",
        "CUDA": "yes" if config["cuda"] else "no, CUDA tensors go to torch",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")
