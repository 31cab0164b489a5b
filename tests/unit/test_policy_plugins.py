"""Policies of other packages: the documented one works, broken ones stop the launch."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from modelled_rounds import ModelledRounds

from llada_sglang.config import Decoding
from llada_sglang.decoding.policies import policy_classes
from llada_sglang.decoding.policy import Checkpoint, PolicySet
from llada_sglang.errors import DecodeParamError, LaunchConfigError

DOCS = Path(__file__).parents[2] / "docs" / "policies.md"
CHECKPOINT = Checkpoint(block=4, mask_id=3)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that packages are imported from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    policy_classes.cache_clear()
    yield tmp_path
    for name in ("cooling", "broken"):
        sys.modules.pop(name, None)
    policy_classes.cache_clear()


def install(site: Path, module: str, source: str, entry: str) -> None:
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llada_sglang.policies]\n{entry}\n")


def documented() -> str:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]


def test_the_documented_policy_decodes(site: Path) -> None:
    assert len(documented().splitlines()) <= 35
    install(site, "cooling", documented(), "cooling = cooling:Cooling")
    seen = []

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        seen.append(int((ids == 3).sum()))
        logits = torch.zeros(len(ids), 8)
        logits[:, 5] = 2.0  # a confidence of 0.51
        return logits

    rounds = ModelledRounds(logits_of, CHECKPOINT, vocab=8)
    custom = {"policy": "cooling", "begin": 0.9, "cooling": 0.2}
    request = rounds.submit([], tokens=4, eos=[7], custom=custom)
    rounds.run()
    assert list(request.output_ids) == [5] * 4
    # One position at 0.9, one at 0.7, and at 0.5 all that are left.
    assert seen == [4, 3, 2]


def test_its_parameters_are_checked_and_its_name_is_listed(site: Path) -> None:
    install(site, "cooling", documented(), "cooling = cooling:Cooling")
    decoding = Decoding.of_server(PolicySet(CHECKPOINT, policy_classes()), "threshold")
    with pytest.raises(DecodeParamError, match=r"cooling must be a number in \[0, 1\], got 2"):
        decoding.parse({"policy": "cooling", "cooling": 2})
    with pytest.raises(DecodeParamError, match="one of cooling, credit, edit"):
        decoding.parse({"policy": "warming"})


@pytest.mark.parametrize(
    ("source", "entry", "message"),
    [
        ("import nothing_there", "cooling = broken:Cooling", "cannot be imported"),
        ("", "cooling = broken:Cooling", "cannot be imported"),
        ("class Cooling: pass", "cooling = broken:Cooling", "is no subclass of"),
        ("", "threshold = broken:Cooling", "takes a name that is taken"),
    ],
)
def test_a_broken_policy_stops_the_launch(
    site: Path, source: str, entry: str, message: str
) -> None:
    install(site, "broken", source, entry)
    with pytest.raises(LaunchConfigError, match=message):
        policy_classes()
