"""A server under load, beside its model alone.

    python -m benchmarks.serving run/model photographs [seconds]

One photograph at a time against the time of the model; heat maps; eight clients, 5% of whose
images are bad; ten times as many requests a second as can be answered; and 160 clients who, once
refused, ask again at once.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from lobule.data.images import decode
from lobule.data.scan import scan_files
from lobule.inference.predictor import open_extractor
from lobule.models.bundle import load_model
from lobule.training.features import colour_statistics

TOKEN = "a-token-for-measurements"


def serve(model: Path, folder: Path) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "lobule", "serve", str(model), "--port", "0", "--token", TOKEN,
               "--audit-log", str(folder / "log.jsonl")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0]
    while True:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
            return process, url
        except httpx.HTTPError:
            time.sleep(0.1)


def client(url: str) -> httpx.Client:
    return httpx.Client(
        base_url=url, timeout=60, limits=httpx.Limits(max_connections=None),
        headers={"authorization": f"Bearer {TOKEN}", "content-type": "image/jpeg"},
    )  # fmt: skip


def memory_mb(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def latency(model: Path, url: str, files: list[bytes], paths: list[Path]) -> None:
    loaded = load_model(model)
    extractor = open_extractor(loaded, scan_files(paths[:1]))

    def alone(data: bytes) -> float:
        image = decode(data)
        began = time.perf_counter()
        extractor.of_views(image)
        colour_statistics(image)
        return time.perf_counter() - began

    def served(data: bytes) -> float:
        began = time.perf_counter()
        asking.post("/v1/predict", content=data).raise_for_status()
        return time.perf_counter() - began

    pairs = []
    with client(url) as asking:
        for k, data in enumerate(files[:104]):
            # in turn, so that neither always comes upon what the other left
            if k % 2:
                pairs.append((alone(data), served(data)))
            else:
                pairs.append((served(data), alone(data))[::-1])
    # the first ones make programs
    own, all_ = np.array(pairs[4:]).T * 1000
    more = np.median(all_ - own)
    print(f"one photograph: model {np.median(own):.0f} ms, served {np.median(all_):.0f} ms")
    print(f"  {more:+.1f} ms, the median of {len(own)} differences")


def heat_map(url: str, files: list[bytes]) -> None:
    times: dict[str, list[float]] = {"png": [], "json": []}
    with client(url) as asking:
        for data in files[:6]:
            for kind, found in times.items():
                began = time.perf_counter()
                reply = asking.post("/v1/explain", params={"as": kind}, content=data)
                reply.raise_for_status()
                found.append(time.perf_counter() - began)
    # the first one makes the network of shuffled weights
    map_s, all_s = (statistics.median(found[1:]) for found in times.values())
    print(f"one heat map: {map_s:.1f} s; with whether it can be believed {all_s:.1f} s")


def load(process: subprocess.Popen, url: str, files: list[bytes], seconds: float) -> float:
    """Return how many images were answered in a second."""
    found: list[tuple[int, float]] = []
    stop = time.perf_counter() + seconds

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with client(url) as asking:
            while time.perf_counter() < stop:
                data = files[rng.integers(len(files))]
                if rng.random() < 0.05:
                    data = data[: rng.integers(len(data) // 2)] if rng.random() < 0.5 else b"bad"
                found.append(timed(asking, data))

    # what is used at all is taken in the first seconds
    warm = threading.Timer(seconds / 10, lambda: before.append(memory_mb(process)))
    before: list[float] = []
    warm.start()
    run([threading.Thread(target=ask, args=(k,)) for k in range(8)])
    statuses, times = zip(*found, strict=True)
    told = ", ".join(f"{s}: {statuses.count(s)}" for s in sorted(set(statuses)))
    median, grown = statistics.median(times) * 1000, memory_mb(process) - before[0]
    print(f"8 clients, {seconds:.0f} s: {len(statuses)} answers ({told})")
    print(f"  median {median:.0f} ms; memory {grown:+.0f} MB")
    return statuses.count(200) / seconds


def overload(url: str, files: list[bytes], rate: float, seconds: float = 30.0) -> None:
    found: list[tuple[int, float]] = []
    n = round(rate * seconds)

    def ask(k: int) -> None:
        found.append(timed(asking, files[k % len(files)]))

    threads = []
    with client(url) as asking:
        began = time.perf_counter()
        for k in range(n):
            time.sleep(max(0.0, began + k / rate - time.perf_counter()))
            threads.append(threading.Thread(target=ask, args=(k,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    tell(f"{rate:.0f} requests a second", found)


def hammer(url: str, files: list[bytes]) -> None:
    found: list[tuple[int, float]] = []

    def ask(k: int) -> None:
        found.extend(timed(asking, files[(k + i) % len(files)]) for i in range(12))

    # one client for all: each would read the certificates of this machine, which takes longer
    with client(url) as asking:
        run([threading.Thread(target=ask, args=(k,)) for k in range(160)])
    tell("160 clients", found)


def timed(asking: httpx.Client, data: bytes) -> tuple[int, float]:
    began = time.perf_counter()
    status = asking.post("/v1/predict", content=data).status_code
    return status, time.perf_counter() - began


def tell(what: str, found: list[tuple[int, float]]) -> None:
    refused = [s for status, s in found if status == 429]
    taken = [s for status, s in found if status == 200]
    others = {status for status, _ in found} - {200, 429}
    print(f"{what}: {len(taken)} answered, slowest {max(taken):.1f} s; {len(refused)} refused")
    middle, most = np.quantile(refused, [0.5, 0.95]) * 1000
    print(f"  refused within {middle:.0f} ms, 95% within {most:.0f} ms; other: {others or 'none'}")


def run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(model: Path, folder: Path, seconds: float = 300) -> None:
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png"))
    files = [path.read_bytes() for path in paths]
    with tempfile.TemporaryDirectory() as work:
        process, url = serve(model, Path(work))
        try:
            latency(model, url, files, paths)
            heat_map(url, files)
            rate = load(process, url, files, seconds)
            overload(url, files, 10 * rate)
            hammer(url, files)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
