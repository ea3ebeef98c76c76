"""What `evals.train_faithfulness` fits of `evals.wording`: the projections of word pieces, and the network that doubts them.

SummEdits (Laban et al. 2023) says of each edited summary whether it is still true, and which summary it was made from. The pieces
that differ in a false one are taken as unsupported, all others as supported; some of the former are harmless, which the network
has to average out.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from evals.support import CLAIMS, sentences
from evals.wording import NEW, Basis, Network, Read

COMPONENTS = 64
NETWORKS, HIDDEN, ALPHA, EPOCHS = 3, 64, 10.0, 5
SAME_NEW, SAME_KNOWN = 0.5, 0.06
"""Share of the pieces that do not differ which are learned from: of those that are not among the passages', of the others."""
_WORD = re.compile(r"\w+|[^\w\s]")


def bases(read: Read, texts: Sequence[str]) -> tuple[Basis, Basis]:
    """The projections of pieces before all layers (each kind of piece once) and after them."""
    found = read([sentence for text in texts for sentence in sentences(text)[:CLAIMS]])[1]
    _, first = np.unique(np.concatenate([each[0] for each in found]), return_index=True)
    return _basis(np.concatenate([each[2] for each in found])[first]), _basis(np.concatenate([each[3] for each in found])[::3])


def _basis(vectors: np.ndarray) -> Basis:
    mean = vectors.mean(0)
    away = vectors - mean
    _, axes = np.linalg.eigh(away.T @ away)
    axes = np.ascontiguousarray(axes[:, ::-1][:, :COMPONENTS])
    spread = (away @ axes).std(0)
    return Basis(mean, axes, np.maximum(spread, 0.05 * spread.max()))  # few texts leave axes on which nothing differs


def differs(text: str, original: str, shown: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Of each word piece of `text`'s sentences, whether it is not the original's; beside a word left out, both neighbours are
    not."""
    theirs = [match.group().lower() for match in _WORD.finditer(original)]
    ours = list(_WORD.finditer(text))
    mask = np.zeros(len(text) + 1, bool)
    blocks = difflib.SequenceMatcher(None, theirs, [match.group().lower() for match in ours], autojunk=False).get_opcodes()
    for kind, _, _, first, last in blocks:
        if kind != "equal":
            for match in ours[first:last] if kind != "delete" else ours[max(0, first - 1) : first + 1]:
                mask[match.start() : match.end()] = True
    found, at = [], 0
    for sentence, spans in shown:
        at = max(at, text.find(sentence, at))
        found += [bool(mask[at + first : at + last].any()) for first, last in spans.tolist()]
        at += len(sentence)
    return np.array(found, bool)


def fit(rows: np.ndarray, changed: np.ndarray, false: np.ndarray, spelled: Basis, meant: Basis) -> Network:
    """The network over pieces (`rows`), of which some are `changed`, in texts of which some are `false`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    same = np.where(rows[:, -NEW] == 0, SAME_NEW, SAME_KNOWN)
    chosen = np.flatnonzero(changed | (np.random.default_rng(0).random(len(rows)) < same))
    x, target = rows[chosen].astype(np.float32), (changed & false)[chosen]
    centre, scale = x.mean(0), x.std(0) + 1e-2
    x = (x - centre) / scale
    parts: list[Any] = []
    for seed in range(NETWORKS):
        options: Any = {"alpha": ALPHA, "batch_size": min(512, len(x)), "max_iter": EPOCHS, "random_state": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a few rounds are what is wanted
            parts.append(MLPClassifier((HIDDEN,), **options).fit(x, target))
    hidden = np.concatenate([each.coefs_[0] for each in parts], axis=1)
    out = np.concatenate([each.coefs_[1][:, 0] for each in parts]) / NETWORKS
    hidden_bias = np.concatenate([each.intercepts_[0] for each in parts])
    out_bias = np.asarray(np.mean([each.intercepts_[1][0] for each in parts]))
    return Network(spelled, meant, centre, scale, hidden, hidden_bias, out, out_bias)
