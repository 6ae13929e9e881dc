"""Two methods at two budgets from one dense start, and their curves.

    python examples/sweep.py --output runs/sweep

The same command resumes a sweep that was stopped and skips finished runs. `atmc sweep` takes the
same plan as a YAML file.
"""

from __future__ import annotations

import argparse

import atmc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="runs/sweep")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--engine", default="local", help="ray: on the machines of a Ray cluster")
    options = parser.parse_args()

    plan = {
        "dataset": "digits",
        "dense_epochs": options.epochs,
        "epochs": options.epochs,
        "level_epochs": 2,
        "points": [{"method": ["atmc", "l0"], "budget_bits": ["3kB", "12kB"]}],
    }
    for outcome in atmc.sweep(plan, options.output, engine=options.engine):
        accuracy = outcome.report and outcome.report["accuracy"]
        print(outcome.point.name, outcome.status, outcome.error or accuracy)
    for path in atmc.report(options.output).files:
        print(path)


if __name__ == "__main__":
    main()
