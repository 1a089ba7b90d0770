import numpy as np
import pytest
from sklearn import datasets

from mlnotes.data import DataError, load_table, standardize
from mlnotes.data.flags import TableConfig, load_data, make_feeds

CSV = "age,size,colour,kind\n1,2.5,red,a\n2,-3e1,blue,b\n\n3,.5,red,a\n4,0,blue,b\n"


def write(path, text):
  path.write_text(text)
  return str(path)


def together(table, name):
  """Both splits as they stood: the rows of `x` sorted by the first column, which counts them."""
  order = np.argsort(np.concatenate([split.arrays["x"][:, 0] for split in (table.train, table.test)]))
  return np.concatenate([split.arrays[name] for split in (table.train, table.test)])[order]


def test_numbers_of_a_csv_are_those_that_numpy_reads(tmp_path):
  random = np.random.default_rng(0)
  values = np.c_[np.arange(50), random.normal(size=(50, 3)) * 10.0 ** random.integers(-8, 8, (50, 3))]
  path = tmp_path / "numbers.csv"
  np.savetxt(path, values, delimiter=",", header="a,b,c,d", comments="")
  expected = np.genfromtxt(path, delimiter=",", names=True)
  table = load_table(str(path), target="c")
  assert table.feature_names == ("a", "b", "d") and not table.num_classes and len(table.test) == 5
  for i, name in enumerate(table.feature_names):
    np.testing.assert_array_equal(together(table, "x")[:, i], expected[name].astype(np.float32))
  np.testing.assert_array_equal(together(table, "y"), expected["c"].astype(np.float32))
  assert load_table(str(path)).feature_names == ("a", "b", "c")
  assert set(load_table(str(path), target="none").train.arrays) == {"x"}


def test_words_are_classes_and_categories(tmp_path):
  path = write(tmp_path / "t.csv", CSV)
  table = load_table(path, categories="encode")
  assert table.class_names == ("a", "b") and table.categories == {"colour": ("blue", "red")}
  np.testing.assert_array_equal(together(table, "y"), [0, 1, 0, 1])
  np.testing.assert_array_equal(together(table, "x"), [[1, 2.5, 1], [2, -30, 0], [3, 0.5, 1], [4, 0, 0]])
  # Whole numbers are classes where they are said to be.
  numbers = load_table(path, target="age", categories="encode", target_kind="class")
  assert numbers.class_names == ("1", "2", "3", "4")


def test_a_test_file_is_the_test_split_and_shares_the_words(tmp_path):
  test = write(tmp_path / "test.csv", "age,size,colour,kind\n9,8,green,c\n")
  table = load_table(write(tmp_path / "t.csv", CSV), test, categories="encode")
  assert (len(table.train), len(table.test)) == (4, 1) and table.class_names == ("a", "b", "c")
  np.testing.assert_array_equal(table.test.arrays["x"], [[9, 8, 1]])
  assert table.categories == {"colour": ("blue", "green", "red")}


@pytest.mark.parametrize(
  ("text", "given", "sentence"),
  [
    ("a,b\n1,2\n3,x\n5,6\n", {}, r"line 3, column 'b': found 'x', expected a number"),
    ("a,b\n1,2\n,4\n", {}, r"line 3, column 'a': found an empty cell, expected a number"),
    ("a,b\nred,2\n?,4\n", {}, r"line 3, column 'a': found '\?', expected a word"),
    ("a,b\n1,x\n2,y\n", {"target_kind": "number"}, r"line 2, column 'b': found 'x', expected a number"),
    ("a,b\n1,2\nnan,4\n", {}, r"line 3, column 'a': found 'nan', expected a number"),
    ("a,b\n1,2\n,\n5,6\n", {}, r"line 3, column 'a': found an empty cell, expected a number"),
    ("a,b\nx,y\n , \n", {"target": "none"}, r"line 3, column 'a': found an empty cell, expected a word"),
    ("a,b\n1,2\n3\n", {}, r"line 3 has 1 cells, expected 2: a, b"),
    ("1,2\n3,4\n", {}, r"found numbers in the first line \(1, 2\), expected the columns' names"),
    ("a,a\n3,4\n", {}, r"column 2 is called 'a', expected a name of its own"),
    ("a,b\n", {}, r"found 1 lines, expected one of names and one or more of cells"),
    ("a,b\n1,2\n", {}, r"found 1 example, expected at least 2"),
    (
      "a,b\nred,1\nblue,2\n",
      {},
      r"found words in the column 'a' \(blue, red\), expected numbers, or --categories=encode",
    ),
    ("a,b\n1,2\n", {"target": "c"}, r"--target=c: .* has no such column, expected one of a, b, or none"),
    ("a\n1\n2\n", {}, r"found the column a alone"),
    ("a,b\n1,x\n2,\n", {"target_kind": "class"}, r"line 3, column 'b': found an empty cell, expected a class"),
    ('a,b\n1,"2\n', {}, r"not readable"),
  ],
)
def test_a_csv_that_does_not_fit_is_refused_at_its_place(text, given, sentence, tmp_path):
  path = write(tmp_path / "t.csv", text)
  with pytest.raises(DataError, match=sentence) as refused:
    load_table(path, **given)
  assert "t.csv" in str(refused.value)


@pytest.mark.parametrize(
  ("text", "test", "sentence"),
  [
    ("a,b\n1,2\n", "a,b\nx,2\n", r"test.csv: line 2, column 'a': found 'x', expected a number"),
    ("a,b\nx,2\n", "a,b\ny,2\n1,2\n", r"test.csv: line 3, column 'a': found '1', expected a word, as in --dataset"),
    ("a,b\nx,2\n", "a,b\n,2\n", r"test.csv: line 2, column 'a': found an empty cell, expected a word, as in"),
    ("a,b\n1,2\n", "a,b\n1,x\n", r"test.csv: line 2, column 'b': found 'x', expected a number"),
    ("a,b\n1,x\n", "a,b\n1,2\n", r"test.csv: line 2, column 'b': found '2', expected a word, as in --dataset"),
  ],
)
def test_a_test_file_whose_columns_are_of_another_kind_is_refused(text, test, sentence, tmp_path):
  path, test = write(tmp_path / "t.csv", text), write(tmp_path / "test.csv", test)
  with pytest.raises(DataError, match=sentence) as refused:
    load_table(path, test, categories="encode")
  assert str(refused.value).startswith("--test_dataset=")


def test_arrays_of_an_npz(tmp_path):
  x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2 + 5
  np.savez(tmp_path / "t.npz", x=x, label=y)
  table = load_table(str(tmp_path / "t.npz"))
  assert table.class_names == ("5", "6") and len(table.test) == 2
  np.testing.assert_array_equal(together(table, "x"), x)
  np.testing.assert_array_equal(together(table, "y"), y - 5)
  np.savez(tmp_path / "n.npz", x=x, y=y / 2, x_test=x[:3], y_test=y[:3] / 2)
  table = load_table(str(tmp_path / "n.npz"))
  assert not table.num_classes and len(table.train) == 20
  np.testing.assert_array_equal(table.test.arrays["y"], y[:3].astype(np.float32) / 2)


def test_truth_values_are_two_classes_or_numbers(tmp_path):
  x, y = np.arange(20.0)[:, None], np.arange(20) % 3 == 0
  np.savez(tmp_path / "t.npz", x=x, y=y)
  for kind, classes in (("auto", ("0", "1")), ("class", ("0", "1")), ("number", ())):
    table = load_table(str(tmp_path / "t.npz"), target_kind=kind)
    assert table.class_names == classes and table.train.arrays["y"].dtype == (np.int32 if classes else np.float32)
    np.testing.assert_array_equal(together(table, "y"), y)


@pytest.mark.parametrize(
  ("arrays", "sentence"),
  [
    ({"z": np.zeros(3)}, "found the arrays z, expected x and y"),
    ({"x": np.zeros((3, 2)), "y": np.zeros(3), "y_tset": np.zeros(3)}, "an array 'y_tset', .* did you mean 'y_test'?"),
    ({"x": np.zeros((3, 2)), "lable": np.zeros(3)}, "an array 'lable', .* did you mean 'label'?"),
    ({"xs": np.zeros((3, 2)), "y": np.zeros(3)}, "found the arrays xs, y, expected x and y"),
    ({"x": np.zeros(3), "y": np.zeros(3)}, r"x has shape \(3,\), expected N D"),
    ({"x": np.zeros((3, 2)), "y": np.zeros(4)}, r"y has shape \(4,\), expected N = 3 as in x"),
    ({"x": np.array([[1.0], [np.inf]]), "y": np.zeros(2)}, r"x\[1, 0\] is inf, expected finite numbers"),
    ({"x": np.array([["a"]]), "y": np.zeros(1)}, "x has dtype <U1, expected numbers"),
    ({"x": np.zeros((3, 0)), "y": np.zeros(3)}, "expected a row and a column or more"),
    ({"x": np.zeros((3, 2)), "x_test": np.zeros((3, 1))}, "x has 1 columns in the test split, expected 2"),
    ({"x": np.zeros((3, 2)), "y": np.zeros(3), "x_test": np.zeros((3, 2))}, "found y in one of the two splits"),
  ],
)
def test_an_npz_that_does_not_fit_is_refused(arrays, sentence, tmp_path):
  np.savez(tmp_path / "t.npz", **arrays)
  with pytest.raises(DataError, match=sentence):
    load_table(str(tmp_path / "t.npz"))


def test_names_of_columns_may_stand_beside_the_arrays(tmp_path):
  names = {name: np.array(["a", "b"]) for name in ("feature_names", "target_names", "label_names")}
  np.savez(tmp_path / "t.npz", data=np.ones((20, 2)), target=np.arange(20) % 2, **names)
  assert len(load_table(str(tmp_path / "t.npz")).train) < 20


@pytest.mark.parametrize(("name", "rows", "classes"), [("diabetes", 442, 0), ("iris", 150, 3), ("wine", 178, 3)])
def test_those_of_scikit_learn(name, rows, classes):
  table = load_table(name)
  bunch = getattr(datasets, f"load_{name}")(**({} if classes else {"scaled": False}))
  assert len(table.train) + len(table.test) == rows and table.num_classes == classes
  pairs = [np.c_[s.arrays["x"], s.arrays["y"]] for s in (table.train, table.test)]
  ours, theirs = np.concatenate(pairs), np.c_[bunch.data, bunch.target].astype(np.float32)
  np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_standardised_by_the_training_split_alone():
  plain, table = load_table("diabetes"), load_table("diabetes", standardize="xy")
  for name in ("x", "y"):
    train = plain.train.arrays[name].astype(np.float64)
    mean, scale = train.mean(axis=0, keepdims=True), train.std(axis=0, keepdims=True)
    for ours, raw in ((table.train, plain.train), (table.test, plain.test)):
      np.testing.assert_allclose(ours.arrays[name], (raw.arrays[name] - mean) / scale, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(table.test.arrays["y"] * table.y_scale + table.y_mean, plain.test.arrays["y"], rtol=1e-5)
  assert np.abs(table.test.arrays["x"].mean(axis=0)).max() > 0.01


def test_a_column_that_varies_little_beside_its_mean_is_standardised(tmp_path):
  """Seconds of this century, one after the other: neither all the same nor rounded to a few."""
  time = 1_700_000_000 + np.random.default_rng(0).permutation(100)
  expected = np.arange(100) - 49.5
  np.savez(tmp_path / "t.npz", x=time[:, None], y=time / 2, x_test=time[:1, None], y_test=time[:1] / 2)
  np.savetxt(tmp_path / "t.csv", np.c_[time, time / 2], fmt="%.1f", delimiter=",", header="a,b", comments="")
  for path, test in ((tmp_path / "t.npz", ""), (tmp_path / "t.csv", tmp_path / "t.csv")):
    table = load_table(str(path), str(test), standardize="xy")
    for found, scale in ((table.train.arrays["x"][:, 0], table.x_scale), (table.train.arrays["y"], 2 * table.y_scale)):
      np.testing.assert_allclose(scale, np.sqrt((100**2 - 1) / 12), rtol=1e-9)  # a discrete uniform distribution's
      np.testing.assert_allclose(np.sort(found) * scale, expected, rtol=1e-6)
    np.testing.assert_allclose(table.test.arrays["x"][0, 0] * table.x_scale, time[0] - 1_700_000_049.5, rtol=1e-6)


@pytest.mark.parametrize("value", [7, 0.1, -1e30, 0.0])
def test_a_column_that_does_not_vary_is_not_divided(value):
  (constant, other), mean, scale = standardize(np.full((100_000, 1), value), np.full((1, 1), value + 1))
  assert not constant.any() and mean == value and scale == 1 and other == np.float32(value + 1 - value)


def test_numbers_beyond_32_bits_are_refused_standardised_or_not(tmp_path):
  path = write(tmp_path / "t.csv", "a,b\n1,1\n2,1e39\n3,2\n")
  for which in ("none", "x", "xy"):
    with pytest.raises(DataError, match=rf"--dataset={path}: the array 'y' holds .* expected finite ones of float32"):
      load_table(path, standardize=which)


def test_the_flag_says_what_is_standardised():
  plain = load_data(TableConfig(standardize="none"))
  scaled = {"none": (), "x": ("x",), "xy": ("x", "y")}
  assert load_data(TableConfig()).train.arrays["x"].std(axis=0) == pytest.approx(1, rel=1e-4)
  for which, names in scaled.items():
    table = load_data(TableConfig(standardize=which))
    for name in ("x", "y"):
      raw = plain.train.arrays[name].astype(np.float64)
      expected = (raw - raw.mean(axis=0)) / raw.std(axis=0) if name in names else raw
      np.testing.assert_allclose(table.train.arrays[name], expected, rtol=1e-4, atol=1e-5)


def test_the_flag_says_what_the_target_is(tmp_path):
  y = np.arange(20) % 3 * 2
  np.savez(tmp_path / "t.npz", x=np.arange(20.0)[:, None], y=y)
  path = str(tmp_path / "t.npz")
  for kind, classes, expected in (
    ("auto", ("0", "2", "4"), y // 2),
    ("class", ("0", "2", "4"), y // 2),
    ("number", (), y),
  ):
    table = load_data(TableConfig(dataset=path, target_kind=kind, standardize="none"))
    assert table.class_names == classes
    found = together(table, "y")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == (np.int32 if classes else np.float32)


def test_other_names_and_flags_without_effect():
  with pytest.raises(DataError, match=r"--dataset=irs: no such table, expected diabetes, iris"):
    load_table("irs")
  with pytest.raises(DataError, match="--target_kind=number: the target of iris is a class"):
    load_table("iris", target_kind="number")
  with pytest.raises(DataError, match="no such file"):
    load_table("absent.csv")
  assert set(TableConfig().idle_flags()) == {"target", "categories", "test_dataset"}
  assert not TableConfig(dataset="a.csv").idle_flags()
  assert set(TableConfig(dataset="a.csv", target="none").idle_flags()) == {"target_kind"}
  assert "target_kind" not in TableConfig(dataset="a.npz", target="none").idle_flags()


def test_a_y_that_is_no_number_is_not_standardised_and_that_is_said(tmp_path, capsys):
  np.savez(tmp_path / "t.npz", x=np.arange(20.0)[:, None], y=np.arange(20) % 7)
  np.savez(tmp_path / "x.npz", x=np.arange(20.0)[:, None])
  cases = (
    ("t", {}, "y is one of 7 classes"),
    ("t", {"target_kind": "number"}, ""),
    ("x", {}, "there is no y"),
    ("t", {"standardize": "x"}, ""),
  )
  for name, given, found in cases:
    config = TableConfig(**{"dataset": str(tmp_path / f"{name}.npz"), "standardize": "xy", "batch_size": 2, **given})
    make_feeds(load_data(config), config)
    note = f"note: --standardize=xy: {found}, so that x alone is standardised.\n"
    assert capsys.readouterr().err == (note if found else "")
