import copy
import pickle
from dataclasses import dataclass

import pandas as pd
import pytest

from lens_linear.tables import Table


@dataclass(frozen=True, eq=False)
class Example(Table):
    n: int

    def to_dataframe(self):
        return pd.DataFrame({"x": range(self.n), "y": [i * i for i in range(self.n)], "t": "<b>"})


def test_a_result_can_be_used_as_its_frame():
    table = Example(4)
    assert list(table) == ["x", "y", "t"] and len(table) == 4 and "y" in table
    assert table["y"].sum() == 14 and table[table["x"] > 1]["y"].tolist() == [4, 9]
    assert table.loc[2, "y"] == 4 and table.sort_values("y").iloc[0]["x"] == 0
    assert list(table.columns) == ["x", "y", "t"] and table.shape == (4, 3)
    assert table.x.tolist() == [0, 1, 2, 3] and table.n == 4
    assert bool(Example(0))  # a result is a thing, also when its table is empty


def test_the_frame_is_a_copy():
    table = Example(3)
    frame = table.to_dataframe()
    frame.loc[0, "y"] = 99
    assert table["y"].tolist() == [0, 1, 4]


def test_missing_names_and_protocols_are_refused_clearly():
    with pytest.raises(AttributeError, match=r"'z'; its columns are \['x', 'y', 't'\]"):
        _ = Example(2).z
    with pytest.raises(KeyError):
        _ = Example(2)["z"]
    assert copy.deepcopy(Example(2)).n == pickle.loads(pickle.dumps(Example(2))).n == 2


def test_html_shows_tokens_and_does_not_run_them():
    html = Example(1)._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html
