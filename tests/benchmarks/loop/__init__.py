"""Whether it pays to keep a model up to date: a simulated year, systems that decide, and the money that they lose.

    python tests/benchmarks/run.py loop                # 18 scenarios, 20 seeds: an hour; goes on where it was stopped
    python tests/benchmarks/run.py loop.change         # one scenario
    python tests/benchmarks/run.py loop.real           # four months with real trainings, 5 seeds: an hour and a half
    python tests/benchmarks/loop/external.py change 'python my_system.py'    # a system of your own

Method, results and the interface are in docs/evidence.md.
"""

import sys


def main(scenario: str = "") -> dict[str, float]:
    """All scenarios, or one."""
    from loop import score
    from loop.world import SCENARIOS

    if scenario == "real":
        from loop import real

        return real.main()
    results = score.played([scenario] if scenario else SCENARIOS, range(score.SEEDS))
    names = ["oracle", *score.AGAINST, "ours", *score.WITHOUT]
    tables = [score.table(results), score.decisions(results, names), score.after_change(results)]
    tables += [score.apart(results, name) for name in score.TAKEN_APART]
    print("\n\n".join(tables), file=sys.stderr)
    return score.figures(results)
