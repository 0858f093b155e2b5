import pytest

from ptexport.runtime import Engine

TEXTS = ["the film was great", "", "slow", "the story was very very slow and dull " * 3, "Владивосток"]


@pytest.mark.parametrize("bundle", ["llama_bundle", "bert_bundle"])
def test_predict_keeps_the_order_and_the_labels(bundle: str, request: pytest.FixtureRequest) -> None:
    engine = Engine.open(request.getfixturevalue(bundle))
    together = engine.predict(TEXTS)
    assert [prediction.label for prediction in together] == [engine.predict([text])[0].label for text in TEXTS]
    for prediction in together:
        assert list(prediction.probabilities) == engine.labels == ["positive", "negative"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert prediction.label == max(prediction.probabilities, key=lambda label: prediction.probabilities[label])
    assert len({prediction.probabilities["positive"] for prediction in together}) == len(TEXTS)
