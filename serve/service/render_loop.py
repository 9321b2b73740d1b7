"""Renders a server's queue, and restarts the ranks when they fail."""

from __future__ import annotations

import logging
from collections.abc import Callable

from longtake.configs.commands.batch import BatchConfig
from longtake.configs.snapshot import SnapshotConfig
from longtake.errors import RefusedInputError, Stopped
from longtake.serve.runner.job_renderer import ReplicaSettings
from longtake.serve.runner.ranks import Ranks
from longtake.serve.runner.replica import Replica
from longtake.serve.service.service import VideoService

logger = logging.getLogger(__name__)

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_FRAMES_SHOWN = 6


class RenderLoop:
    """Renders the jobs of a service one by one until the service stops.

    Args:
        service: The service.
        make_ranks: Returns a new group of ranks, not started yet.
        snapshots: How often snapshots are written.
        on_failure: Called if the model is refused at the first start.
    """

    def __init__(
        self,
        service: VideoService,
        make_ranks: Callable[[], Ranks],
        snapshots: SnapshotConfig,
        on_failure: Callable[[], None],
    ) -> None:
        self._service = service
        self._make_ranks = make_ranks
        self._snapshots = snapshots
        self._on_failure = on_failure
        self._was_loaded = False
        self._wait_s = _FIRST_WAIT_S

    def run(self) -> None:
        """Start the ranks and render until the service stops.

        When the ranks fail, they are restarted after a delay that doubles each time. If the model
        is refused at the first start, the loop sets ``service.ranks.failure``, calls
        ``on_failure``, and ends.
        """
        service, stop = self._service, self._service.stop_event
        while not stop.is_set():
            try:
                failure = self._render_until_failure()
            except Stopped:
                return
            except RefusedInputError as error:
                failure = error
                if not self._was_loaded:
                    service.ranks.failure = error
                    self._on_failure()
                    return
            except Exception as error:
                failure = error
                if not stop.is_set():
                    logger.exception("the ranks could not be started")
            if failure is not None and not stop.is_set():
                service.progress.note(f"{failure}; retrying in {self._wait_s:.0f} s")
                stop.wait(self._wait_s)
                self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def _render_until_failure(self) -> Exception | None:
        """Load the model and render. Returns why rendering ended; None if the service stops."""
        service, stop = self._service, self._service.stop_event
        service.ranks.replace(None)
        ranks = self._make_ranks()
        service.ranks.replace(ranks)
        ranks.start(lambda progress: None, stop.is_set)
        self._was_loaded, self._wait_s = True, _FIRST_WAIT_S
        settings = ReplicaSettings(
            service.model.digest,
            BatchConfig(watch=True, attempts=service.settings.attempts),
            self._snapshots,
            service.scratch,
            _FRAMES_SHOWN,
        )
        replica = Replica(service.store, ranks, settings, service.progress, stop)
        replica.run()
        return replica.failure
