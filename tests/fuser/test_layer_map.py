"""Which sharer layer feeds which receiver layer."""

from __future__ import annotations

import pytest

from c2c_lightning.fuser import map_layers


@pytest.mark.parametrize(
    ("num_receiver", "num_sharer", "expected"),
    [
        (4, 4, {0: 0, 1: 1, 2: 2, 3: 3}),
        (4, 6, {0: 2, 1: 3, 2: 4, 3: 5}),
        (6, 4, {2: 0, 3: 1, 4: 2, 5: 3}),
        (3, 1, {2: 0}),
    ],
)
def test_terminal_maps_last_to_last_and_backwards_until_a_model_has_no_layer_left(num_receiver, num_sharer, expected):
    assert map_layers("terminal", "all", num_receiver, num_sharer) == expected


@pytest.mark.parametrize(
    ("num_receiver", "num_sharer", "expected"),
    [
        (3, 3, {0: 0, 1: 1, 2: 2}),
        (5, 3, {0: 0, 1: 0, 2: 1, 3: 2, 4: 2}),
        (3, 9, {0: 0, 1: 4, 2: 8}),
        (1, 4, {0: 0}),
        (4, 1, {0: 0, 1: 0, 2: 0, 3: 0}),
    ],
)
def test_depth_maps_by_relative_depth_first_to_first_and_last_to_last(num_receiver, num_sharer, expected):
    assert map_layers("depth", "all", num_receiver, num_sharer) == expected


def test_the_map_itself_may_be_given_and_comes_out_ascending():
    assert list(map_layers({3: 0, 1: 5}, "all", 4, 6).items()) == [(1, 5), (3, 0)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("first:2", [0, 1]),
        ("last:2", [3, 4]),
        ("every:2", [0, 2, 4]),
        ("first:5", [0, 1, 2, 3, 4]),
        ("last:5", [0, 1, 2, 3, 4]),
        ([4, 1], [1, 4]),
    ],
)
def test_layers_chooses_among_the_mapped_ones(layers, expected):
    assert list(map_layers("depth", layers, 5, 3)) == expected


def test_layers_counts_over_the_receivers_layers_mapped_or_not():
    assert map_layers("terminal", "every:2", 6, 3) == {4: 1}


@pytest.mark.parametrize(
    ("layer_map", "layers", "message"),
    [
        ("relative", "all", "model.layer_map is 'relative': give terminal, depth or"),
        ({5: 0}, "all", "model.layer_map names receiver layer 5, but the receiver has layers 0 to 4"),
        ({0: 3}, "all", "model.layer_map names sharer layer 3, but the sharer has layers 0 to 2"),
        ({-1: 0}, "all", "model.layer_map names receiver layer -1"),
        ("depth", [0, 7], "model.layers names receiver layer 7, but the receiver has layers 0 to 4"),
        ("depth", "first:0", "model.layers is 'first:0'"),
        ("depth", "first:99", "model.layers is 'first:99', but the receiver has 5 layers"),
        ("depth", [0, 0], "names a layer twice"),
        ("depth", "some", "model.layers is 'some'"),
        ("depth", "last:-1", "model.layers is 'last:-1'"),
        ("depth", "every:x", "model.layers is 'every:x'"),
        ("depth", [], r"model.layers \[\] and model.layer_map 'depth' leave no layer"),
        (
            "terminal",
            "first:1",
            "model.layers 'first:1' and model.layer_map 'terminal' leave no layer of the receiver's 5",
        ),
        ({}, "all", r"model.layer_map \{\} leave no layer"),
    ],
)
def test_an_impossible_map_is_refused_by_value(layer_map, layers, message):
    with pytest.raises(ValueError, match=message):
        map_layers(layer_map, layers, 5, 3)
