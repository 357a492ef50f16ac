from mixtune.identity import canonical, digest, generator, make_id, seed, unit_interval


def test_key_order_does_not_matter_and_values_do():
    assert digest({"a": 1, "b": [1.5]}) == digest({"b": [1.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert canonical({"b": 1, "a": "é"}) == '{"a":"é","b":1}'


def test_kinds_of_ids_differ():
    assert make_id("train", {"x": 1}) != make_id("answer", {"x": 1})
    assert make_id("train", {"x": 1}) == "60210c72dec1bc58"  # a stored id must stay what it is


def test_seeds_go_by_name():
    assert seed(1, "order", "fpb") == seed(1, "order", "fpb")
    others = {seed(1, "order", "fpb"), seed(2, "order", "fpb"), seed(1, "init", "fpb")}
    assert len(others | {seed(1, "order", "headline")}) == 4
    assert 0 <= seed(1, "x") < 2**63


def test_generators_repeat():
    first, second = generator(3, "order", "a"), generator(3, "order", "a")
    assert first.permutation(50).tolist() == second.permutation(50).tolist()


def test_unit_interval_spreads():
    values = [unit_interval("t", str(i)) for i in range(2000)]
    assert 0 <= min(values) < 0.01 < 0.99 < max(values) < 1
    assert abs(sum(values) / 2000 - 0.5) < 0.03
