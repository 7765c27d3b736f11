"""Known vulnerabilities of the packages in requirements.lock, where the data can be had.

Runs pip-audit, from the environment or through uvx. Where neither is there, or the data
cannot be reached, it says "skipped" and ends well: no answer is no bad answer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
SECONDS = 180


def verdict(report: dict[str, Any]) -> tuple[int, str]:
    """Exit code and one line for a report of pip-audit.

    What is in no database counts as unknown, not as well: a mirror without its data knows nothing.
    """
    known = [each for each in report["dependencies"] if "vulns" in each]
    bad = [f"{each['name']} {each['version']} ({v['id']})" for each in known for v in each["vulns"]]
    if bad:
        return (
            1,
            f"audit: {len(bad)} known vulnerabilities: {', '.join(bad)}; raise the versions, `make lock`",
        )
    if not known:
        return 0, "audit: skipped, the database of vulnerabilities cannot be reached"
    return 0, f"audit: nothing known against {len(known)} of {len(report['dependencies'])} packages"


def command() -> list[str] | None:
    """What runs pip-audit here, None where nothing does."""
    for name in (ROOT / ".venv" / "bin" / "pip-audit", "pip-audit"):
        found = shutil.which(name)
        if found:
            return [found]
    uvx = shutil.which("uvx")
    return [uvx, "pip-audit"] if uvx else None


def main() -> int:
    """Runs the audit and tells its result; the exit code is 1 where a vulnerability is known."""
    program = command()
    if program is None:
        print("audit: skipped, neither pip-audit nor uvx is here")
        return 0
    options = ["-r", str(LOCK), "--no-deps", "--disable-pip", "-f", "json"]
    try:
        done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=SECONDS)
        code, line = verdict(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, ValueError, OSError):
        code, line = 0, "audit: skipped, pip-audit gave no answer"
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
