"""Names of eighty characters leave a figure readable."""

import html

import torch

import lens_linear as ll
from lens_linear.plots.style import shortened

NAME = "a_statistic_of_mine_whose_name_has_more_than_eighty_characters_and_no_space_in_it"


def test_a_long_word_is_cut_in_its_middle_and_no_entity_is():
    assert shortened("short words stay", 8) == "short words stay"
    assert shortened("a&lt;" * 20 + " end", 9) == "a&lt;a&lt;…a&lt;a&lt; end"
    assert len(html.unescape(shortened("x" * 80, 28))) <= 28


def test_titles_of_panels_and_axes_fit_beside_one_another():
    model = ll.toy_model(n_layers=2, seed=0)
    model.cfg.model_name = (
        "organisation-of-a-name/a-model-whose-name-has-eighty-characters-instruct-v2"
    )
    rows = torch.randint(64, (40, 12), generator=torch.Generator().manual_seed(0))
    own = {f"s{index}": lambda _: 1.0 for index in range(7)} | {NAME: lambda _: 2.0}
    profile = ll.linearity_profile(model, rows, statistics=own)
    whole = profile.plot()
    panel = [one.text for one in whole.layout.annotations if "a_stat" in one.text]
    assert len(panel) == 1
    assert all(len(html.unescape(line)) <= 28 for line in panel[0].split("<br>"))
    assert model.cfg.model_name in whole.layout.title.text.replace(
        "<br>", ""
    )  # whole, and no space in it
    alone = profile.plot(scores=[NAME]).layout.yaxis.title.text
    assert all(len(html.unescape(word)) <= 30 for word in alone.split(" "))
