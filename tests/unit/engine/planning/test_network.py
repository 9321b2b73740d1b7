"""Durations of exchanges over shared links, calculated by hand."""

from __future__ import annotations

import pytest

from longtake.configs.hardware import Figure, Hardware, Link, load_hardware
from longtake.engine.planning.network import Network, ring_transfers


def link(spans: int | None, shared_by: int, bytes_per_s: float, latency_s: float) -> Link:
    return Link(
        name=f"of {spans}",
        spans=spans,
        shared_by=shared_by,
        bytes_per_s=Figure(value=bytes_per_s, source="of a test"),
        latency_s=Figure(value=latency_s, source="of a test"),
    )


def hardware(*links: Link) -> Hardware:
    """Nodes of eight devices with these links."""
    return load_hardware("h100").model_copy(update={"links": links, "devices_per_node": 8})


NVLINK = hardware(link(8, 1, 100, 1), link(None, 8, 200, 5))
"""100 bytes per second per port, 200 out of a node."""

PCIE = hardware(link(2, 1, 20, 1), link(4, 2, 10, 2), link(8, 4, 5, 3), link(None, 8, 8, 9))
"""20 bytes per second per port, 10 out of a pair, 5 out of a socket of four, 8 out of a node."""


def all_to_all(ranks: range, size: float) -> list[tuple[int, int, float]]:
    return [(source, target, size) for source in ranks for target in ranks]


def test_nothing_sent_takes_no_time() -> None:
    for network in (Network(NVLINK), Network(PCIE)):
        assert network.seconds([]) == 0
        assert network.seconds([(3, 3, 1000.0), (0, 1, 0.0), (0, 9, 0.0)]) == 0


def test_separate_ports_do_not_contend() -> None:
    network = Network(NVLINK)
    assert network.seconds([(0, 1, 50)]) == pytest.approx(50 / 100 + 1)
    # Each sends 3 x 10 and receives as much at the same time.
    assert network.seconds(all_to_all(range(4), 10)) == pytest.approx(30 / 100 + 1)
    # Two groups share no link.
    both = all_to_all(range(4), 10) + all_to_all(range(4, 8), 10)
    assert network.seconds(both) == pytest.approx(30 / 100 + 1)


def test_the_busiest_port_counts_whether_it_sends_or_receives() -> None:
    network = Network(NVLINK)
    assert network.seconds([(0, peer, 20) for peer in range(1, 8)]) == pytest.approx(140 / 100 + 1)
    assert network.seconds([(peer, 0, 20) for peer in range(1, 8)]) == pytest.approx(140 / 100 + 1)
    # A ring uses every port equally.
    assert network.seconds(ring_transfers(8, 20)) == pytest.approx(20 / 100 + 1)


def test_two_neighbours_on_one_switch() -> None:
    network = Network(PCIE)
    swap = [(0, 1, 40.0), (1, 0, 40.0)]
    assert network.seconds(swap) == pytest.approx(40 / 20 + 1)
    others = [(2, 3, 40.0), (3, 2, 40.0), (6, 7, 40.0)]
    assert network.seconds(swap + others) == pytest.approx(40 / 20 + 1)
    # 1 and 2 share no switch.
    assert network.seconds([(1, 2, 40)]) == pytest.approx(40 / 10 + 2)
    # Both of a pair share its uplink.
    assert network.seconds([(0, 2, 40), (1, 3, 40)]) == pytest.approx(80 / 10 + 2)


def test_an_all_to_all_of_eight_contends_between_sockets() -> None:
    """Each sends 1 to each other: 7 leave a port, 2 x 6 a pair, 4 x 4 a socket."""
    port, pair, socket = 7 / 20, 12 / 10, 16 / 5
    assert Network(PCIE).seconds(all_to_all(range(8), 1)) == pytest.approx(socket + 3)
    assert socket > pair > port
    # Within the sockets: 3 leave a port, 2 x 2 a pair.
    within = all_to_all(range(4), 1) + all_to_all(range(4, 8), 1)
    assert Network(PCIE).seconds(within) == pytest.approx(4 / 10 + 2)


def test_a_ring_of_eight_crosses_each_link_once() -> None:
    """Only 3 -> 4 and 7 -> 0 cross sockets."""
    assert Network(PCIE).seconds(ring_transfers(8, 10)) == pytest.approx(10 / 5 + 3)


def test_hops_between_nodes_share_the_uplink() -> None:
    network = Network(NVLINK)
    hops = [(rank, rank + 8, 100.0) for rank in range(8)]
    assert network.seconds(hops) == pytest.approx(800 / 200 + 5)
    assert network.seconds(hops[:1]) == pytest.approx(100 / 100 + 5)  # its own port is slower
    # Both directions at the same time.
    back = [(target, source, size) for source, target, size in hops]
    assert network.seconds(hops + back) == pytest.approx(800 / 200 + 5)
    # The third node's downlink carries what two others send.
    to_third = [(0, 16, 150.0), (8, 17, 150.0)]
    assert network.seconds(to_third) == pytest.approx(max(300 / 200, 150 / 100) + 5)


def test_latency_is_that_of_the_outermost_link() -> None:
    network = Network(PCIE)
    tiny = 1e-9
    for target, latency in ((1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 9), (23, 9)):
        for transfers in ([(0, target, tiny)], [(0, target, tiny), (0, 1, tiny)]):
            assert network.seconds(transfers) == pytest.approx(latency)


def test_smaller_nodes() -> None:
    four = NVLINK.with_node_of(4)
    assert four.devices_per_node == 4
    assert [(each.spans, each.shared_by) for each in four.links] == [(4, 1), (None, 4)]
    assert Network(four).seconds([(0, 3, 50)]) == pytest.approx(50 / 100 + 1)
    assert Network(four).seconds([(3, 4, 50)]) == pytest.approx(50 / 100 + 5)
    hops = [(rank, rank + 4, 100.0) for rank in range(4)]
    assert Network(four).seconds(hops) == pytest.approx(400 / 200 + 5)


def test_larger_nodes() -> None:
    sixteen = NVLINK.with_node_of(16)
    assert sixteen.devices_per_node == 16
    assert [(each.spans, each.shared_by) for each in sixteen.links] == [(16, 1), (None, 16)]
    assert Network(sixteen).seconds([(0, 15, 50)]) == pytest.approx(50 / 100 + 1)
    assert Network(sixteen).seconds([(0, 16, 50)]) == pytest.approx(50 / 100 + 5)


@pytest.mark.parametrize("devices", [2, 3, 4, 6, 8])
def test_part_of_a_node_keeps_its_links(devices: int) -> None:
    """The links between the first devices do not depend on how many others there are."""
    whole, part = Network(PCIE), Network(PCIE.with_node_of(devices))
    for source in range(devices):
        for target in range(devices):
            one = [(source, target, 40.0)]
            assert part.seconds(one) == pytest.approx(whole.seconds(one))
    exchange = all_to_all(range(devices), 10)
    assert part.seconds(exchange) == pytest.approx(whole.seconds(exchange))
    between_sockets = 16 / 5 if devices > 4 else 0.0
    to_next_node = part.seconds([(0, devices, 16)])
    assert to_next_node == pytest.approx(max(between_sockets, 16 / 8) + 9)


def test_a_node_of_one_device() -> None:
    alone = Network(PCIE.with_node_of(1))
    assert alone.seconds([(0, 1, 16)]) == pytest.approx(16 / 8 + 9)
    assert Network(NVLINK.with_node_of(1)).seconds([(0, 1, 100)]) == pytest.approx(100 / 100 + 5)
