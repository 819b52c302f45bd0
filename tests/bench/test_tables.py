from bench.tables import aligned, markdown

HEADS, ROWS = ["who", "ms", "verdict"], [["stock", "1401.3", "no"], ["exact", "752.4", "yes"]]


def test_cells_stand_below_each_other():
    assert aligned(HEADS, ROWS, left=(0, 2)).splitlines() == [
        "who        ms  verdict",
        "stock  1401.3  no",
        "exact   752.4  yes",
    ]


def test_on_a_page_there_are_bars():
    assert markdown(HEADS, ROWS[:1]) == "| who | ms | verdict |\n| --- | --- | --- |\n| stock | 1401.3 | no |"
