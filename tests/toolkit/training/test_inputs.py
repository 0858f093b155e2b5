"""From data as people have it to a complete configuration; and what is refused before the model is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import LABELS, Quiet

from ptexport.runtime.errors import DataError, ModelError, OutputError, PtexportError, TemplateError, VerbalizerError
from ptexport.runtime.rows.columns import Columns
from ptexport.toolkit.run.config import TrainConfig, TrainSettings
from ptexport.toolkit.run.run import METRICS
from ptexport.toolkit.training.inputs import Inputs, check_out, read_inputs

COLUMNS = Columns(text="{title}", label="class")


class Choices(Quiet):
    """Remembers what was chosen."""

    def __init__(self) -> None:
        self.choices: list[str] = []

    def choice(self, message: str) -> None:
        self.choices.append(message)


def write(path: Path, labels: list[str], *, n_rows: int = 40) -> Path:
    """Write rows with the first label twice as often as the others."""
    turn = [labels[0], *labels]
    lines = [f"great story {i};{turn[i % len(turn)]}\n" for i in range(n_rows)]
    path.write_text("title;class\n" + "".join(lines), encoding="utf-8")
    return path


def read(model: Path, data: object, progress: Quiet | None = None, **options: object) -> Inputs:
    config = TrainConfig(
        model=str(model),
        data=str(data),
        **{"columns": COLUMNS, "settings": TrainSettings(), **options},  # type: ignore[arg-type]
    )
    return read_inputs(config, progress or Quiet())


def test_labels_come_from_the_rows_most_frequent_first(llama: Path, tmp_path: Path) -> None:
    told = Choices()
    inputs = read(llama, write(tmp_path / "rows.csv", ["story", "bad", "Great"]), told)
    assert inputs.verbalizer.labels == ("story", "bad", "Great")
    assert inputs.verbalizer.words == (("story",), ("bad",), ("great",))
    assert told.choices == [
        "data rows.csv: CSV with semicolons, text from 'title', label from 'class'",
        "labels: story (20 rows), bad (10 rows), Great (10 rows)",
        "head words: since the model has a language-model head",
    ]
    assert (inputs.config.template, inputs.config.encoder) == ("[P*3] {text} [P*3]", "lstm")


def test_labels_that_are_not_words_get_a_linear_head(llama: Path, tmp_path: Path) -> None:
    told = Choices()
    inputs = read(llama, write(tmp_path / "rows.csv", ["great", "delivery problem"]), told)
    assert (
        told.choices[-1] == "head linear: since 'delivery problem' is not a single token, so it cannot be a label word"
    )
    assert (inputs.config.head, inputs.config.template) == ("linear", "[P*4] {text}")
    assert (inputs.verbalizer.labels, inputs.verbalizer.words) == (("great", "delivery problem"), None)


def test_given_labels_that_are_not_words_are_refused_with_words_that_are(llama: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", ["great", "terribly"])
    with pytest.raises(VerbalizerError, match=r"'terribly' is \d tokens .*, need 1; .*, or use --head linear"):
        read(llama, rows, labels="great,terribly")
    assert read(llama, rows, labels="great,terribly", head="linear").verbalizer.words is None
    chosen = read(llama, rows, labels="great,terribly=bad|terrible").verbalizer
    assert chosen.words == (("great",), ("bad", "terrible"))
    assert chosen.spec == "great=great,terribly=bad|terrible"


def test_names_of_numbers(llama: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", ["1", "2"])
    columns = Columns(text="{title}", label="class", label_names={"1": "great", "2": "bad"})
    assert read(llama, rows, columns=columns).verbalizer.labels == ("great", "bad")
    assert {row.label for row in read(llama, rows, columns=columns).data.train} == {"great", "bad"}


@pytest.mark.parametrize(
    ("architecture", "options", "head", "template"),
    [
        ("llama", {}, "words", "[P*3] {text} [P*3]"),
        ("bert", {}, "words", "[P*3] {text} [P*3] [MASK]"),
        ("bert", {"head": "linear"}, "linear", "[P*4] {text}"),
        ("llama", {"method": "prompt-tuning"}, "words", "[P*8] {text}"),
        ("bert", {"method": "p-tuning-v2"}, "words", "[P*8] {text} [MASK]"),
        ("llama", {"method": "lora"}, "words", "{text} :"),
        ("bert", {"method": "pet"}, "words", "{text} : [MASK]"),
        ("bert", {"method": "fine-tune"}, "linear", "{text}"),
        ("llama", {"method": "search"}, "words", "[P*3] {text} [P*3]"),
    ],
)
def test_the_template_fits_model_head_and_method(
    architecture: str,
    options: dict[str, str],
    head: str,
    template: str,
    model_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    config = read(model_of(architecture), write(tmp_path / "rows.csv", ["great", "bad"]), **options).config
    assert (config.head, config.template) == (head, template)


def test_pairs_and_choices(llama: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,text_b,label\n" + "".join(f"a{i},b,great\nc{i},d,bad\n" for i in range(10)))
    assert read(llama, rows, columns=Columns()).config.template == "[P*3] {text} [P*3] {text_b} [P*3]"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "a{i}", "choices": ["b", "c"], "label": 0}}\n' for i in range(10)))
    with pytest.raises(TemplateError, match=r"rows with 'choices' need one of your own; give --template"):
        read(llama, rows, columns=Columns())


def test_a_model_without_a_head_gets_a_linear_one(bert: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    inputs = read(model, write(tmp_path / "rows.csv", ["great", "bad"]))
    assert (inputs.config.head, inputs.verbalizer.words) == ("linear", None)
    for options, advice in (({"head": "words"}, "--head linear"), ({"method": "pet"}, "another model or method")):
        with pytest.raises(ModelError, match=f"BertModel has no language-model head, .*; use {advice}"):
            read(model, tmp_path / "rows.csv", **options)


@pytest.mark.parametrize(("n_rows", "epochs", "patience"), [(30, 30, 12), (300, 10, 4), (1000, 3, 2), (4000, 3, 2)])
def test_few_rows_get_more_epochs(n_rows: int, epochs: int, patience: int, llama: Path, tmp_path: Path) -> None:
    settings = read(llama, write(tmp_path / "rows.csv", ["great", "bad"], n_rows=n_rows)).config.settings
    assert (settings.epochs, settings.patience) == (epochs, patience)
    given = read(llama, tmp_path / "rows.csv", settings=TrainSettings(epochs=7)).config.settings
    assert (given.epochs, given.patience) == (7, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([f"complaint {i}" for i in range(40)], "got 39 different labels in 40 rows, such as .* looks like free text"),
        (["great", "x" * 100], "looks like free text; name another column with --columns label=NAME, or list"),
        (["great"], "every label is 'great', need two or more different ones"),
        (["great", ""], "line 4: no label, need one in every row"),
    ],
)
def test_columns_that_are_no_labels(labels: list[str], message: str, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(llama, write(tmp_path / "rows.csv", labels))


def test_what_fits_nothing_is_refused(llama: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", ["great", "bad"])
    refused: list[tuple[dict[str, object], type[PtexportError], str]] = [
        ({"template": "{text"}, TemplateError, "lone"),
        ({"method": "manual"}, TemplateError, "manual measures one of your own; give --template"),
        ({"labels": LABELS}, DataError, r"line 2: got label 'great', need one of \['positive', 'negative'\]"),
        ({"model": "nothing/here"}, ModelError, "not in the cache"),
        ({"head": "linear", "method": "pet"}, PtexportError, "head linear: pet has words"),
    ]
    for options, error, message in refused:
        model = options.pop("model", llama)
        with pytest.raises(error, match=message):
            read(Path(str(model)), rows, **options)


def test_the_built_in_data_has_its_own_columns(llama: Path) -> None:
    with pytest.raises(DataError, match="cities: has the columns text and label only; leave out the options"):
        read(llama, "cities")


def test_the_output_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    check_out(out, resume=False, force=False)
    out.mkdir()
    with pytest.raises(OutputError, match="exists already"):
        check_out(out, resume=False, force=False)
    (out / METRICS).write_text("{}")
    check_out(out, resume=True, force=False)
    check_out(out, resume=False, force=True)
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(OutputError, match="left by an interrupted run; continue with --resume"):
        check_out(tmp_path / "new", resume=False, force=False)
