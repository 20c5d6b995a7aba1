"""How the time of scan and of the search for near duplicates grows with the number of images.

Scan stands beside reading and hashing the same files with as many threads and nothing else. The
files are photographs of made-up tissue, each written many times with other bytes behind its end.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.measure import alternate, spread
from lobule.data.duplicates import find_near_duplicates, fingerprint
from lobule.data.images import SUFFIXES, decode, dihedral_view
from lobule.data.scan import scan
from lobule.parallel import ahead

SIZES = (1_000, 10_000, 100_000)
KINDS = 200


def measure(data: Path) -> dict[str, Any]:
    """Return seconds by number of images: of hashing, scan, and the search."""
    photographs = sorted(p for p in data.rglob("*") if p.suffix in SUFFIXES)[:KINDS]
    each = sum(p.stat().st_size for p in photographs) / len(photographs)
    room = shutil.disk_usage(gettempdir()).free / 4
    sizes = [n for n in SIZES if n * each < room]
    print(
        f"files of {each / 1e3:.0f} kB; up to {sizes[-1]:,} of them, a quarter of the free disk\n"
    )
    found: dict[str, Any] = {
        "images": sizes,
        "bytes_each": each,
        "hash_s": [],
        "scan_s": [],
        "search_s": [],
    }
    print("| images | hashing alone, s | scan, s | hashing / scan | search, s |")
    print("| --- | --- | --- | --- | --- |")
    for n in sizes:
        with TemporaryDirectory() as folder:
            files = write_files(photographs, Path(folder), n)
            seconds = alternate(
                {"hash": lambda f=files: hash_all(f), "scan": lambda d=folder: scan(Path(d))},
                3 if n < 50_000 else 1,
            )
        prints = make_prints(photographs, n)
        began = time.perf_counter()
        find_near_duplicates(prints)
        searched = time.perf_counter() - began
        shares = np.array(seconds["hash"]) / np.array(seconds["scan"])
        hashed, scanned = (spread(seconds[k])[0] for k in ("hash", "scan"))
        found["hash_s"].append(hashed)
        found["scan_s"].append(scanned)
        found["search_s"].append(searched)
        print(f"| {n:,} | {hashed:.2f} | {scanned:.2f} | {np.median(shares):.2f} | "
              f"{searched:.2f} |", flush=True)  # fmt: skip
    return found


def write_files(photographs: list[Path], folder: Path, n: int) -> list[Path]:
    """Write n files of different bytes, all of them readable photographs, in two classes."""
    contents = [path.read_bytes() for path in photographs]
    files = []
    for i in range(n):
        path = (
            folder
            / ("benign", "malignant")[i % 2]
            / f"P{i // 10:05d}-{i:06d}{photographs[i % len(photographs)].suffix}"
        )
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents[i % len(contents)] + i.to_bytes(8))
        files.append(path)
    return files


def hash_all(files: list[Path]) -> list[str]:
    def task(some: list[Path]) -> list[str]:
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in some]

    parts = ahead(task, (files[i : i + 64] for i in range(0, len(files), 64)))
    return [sha256 for part in parts for sha256 in part]


def make_prints(photographs: list[Path], n: int) -> np.ndarray:
    """Return n fingerprints that are as alike as those of photographs, few of them copies."""
    known = np.array(
        [fingerprint(dihedral_view(decode(p), i % 8)) for i, p in enumerate(photographs)]
    )
    rng = np.random.default_rng(0)
    # of a normal distribution with the covariance of real ones, and again of length 1
    drawn = rng.multivariate_normal(known.mean(axis=0), np.cov(known.T), size=n).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    copies = rng.choice(n // 2, n // 100, replace=False)
    drawn[n // 2 + copies] = drawn[copies]
    return drawn


def plot(found: dict[str, Any], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for name, label in (
        ("hash_s", "hashing alone"),
        ("scan_s", "scan"),
        ("search_s", "near duplicates"),
    ):
        axes.loglog(found["images"], found[name], marker="o", label=label)
    axes.set(xlabel="images", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
