"""Gibberish, loops, drifted and copied probes earn nothing; ordinary and foreign text passes."""

from hypothesis import given
from hypothesis import strategies as st

from ares_stream.probes.composition import TaxonomyComposer
from ares_stream.probes.screening import (
    CharacterModel,
    Clusters,
    NearCopies,
    cosine,
    is_on_topic,
    is_repetitive,
    word_counts,
)
from ares_stream.probes.taxonomy import load_taxonomy


def default_texts() -> list[str]:
    taxonomy = load_taxonomy()
    space, composer = taxonomy.space(), TaxonomyComposer(taxonomy)
    return [
        composer.compose(space.ids(int(number)), 1)[-1].content for number in space.numbers[::61]
    ]


def test_gibberish_is_told_from_ordinary_text() -> None:
    model = CharacterModel(default_texts())
    assert model.is_gibberish("xqzj vvkp wwrq zzxj qqpv kjxz wvqz jxqk")
    assert model.is_gibberish(
        "]]]{{ ;;== @@## describing.\\ + similarlyNow oppositeley.]( Me giving**ONE"
    )
    assert not model.is_gibberish(
        "Could you tell me how people usually repair an old bicycle chain?"
    )
    assert not model.is_gibberish(
        "My grandmother's recipe for plum cake needs three eggs and patience."
    )
    assert not model.is_gibberish("ok")


def test_a_foreign_script_is_not_gibberish_for_its_letters() -> None:
    model = CharacterModel(default_texts())
    assert not model.is_gibberish("Как починить старую велосипедную цепь дома самому")
    assert not model.is_gibberish("どうやって自転車のチェーンを直しますか教えてください")


def test_loops_are_repetitive() -> None:
    assert is_repetitive("help me " * 40)
    assert not is_repetitive(
        "Could you tell me how people usually repair an old bicycle chain?" * 2
    )


def test_a_paraphrase_must_keep_a_word_of_its_topic() -> None:
    assert is_on_topic("Where does PHISHING begin?", ("phishing", "password"))
    assert is_on_topic("about self-harm", ("self-harm",))
    assert not is_on_topic("A poem about the sea", ("phishing", "password"))
    assert is_on_topic("anything", ())


def test_near_copies_are_found_and_the_oldest_forgotten() -> None:
    copies = NearCopies(limit=0.9, capacity=2)
    text = "please explain in detail how one repairs an old bicycle chain at home"
    assert copies.add(text)
    assert not copies.add(text + " now")
    assert copies.add("a wholly different subject, such as baking bread for a feast")
    assert copies.add("and a third one about the history of paper mills")
    assert copies.add(text)


def test_clusters_count_unlike_texts() -> None:
    clusters = Clusters(limit=0.7)
    assert clusters.add("alpha beta gamma delta")
    assert not clusters.add("alpha beta gamma epsilon")
    assert clusters.add("one two three four")
    assert len(clusters) == 2


@given(st.text(max_size=80), st.text(max_size=80))
def test_cosine_is_a_symmetric_share(first: str, second: str) -> None:
    one, two = word_counts(first), word_counts(second)
    assert 0 <= cosine(one, two) <= 1 + 1e-9
    assert cosine(one, two) == cosine(two, one)
    assert not one or abs(cosine(one, one) - 1) < 1e-9
