"""The LoRAs in the transformers of one rank, which are exchanged between jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longtake.engine.loras.choice import NO_LORAS, LoraChoice
from longtake.engine.loras.matching import LoraMatcher, MatchedLora
from longtake.errors import EngineError, ModelError, RefusedInputError, RequestError
from longtake.parallel import World
from longtake.pipelines.lora.fused import FusedTransformer
from longtake.pipelines.lora.match import Deltas, combine


class RankLoras:
    """The LoRAs that are fused into a rank's transformers.

    Args:
        matcher: Finds and matches LoRAs.
        world: All ranks.

    Attributes:
        fused: The LoRAs; None if an exchange has failed.
    """

    def __init__(self, matcher: LoraMatcher, world: World) -> None:
        self._matcher, self._world = matcher, world
        self._transformers: Mapping[str, FusedTransformer] = {}
        self.fused: LoraChoice | None = NO_LORAS
        self._found: tuple[MatchedLora, ...] = ()

    def prepare(self, choice: LoraChoice) -> Mapping[str, Deltas]:
        """Find the LoRAs that the model is loaded with. Collective: all ranks call it.

        Returns:
            What they add, by component.

        Raises:
            RequestError: On all ranks; one of them cannot use a LoRA.
        """
        self._found, self.fused = self._agree(choice), choice
        return combine(each.match for each in self._found)

    def loaded(self, transformers: Mapping[str, FusedTransformer]) -> None:
        """Take over the loaded transformers.

        Args:
            transformers: By component.

        Raises:
            RequestError: One that LoRAs change is not among them.
        """
        self._transformers = transformers
        self._check_components(combine(each.match for each in self._found))

    def fuse(self, choice: LoraChoice) -> None:
        """Have these LoRAs in the transformers, and no others. Collective: all ranks call it.

        Weights that neither these nor the earlier ones change are not read.

        Args:
            choice: The LoRAs, the same on all ranks.

        Raises:
            RequestError: On all ranks, which keep what they have; one of them cannot use a LoRA.
            EngineError: A file cannot be read any more. The next call starts over.
        """
        found = self._agree(choice)
        deltas = combine(each.match for each in found)
        self._check_components(deltas)
        self.fused = None
        try:
            for component, transformer in self._transformers.items():
                transformer.fuse(deltas.get(component, {}))
        except ModelError as error:
            raise EngineError(str(error)) from error  # the work has begun
        self._found, self.fused = found, choice

    def described(self) -> list[dict[str, Any]]:
        """What the .json of a video says of the fused LoRAs."""
        return [each.described() for each in self._found]

    def _agree(self, choice: LoraChoice) -> tuple[MatchedLora, ...]:
        """The LoRAs of a choice, matched on all ranks."""
        if not choice.uses:
            return ()
        found: tuple[MatchedLora, ...] = ()
        failure = None
        try:
            found = self._matcher.match(choice)
        except RefusedInputError as error:
            failure = str(error)
        for rank, each in enumerate(self._world.gather_json(failure)):
            if each is not None:
                raise RequestError(f"{each} (on rank {rank})" if rank else each)
        return found

    def _check_components(self, deltas: Mapping[str, Deltas]) -> None:
        for component in deltas.keys() - self._transformers.keys():
            raise RequestError(
                f"lora changes {component}, which the model's family does not load with "
                "load_transformer: no LoRA can be fused into it"
            )
