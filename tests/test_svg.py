"""Small plots: what is drawn lies within the axes, at the right place."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from kavier.report.svg import BOTTOM, LEFT, PANEL_HEIGHT, PANEL_WIDTH, RIGHT, TOP, Panel, Series, svg


def dots(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]


def test_it_is_xml_with_a_panel_beside_the_other_and_all_labels():
    panel = Panel("a < b", "x", [Series("one & two", [1, 2], [3, 4])])
    root = ET.fromstring(svg([panel, panel]))
    assert root.attrib["width"] == str(2 * PANEL_WIDTH)
    words = {"".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")}
    assert {"a < b", "x", "one & two", "1", "2", "3", "4"} <= words


def test_points_lie_between_the_axes_in_proportion():
    (low, middle, high) = dots(svg([Panel("", "", [Series("s", [0, 5, 10], [0, 1, 4], dots=True)])]))
    assert low == (LEFT, PANEL_HEIGHT - BOTTOM)
    assert high == (PANEL_WIDTH - RIGHT, TOP)
    assert middle[0] == pytest.approx((low[0] + high[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx(low[1] + (high[1] - low[1]) / 4, abs=0.1)


def test_equal_ratios_are_equally_far_apart_and_zero_has_no_place():
    series = Series("s", [0, 0.01, 0.1, 1], [1, 1, 1, 1], dots=True)
    places = [x for x, _ in dots(svg([Panel("", "", [series], log_x=True)]))]
    assert places == pytest.approx([LEFT, (LEFT + PANEL_WIDTH - RIGHT) / 2, PANEL_WIDTH - RIGHT], abs=0.1)


@pytest.mark.parametrize(("x", "y"), [([], []), ([3], [0]), ([2, 2], [-5, -5])])
@pytest.mark.parametrize("log_x", [False, True])
def test_little_is_enough(x, y, log_x):
    ET.fromstring(svg([Panel("t", "x", [Series("s", x, y)], log_x=log_x, zero=True)]))
