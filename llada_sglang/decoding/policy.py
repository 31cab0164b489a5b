"""What a decoding policy is: a pure function from a block and its statistics to a new block.

Subclass `UnmaskingPolicy` for rules that only say which masked positions a step fills, and
`EditingPolicy` for rules that also change what is there. A policy is registered under its name in
the entry point group `llada_sglang.policies`; docs/decoding.md shows one whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from llada_sglang.decoding.order import best
from llada_sglang.decoding.parameters import Flag, Integer, Number, Parameter, check
from llada_sglang.errors import DecodeParamError

MAX_LOOKAHEAD = 8

Pick = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From logits float32 [positions, vocab] of the positions at hand to (token, confidence), as the
request samples them."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a policy may know of the model.

    delete_id, split_id: the ids of LLaDA2.2's actions, None where the checkpoint has none.
    """

    block: int
    mask_id: int
    delete_id: int | None = None
    split_id: int | None = None


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A tensor that a policy keeps of every block in flight: its shape, dtype and first value."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float = 0


@dataclass(frozen=True, slots=True)
class RowView:
    """One block of one request, for policies that read its logits.

    canvas: int64 [block], the mask id where masked; masked: bool [block]. columns: int64
    [positions], ascending, to which the logits belong: all masked positions, and where steps are
    launched ahead maybe some that were filled since, which `masked` tells. step: steps the block
    has taken; of an editing policy maybe one too many. numbers: the request's parameters. state:
    the policy's own tensors of this block, to be changed in place; by an editing policy in `update`
    only, as not every step of it counts. pick: how the request draws a token.
    """

    canvas: Tensor
    masked: Tensor
    columns: Tensor
    step: int
    numbers: Mapping[str, float]
    state: Mapping[str, Tensor]
    pick: Pick


@dataclass(frozen=True, slots=True)
class Step:
    """Some blocks at a step, and what the model says of them; all tensors [rows, block] but two.

    canvas: int64, the mask id where masked. masked, generated: bool; what is not generated is the
    prompt's. candidate: int64; confidence: float32 in [0, 1]; both are read where the policy asks
    for them, see `Policy.edits`. least: int64 [rows, 1], how many positions have to be unmasked;
    0 in a block that is not forced. numbers: the requests' parameters, float64 [rows, 1].
    features: what `Policy.read` returned, [rows, block, ...]. state: the policy's own tensors,
    [rows, ...]; what `update` returns replaces them.
    """

    canvas: Tensor
    masked: Tensor
    generated: Tensor
    candidate: Tensor
    confidence: Tensor
    least: Tensor
    numbers: Mapping[str, Tensor]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Update:
    """The blocks after a step.

    canvas: int64 [rows, block]; masked: bool [rows, block]. done: bool [rows], blocks that are
    finished; None where masks decide. source: int64 [rows, block], the column each position came
    from, -1 for a new one; None where nothing moved. confidence: float32 [rows, block], by the
    columns of the old canvas, where other tokens than the candidates were written; else None.
    """

    canvas: Tensor
    masked: Tensor
    done: Tensor | None = None
    source: Tensor | None = None
    confidence: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Policy(ABC):
    """A rule of decoding. Instances are shared by all requests and hold no state of their own."""

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]]
    edits: ClassVar[bool]
    """Whether tokens that are there may change; candidates are then found for all generated
    positions of a block, else for the masked ones."""
    moves: ClassVar[bool] = False
    """Whether tokens that are there may change their place; implies `edits`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raise DecodeParamError where this policy cannot decode such a checkpoint."""
        self.checkpoint = checkpoint

    @property
    def illegal_ids(self) -> tuple[int, ...]:
        """Ids besides the mask's that are no candidates: actions mean nothing to most policies."""
        ids = (self.checkpoint.delete_id, self.checkpoint.split_id)
        return tuple(i for i in ids if i is not None)

    def values(self, given: Mapping[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of a request. given: the request's own; server: the server's defaults.

        Raises DecodeParamError naming key, value, range and default.
        """
        found = {name: parameter.default for name, parameter in self.parameters.items()}
        found |= {name: value for name, value in server.items() if name in found}
        for name, value in given.items():
            check(name, self.parameters[name], value)
        return found | dict(given)

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The parameters that `update` reads, as numbers; always the same names."""
        return {
            name: float(values[name])
            for name, parameter in self.parameters.items()
            if isinstance(parameter, Number)
        }

    def state(self) -> Mapping[str, StateSpec]:
        """The tensors kept of every block in flight."""
        return {}

    def reads_logits(self, values: Mapping[str, Any]) -> bool:
        """Whether `read` has to be called for a request."""
        return False

    def read(self, logits: Tensor, row: RowView) -> Mapping[str, Tensor]:
        """Look at, or change in place, the logits of one row before its candidates are drawn.

        logits: float32 [positions, vocab], after penalties and bias. Returns features
        [positions, ...].
        """
        return {}

    @abstractmethod
    def update(self, step: Step) -> Update:
        """The new blocks, without a host sync and without a loop over rows or positions."""


class UnmaskingPolicy(Policy):
    """A rule that fills masks and never changes a token that is there."""

    edits = False

    COMMON: ClassVar[Mapping[str, Parameter]] = {
        "steps": Integer(32, low=1),
        "minimal_topk": Integer(1, low=1),
        "eos_early_stop": Flag(True),
        "lookahead": Integer(1, low=1, high=MAX_LOOKAHEAD, also=("auto",)),
        "lookahead_start": Number(0.5, high=1.0),
        "lookahead_semi": Number(0.9, high=1.0),
    }

    @abstractmethod
    def propose(self, step: Step) -> Tensor:
        """Masked positions to fill, bool [rows, block]."""

    def update(self, step: Step) -> Update:
        """Fill what is proposed if it is enough, else the best `least` positions.

        Source: LLaDA2.0 report section 5.4: T = H if |H| >= n_s, else the top n_s.
        """
        proposed = self.propose(step) & step.masked
        enough = proposed.sum(dim=-1, keepdim=True) >= step.least
        accepted = torch.where(enough, proposed, best(step.confidence, step.masked, step.least))
        return Update(torch.where(accepted, step.candidate, step.canvas), step.masked & ~accepted)


class EditingPolicy(Policy):
    """A rule that also revises tokens; it says itself when a block is finished.

    Once a block holds no mask, the block behind it takes its first step in the same forward; that
    step counts if this one finishes the block and changes nothing.
    """

    edits = True


class PolicySet:
    """The policies a server offers for its checkpoint."""

    def __init__(self, checkpoint: Checkpoint, classes: Mapping[str, type[Policy]]) -> None:
        self.checkpoint = checkpoint
        self._classes = classes
        self._made: dict[str, Policy] = {}

    @property
    def names(self) -> list[str]:
        """All known names, also of policies this checkpoint is not made for."""
        return sorted(self._classes)

    def __getitem__(self, name: object) -> Policy:
        """The policy of this name. Raises DecodeParamError where it is unknown or impossible."""
        if not isinstance(name, str) or name not in self._classes:
            raise DecodeParamError(f"policy must be one of {', '.join(self.names)}, got {name!r}.")
        if name not in self._made:
            self._made[name] = self._classes[name](self.checkpoint)
        return self._made[name]
