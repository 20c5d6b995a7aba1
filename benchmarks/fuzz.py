"""Ask a server all that its OpenAPI document allows, and more: no 5xx but 503 and 504.

lobule serve run/model --port 8000 --token a-token-for-measurements
python -m benchmarks.fuzz http://127.0.0.1:8000 [cases for each operation]
"""

from __future__ import annotations

import sys
from collections import Counter

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

TOKEN = "a-token-for-measurements"

HEADERS = {"authorization": f"Bearer {TOKEN}"}


def main(url: str, cases: int = 850) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=HEADERS)
    seen: Counter[int] = Counter()
    for found in schema.get_all_operations():
        operation = found.ok()
        # what takes nothing cannot be asked wrongly
        modes = list(GenerationMode) if operation.method == "post" else [GenerationMode.POSITIVE]
        for mode in modes:

            @settings(
                max_examples=cases, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                status = case.call(headers=HEADERS, timeout=60).status_code
                seen[status] += 1
                if status >= 500 and status not in (503, 504):
                    raise RuntimeError(f"{status} for {case.as_curl_command()}")

            ask()
        print(operation.method.upper(), operation.path, dict(seen), flush=True)
    print(f"{sum(seen.values())} cases: {dict(sorted(seen.items()))}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
