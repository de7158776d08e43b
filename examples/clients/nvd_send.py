#!/usr/bin/env python3
"""Sends one result file with Python's standard library alone.

    nvd_send.py FILE DATASET [COLUMN=VALUE ...]     nvd_send.py a.full.tsv gottcha2 sample_id=S1 run_id=R1

NVD_SUPPORT_URL is the service, NVD_BEARER_TOKEN the token. Ends with 0 when the file is stored, now or before, 65 when
the data are bad, 75 when another try may succeed, 77 when the token is refused, 78 for everything else.
"""

import http.client
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

MAX_TIME = 3600
PASSING = {408, 429, 500, 502, 503, 504}
EXIT = {400: 65, 409: 65, 413: 65, 422: 65, 401: 77, 403: 77}


def attempt(url: str, path: str) -> tuple[int, str, float]:
    """One try: the status, the body, and how long the service asks to wait. Status 0 is no answer."""
    with open(path, "rb") as body:
        request = urllib.request.Request(url, data=body, method="POST")
        request.add_header("Authorization", "Bearer " + os.environ["NVD_BEARER_TOKEN"])
        # With a length, the service can tell a whole body from one that was cut off.
        request.add_header("Content-Length", str(os.path.getsize(path)))
        request.add_header("Content-Type", "application/octet-stream")
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode(), 0
        except urllib.error.HTTPError as error:
            wait = error.headers.get("Retry-After", "0")
            return error.code, error.read().decode(errors="replace"), float(wait) if wait.isdigit() else 0
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error), 0


def send(path: str, dataset: str, columns: list[str]) -> int:
    """Sends until it is stored, refused, or out of time. Without a key the content is the key, so that is safe."""
    query = urllib.parse.urlencode([tuple(column.split("=", 1)) for column in columns])
    url = f"{os.environ['NVD_SUPPORT_URL'].rstrip('/')}/ingest/{urllib.parse.quote(dataset)}?{query}"
    deadline = time.monotonic() + MAX_TIME
    pause = 0.5
    while True:
        status, text, wait = attempt(url, path)
        if 200 <= status < 300:
            print(text)
            return 0
        print(f"{path}: {status or 'no answer'}: {text}", file=sys.stderr)
        if status and status not in PASSING:
            return EXIT.get(status, 78)
        # Full jitter: clients that were sent away together shall not come back together.
        delay = wait + random.uniform(0, pause)
        if time.monotonic() + delay > deadline:
            return 75
        time.sleep(delay)
        pause = min(pause * 2, 60)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not {"NVD_SUPPORT_URL", "NVD_BEARER_TOKEN"} <= os.environ.keys():
        print(__doc__, file=sys.stderr)
        sys.exit(78)
    sys.exit(send(sys.argv[1], sys.argv[2], sys.argv[3:]))
