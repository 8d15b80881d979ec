"""Poison: what datasets teach of facts that a hostile minority attacks, with the quarantine and without it.

Sleepers, many accounts that are old and were honest once, are there to show where the defence ends.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.feedback.traffic import new_warehouse
from fixtures.models.datasets import build_dataset
from fixtures.worlds.hostile import WORKLOAD, Attack, Effect, Month, effect
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

ATTACKS: tuple[Attack, ...] = ("few", "many", "sleepers")
SHARES = (0.05, 0.1, 0.2)


def main() -> dict[str, float]:
    """Each attack and share, and none."""
    figures: dict[str, float] = {}
    print(f"{'':18} {'defended':>25} {'undefended':>25}", file=sys.stderr)
    head = f"{'taught wrong':>13} {'right lost':>11}"
    print(f"{'attack':8} {'share':>5} {'':3} {head} {head} {'quarantined: hostile, honest':>30}", file=sys.stderr)
    for kind, share in [("none", 0.0), *((kind, share) for kind in ATTACKS for share in SHARES)]:
        with_it, without = (measured(kind, share, quarantine) for quarantine in (True, False))
        name = f"{kind}_{round(100 * share)}" if share else "none"
        figures |= {
            f"poison_taught_wrong_{name}": with_it.taught_wrong,
            f"poison_undefended_{name}": without.taught_wrong,
            f"poison_wrong_rows_{name}": with_it.wrong_rows,
            f"poison_wrong_rows_undefended_{name}": without.wrong_rows,
            f"poison_right_lost_{name}": with_it.right_lost,
            f"poison_right_lost_undefended_{name}": without.right_lost,
            f"poison_false_quarantine_{name}": with_it.quarantined_honest,
        }
        columns = " ".join(f"{one.taught_wrong:13.2f} {one.right_lost:11.3f}" for one in (with_it, without))
        caught = f"{with_it.quarantined_hostile:.3f}, {with_it.quarantined_honest:.4f}"
        print(f"{kind:8} {share:5.0%} {'':3} {columns} {caught:>30}", file=sys.stderr)
    return figures


def measured(kind: str, share: float, quarantine: bool, seed: int = 0) -> Effect:
    """The effect of one attack on one dataset."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = new_warehouse(Path(folder))
        month = Month(seed).people()
        if kind in ATTACKS:
            month.attack(kind, share)
        month.into(warehouse)
        settings = Settings(
            models=ModelsSettings(directory=Path(folder) / "models"),
            dataset=DatasetSettings(minimum_rows=1, quarantine=quarantine),
            gate=GateSettings(minimum_examples=1),
        )
        built = build_dataset(warehouse, settings, WORKLOAD, month.end)
        found = effect(month, built, warehouse)
        warehouse.close()
        return found


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
