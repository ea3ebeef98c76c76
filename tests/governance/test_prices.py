from __future__ import annotations

from pathlib import Path

import pytest

from governance.prices import PriceError, Prices


def test_the_bundled_table_is_laid_under_ones_own(tmp_path: Path) -> None:
    usage = {"input_tokens": 1_000_000, "output_tokens": 500_000}
    bundled = Prices.load()
    assert bundled.cost("chat", "gpt-4o-mini-2024-07-18", usage) == pytest.approx(0.45)
    assert bundled.cost("chat", "unknown", usage) is None
    (tmp_path / "prices.yaml").write_text("version: ours\nmodels:\n  gpt-4o-mini: {input: 1, output: 1}\n  own: {input: 4}\n")
    own = Prices.load(tmp_path / "prices.yaml")
    assert own.version == f"{bundled.version}+ours"
    assert own.cost("chat", "gpt-4o-mini", usage) == pytest.approx(1.5)
    own.serve("chat", "own")
    assert own.cost("chat", None, usage) == pytest.approx(4.0)
    for wrong in ("models: {}", "version: 1.0\nmodels: {a: {input: -1}}", "[", "version: x\nmodels: {a: {inputs: 1}}"):
        (tmp_path / "prices.yaml").write_text(wrong)
        with pytest.raises(PriceError, match=r"prices\.yaml"):
            Prices.load(tmp_path / "prices.yaml")
