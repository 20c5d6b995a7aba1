"""A server under load, beside its model alone.

    python -m benchmarks.serving run/model photographs [seconds]

One photograph at a time against the time of the model; eight clients, 5% of whose images are bad;
and eighty clients at once, ten times what can be answered.
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
        base_url=url, timeout=60,
        headers={"authorization": f"Bearer {TOKEN}", "content-type": "image/jpeg"},
    )  # fmt: skip


def memory_mb(process: subprocess.Popen) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def latency(model: Path, url: str, files: list[bytes], paths: list[Path]) -> None:
    loaded = load_model(model)
    extractor = open_extractor(loaded, scan_files(paths[:1]))
    alone, served = [], []
    with client(url) as asking:
        for data in files[:40]:
            image = decode(data)
            began = time.perf_counter()
            extractor.of_views(image)
            colour_statistics(image)
            alone.append(time.perf_counter() - began)
            began = time.perf_counter()
            asking.post("/v1/predict", content=data).raise_for_status()
            served.append(time.perf_counter() - began)
    # the first ones make programs
    own, all_ = statistics.median(alone[4:]) * 1000, statistics.median(served[4:]) * 1000
    print(f"one photograph: model {own:.0f} ms, served {all_:.0f} ms, {all_ - own:+.0f} ms")


def load(process: subprocess.Popen, url: str, files: list[bytes], seconds: float) -> None:
    statuses, times = [], []
    stop = time.perf_counter() + seconds

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with client(url) as asking:
            while time.perf_counter() < stop:
                data = files[rng.integers(len(files))]
                if rng.random() < 0.05:
                    data = data[: rng.integers(len(data) // 2)] if rng.random() < 0.5 else b"bad"
                began = time.perf_counter()
                statuses.append(asking.post("/v1/predict", content=data).status_code)
                times.append(time.perf_counter() - began)

    # what is used at all is taken in the first seconds
    warm = threading.Timer(seconds / 10, lambda: before.append(memory_mb(process)))
    before: list[float] = []
    warm.start()
    run([threading.Thread(target=ask, args=(k,)) for k in range(8)])
    told = ", ".join(f"{s}: {statuses.count(s)}" for s in sorted(set(statuses)))
    median, grown = statistics.median(times) * 1000, memory_mb(process) - before[0]
    print(f"8 clients, {seconds:.0f} s: {len(statuses)} answers ({told})")
    print(f"  median {median:.0f} ms; memory {grown:+.0f} MB")


def overload(url: str, files: list[bytes]) -> None:
    found = []

    def ask(k: int) -> None:
        with client(url) as asking:
            for i in range(12):
                began = time.perf_counter()
                reply = asking.post("/v1/predict", content=files[(k + i) % len(files)])
                found.append((reply.status_code, time.perf_counter() - began))

    run([threading.Thread(target=ask, args=(k,)) for k in range(160)])
    refused = [s for status, s in found if status == 429]
    taken = [s for status, s in found if status == 200]
    others = {status for status, _ in found} - {200, 429}
    print(f"160 clients: {len(taken)} answered, slowest {max(taken):.1f} s; {len(refused)} refused")
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
            load(process, url, files, seconds)
            overload(url, files)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
