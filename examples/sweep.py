"""Two methods at two budgets from one dense start, and their curves.

    python examples/sweep.py --output runs/sweep

What is finished is kept, so that it goes on where it was stopped. `atmc sweep` takes the same as a
YAML file.
"""

from __future__ import annotations

import argparse

import atmc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="runs/sweep")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()

    plan = {
        "dataset": "digits",
        "dense_epochs": given.epochs,
        "epochs": given.epochs,
        "level_epochs": 2,
        "points": [{"method": ["atmc", "l0"], "budget_bits": ["3kB", "12kB"]}],
    }
    for outcome in atmc.sweep(plan, given.output):
        accuracy = outcome.report and outcome.report["accuracy"]
        print(outcome.point.name, outcome.status, outcome.error or accuracy)
    for path in atmc.report(given.output).files:
        print(path)


if __name__ == "__main__":
    main()
