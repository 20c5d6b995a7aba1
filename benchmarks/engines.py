"""OpenVINO beside torch on this machine's CPU: processor time of the same fp32 features.

    python -m benchmarks.engines

Prints, for the eight views of one 700 x 460 photograph, the median ratio of processor times over
alternating repetitions with its range, and the largest difference between the features.
"""

from __future__ import annotations

import time

import numpy as np

from lobule.models.backbones import load_backbone
from lobule.models.engines import Engine, make_engine

REPETITIONS = 9


def main() -> None:
    network = load_backbone().network
    rng = np.random.default_rng(0)
    lying = rng.normal(size=(4, 3, 460, 700)).astype(np.float32)
    batches = [lying, np.ascontiguousarray(lying.swapaxes(2, 3))]
    engines = {name: make_engine(network, name)[1] for name in ("torch", "openvino")}
    differences = [
        float(np.abs(engines["torch"](b) - engines["openvino"](b)).max()) for b in batches
    ]
    ratios, spent = [], {"torch": [], "openvino": []}
    for _ in range(REPETITIONS):
        for name, engine in engines.items():
            spent[name].append(cpu_s(engine, batches))
        ratios.append(spent["torch"][-1] / spent["openvino"][-1])
    for name, seconds in spent.items():
        print(f"{name}: {np.median(seconds):.2f} s of processor time an image (8 views)")
    print(f"torch / openvino: {np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"largest difference of a feature: {max(differences):.1e}")


def cpu_s(engine: Engine, batches: list[np.ndarray]) -> float:
    started = time.process_time()
    for batch in batches:
        engine(batch)
    return time.process_time() - started


if __name__ == "__main__":
    main()
