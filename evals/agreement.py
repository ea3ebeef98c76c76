"""How far scorers and judges agree with people: an evaluation against a review queue of the same answers."""

from __future__ import annotations

from typing import Any

from evals.cache import digest
from evals.journal import Evaluation
from evals.judged import numeric
from evals.review import Reviews, kappa


def with_people(queues: Reviews, queue: str, evaluation: Evaluation, *, threshold: float = 0.5) -> list[dict[str, Any]]:
    """For each further scorer of the evaluation and each yes-or-no or numeric label: `n`, `agreement`, `kappa`, `auroc`.

    Only answers that both have judged count, word for word the same, and of people what most of them said. A scorer's number is a
    yes from `threshold` on. `auroc`, where the label is yes or no and both occur, needs no threshold.
    """
    kinds = {label.name: label.input.type for label in queues.queue(queue).labels}
    said, _ = queues.consensus(queue)
    judged = {digest([result.row.id, result.prediction.text])[:32]: result.judged for result in evaluation.results}
    scorers = sorted({name for each in judged.values() for name in each})
    found = []
    for label, kind in kinds.items():
        if kind not in ("boolean", "numeric", "categorical"):
            continue
        for scorer in scorers:
            pairs = []
            for item, labels in said.items():
                if label not in labels or item not in judged or scorer not in judged[item]:
                    continue
                human, machine = numeric({"value": labels[label]}), numeric(judged[item][scorer])
                if human is not None and machine is not None:
                    pairs.append((human, machine))
            yes = kind != "numeric"
            people = [human >= 0.5 if yes else human for human, _ in pairs]
            machines = [machine >= threshold if yes else machine for _, machine in pairs]
            row = {"label": label, "between": f"people – {scorer}", **kappa(people, machines, ordered=not yes)}
            if yes and len(set(people)) == 2:
                from sklearn.metrics import roc_auc_score

                row["auroc"] = float(roc_auc_score(people, [machine for _, machine in pairs]))
            found.append(row)
    return found
