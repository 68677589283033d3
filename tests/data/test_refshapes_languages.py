"""RefShapes in several languages: the same meanings, in words that a native writes, each with one reading."""

import re

import numpy as np
import pytest
from datasets import concatenate_datasets, load_from_disk
from PIL import Image

from crossvlt_hf.cli import main
from crossvlt_hf.data import load_data
from crossvlt_hf.data.refshapes import (
    EXTRAS,
    FAMILIES,
    LANGUAGES,
    SPLITS,
    load_refshapes,
    make_example,
    make_scene,
    vocabulary,
)
from crossvlt_hf.data.refshapes.dataset import Drawn
from crossvlt_hf.data.refshapes.expressions import (
    DETERMINERS,
    DIRECTIONS,
    QUERIES,
    RANKS,
    REGIONS,
    RELATIONS,
    SUPERLATIVES,
    Absolute,
    Attribute,
    Combinations,
    Denial,
    Negation,
    Ordinal,
    Phrase,
    Plural,
    Relation,
    Superlative,
    TwoHop,
    denials,
)
from crossvlt_hf.data.refshapes.families import RELATIONAL
from crossvlt_hf.data.refshapes.scenes import COLOURS, SHAPES, Thing
from crossvlt_hf.data.refshapes.vocabulary import split_words
from crossvlt_hf.processing_crossvlt import CrossVLTProcessor
from crossvlt_hf.training.build import build_tokenizer, refshapes_tokenizer
from crossvlt_hf.training.config import ModelOptions


OTHERS = tuple(language for language in LANGUAGES if language != "en")
NINE = (*FAMILIES, *EXTRAS)
CIRCLE, SQUARE, TRIANGLE, STAR, CROSS, DIAMOND = map(Phrase, SHAPES)
OBJECT, RED_OBJECT = Phrase(), Phrase(colour="red")
RED_CIRCLE, RED_SQUARE, RED_DIAMOND = (Phrase(shape, "red") for shape in ("circle", "square", "diamond"))


def families_of(split):
    return RELATIONAL if split == "unseen_relations" else NINE


def say(query, language, synonyms=False) -> str:
    return query.say(LANGUAGES[language].grammar(synonyms))


def all_queries():
    """Queries of all families over some scenes: all of them, or many where there are thousands."""
    for index in range(12):
        things = make_example("unseen_pairs" if index % 2 else "test", index, side=32, count=(5, 8)).scene.things
        rng = np.random.default_rng(index)
        for family in NINE:
            queries = QUERIES[family](things)
            chosen = rng.permutation(len(queries))[:250]
            yield from ((things, queries[number]) for number in chosen)


@pytest.fixture(scope="module")
def queries():
    return list(all_queries())


# ---- the same meanings


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_and_targets_are_the_same(split):
    for index, family in enumerate(families_of(split)):
        first, *others = (make_example(split, index, side=32, family=family, language=each) for each in LANGUAGES)
        for other in others:
            assert np.array_equal(other.scene.image, first.scene.image)
            assert (other.targets, other.family) == (first.targets, first.family)
            assert (other.counterpart is None) == (first.counterpart is None)
            assert other.expression != first.expression


def test_several_expressions_of_a_scene_are_the_same():
    for index in range(12):
        families = ["no_target", "plural", NINE[index % len(NINE)]]
        found = [make_scene("train", index, families=families, side=32, language=language) for language in LANGUAGES]
        assert len({tuple(example.targets for example in examples) for examples in found}) == 1
        assert all(len({example.expression for example in examples}) == 3 for examples in found)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", ["test", "paraphrases"])
def test_every_expression_is_verified(split, language):
    """All programs that a text says select its targets."""
    for index, family in enumerate(NINE):
        example = make_example(split, index, side=32, family=family, language=language)
        things = example.scene.things
        said = [q for q in QUERIES[family](things) if say(q, language, split == "paraphrases") == example.expression]
        assert said
        assert all(query.select(things) == set(example.targets) for query in said)


@pytest.mark.parametrize("language", LANGUAGES)
def test_different_meanings_have_different_texts(queries, language):
    """So no text has two meanings, whatever the scene."""
    for synonyms in (False, True):
        meanings: dict[str, object] = {}
        for _, query in queries:
            meaning = query.query if isinstance(query, Denial) else query
            assert meanings.setdefault(say(query, language, synonyms), meaning) == meaning


@pytest.mark.parametrize("language", LANGUAGES)
def test_paraphrases_have_words_that_training_never_has(queries, language):
    usual = {word for _, query in queries for word in split_words(say(query, language))}
    for _, query in queries:
        words = split_words(say(query, language, synonyms=True))
        assert bool(set(words) - usual) == query.has_synonyms
        if not query.has_synonyms:
            assert words == split_words(say(query, language))


def test_a_denial_differs_in_one_word_of_the_meaning(queries):
    def parts(query):
        return [word for part in vars(query).values() for word in (part if isinstance(part, Phrase) else [part])]

    found = [query for _, query in queries if isinstance(query, Denial)]
    assert len(found) > 500
    for denial in found:
        (pair,) = [
            pair for pair in zip(parts(denial.query), parts(denial.counterpart), strict=True) if pair[0] != pair[1]
        ]
        if pair[0] in REGIONS:
            assert sum(one != other for one, other in zip(REGIONS[pair[0]], REGIONS[pair[1]], strict=True)) == 1


def test_german_articles_and_endings_agree_with_the_replaced_word():
    things = (
        Thing("circle", "red", "plain", 0.2, 0.5, 0.1, 0.0),
        Thing("diamond", "blue", "plain", 0.7, 0.5, 0.1, 0.0),
    )
    found = {say(denial, "de") for denial in denials(Attribute(RED_CIRCLE), things)}
    assert {"der blaue Kreis", "die rote Raute", "das rote Quadrat"} <= found


# ---- golden sentences

GOLDEN = [
    (Attribute(RED_CIRCLE), "der rote Kreis", "红色圆形"),
    (Attribute(RED_SQUARE), "das rote Quadrat", "红色正方形"),
    (Attribute(RED_DIAMOND), "die rote Raute", "红色菱形"),
    (Attribute(Phrase("triangle", "green", "striped")), "das gestreifte grüne Dreieck", "绿色条纹三角形"),
    (Attribute(Phrase("star", "blue", "dotted")), "der gepunktete blaue Stern", "蓝色波点五角星"),
    (Attribute(Phrase("cross", "purple")), "das lila Kreuz", "紫色十字形"),
    (Attribute(Phrase("cross", "orange")), "das orangefarbene Kreuz", "橙色十字形"),
    (Attribute(Phrase("square", "yellow")), "das gelbe Quadrat", "黄色正方形"),
    (Attribute(Phrase("diamond", "black")), "die schwarze Raute", "黑色菱形"),
    (Attribute(Phrase(adjective="striped")), "das gestreifte Objekt", "条纹物体"),
    (Absolute(RED_CIRCLE, "on the left"), "der rote Kreis auf der linken Seite", "左边的红色圆形"),
    (Absolute(DIAMOND, "on the right"), "die Raute auf der rechten Seite", "右边的菱形"),
    (Absolute(STAR, "at the top"), "der Stern in der oberen Hälfte", "上方的五角星"),
    (Absolute(STAR, "at the bottom"), "der Stern in der unteren Hälfte", "下方的五角星"),
    (Absolute(OBJECT, "in the top left corner"), "das Objekt in der oberen linken Ecke", "左上角的物体"),
    (Absolute(CIRCLE, "in the top right corner"), "der Kreis in der oberen rechten Ecke", "右上角的圆形"),
    (Absolute(CIRCLE, "in the bottom left corner"), "der Kreis in der unteren linken Ecke", "左下角的圆形"),
    (Absolute(CIRCLE, "in the bottom right corner"), "der Kreis in der unteren rechten Ecke", "右下角的圆形"),
    (Relation(CIRCLE, "left of", RED_SQUARE), "der Kreis links vom roten Quadrat", "红色正方形左边的圆形"),
    (Relation(CIRCLE, "right of", RED_DIAMOND), "der Kreis rechts von der roten Raute", "红色菱形右边的圆形"),
    (
        Relation(RED_SQUARE, "above", Phrase("star", "white", "dotted")),
        "das rote Quadrat über dem gepunkteten weißen Stern",
        "白色波点五角星上方的红色正方形",
    ),
    (Relation(DIAMOND, "below", Phrase("star", "purple")), "die Raute unter dem lila Stern", "紫色五角星下方的菱形"),
    (Ordinal(RED_CIRCLE, "second", "left"), "der zweite rote Kreis von links", "从左边数第二个红色圆形"),
    (Ordinal(SQUARE, "third", "right"), "das dritte Quadrat von rechts", "从右边数第三个正方形"),
    (Ordinal(DIAMOND, "second", "top"), "die zweite Raute von oben", "从上边数第二个菱形"),
    (Ordinal(RED_OBJECT, "third", "bottom"), "das dritte rote Objekt von unten", "从下边数第三个红色物体"),
    (Superlative(Phrase("circle", "green"), "largest"), "der größte grüne Kreis", "最大的绿色圆形"),
    (Superlative(DIAMOND, "smallest"), "die kleinste Raute", "最小的菱形"),
    (Superlative(RED_SQUARE, "leftmost"), "das rote Quadrat ganz links", "最左边的红色正方形"),
    (Superlative(CIRCLE, "rightmost"), "der Kreis ganz rechts", "最右边的圆形"),
    (Superlative(CIRCLE, "highest"), "der Kreis ganz oben", "最上方的圆形"),
    (Superlative(CIRCLE, "lowest"), "der Kreis ganz unten", "最下方的圆形"),
    (Negation(CIRCLE, RED_OBJECT), "der Kreis, der nicht rot ist", "不是红色的圆形"),
    (Negation(DIAMOND, Phrase(colour="purple")), "die Raute, die nicht lila ist", "不是紫色的菱形"),
    (Negation(RED_OBJECT, CIRCLE), "das rote Objekt, das kein Kreis ist", "不是圆形的红色物体"),
    (Negation(OBJECT, DIAMOND), "das Objekt, das keine Raute ist", "不是菱形的物体"),
    (Plural("all", Attribute(RED_CIRCLE)), "alle roten Kreise", "所有红色圆形"),
    (Plural("the", Attribute(RED_SQUARE)), "die roten Quadrate", "那些红色正方形"),
    (Plural("both", Attribute(RED_DIAMOND)), "beide roten Rauten", "两个红色菱形"),
    (Plural("both", Attribute(Phrase("cross", "purple"))), "beide lila Kreuze", "两个紫色十字形"),
    (Plural("all", Attribute(OBJECT)), "alle Objekte", "所有物体"),
    (Plural("the", Absolute(STAR, "on the left")), "die Sterne auf der linken Seite", "左边的那些五角星"),
    (
        Plural("all", Relation(TRIANGLE, "left of", RED_DIAMOND)),
        "alle Dreiecke links von der roten Raute",
        "红色菱形左边的所有三角形",
    ),
    (
        TwoHop(CIRCLE, "left of", SQUARE, "above", Phrase("star", "red")),
        "der Kreis links von demjenigen Quadrat, das über dem roten Stern liegt",
        "红色五角星上方的正方形，它左边的圆形",
    ),
    (
        TwoHop(RED_DIAMOND, "below", RED_DIAMOND, "right of", CIRCLE),
        "die rote Raute unter derjenigen roten Raute, die rechts vom Kreis liegt",
        "圆形右边的红色菱形，它下方的红色菱形",
    ),
    (
        TwoHop(STAR, "above", STAR, "left of", CROSS),
        "der Stern über demjenigen Stern, der links vom Kreuz liegt",
        "十字形左边的五角星，它上方的五角星",
    ),
]
SYNONYMS = [
    (Attribute(RED_OBJECT), "die rote Figur", "红色图形"),
    (Plural("all", Attribute(RED_OBJECT)), "alle roten Figuren", "所有红色图形"),
    (Relation(OBJECT, "left of", RED_CIRCLE), "die Figur zur Linken des roten Kreises", "红色圆形左侧的图形"),
    (Relation(CIRCLE, "right of", RED_SQUARE), "der Kreis zur Rechten des roten Quadrats", "红色正方形右侧的圆形"),
    (Relation(CIRCLE, "above", RED_DIAMOND), "der Kreis oberhalb der roten Raute", "红色菱形上面的圆形"),
    (Relation(STAR, "below", CROSS), "der Stern unterhalb des Kreuzes", "十字形下面的五角星"),
    (Superlative(CIRCLE, "largest"), "der riesigste Kreis", "尺寸最大的圆形"),
    (Superlative(RED_DIAMOND, "smallest"), "die winzigste rote Raute", "尺寸最小的红色菱形"),
    (Superlative(CIRCLE, "leftmost"), "der Kreis am weitesten links", "最靠左的圆形"),
    (Superlative(CIRCLE, "rightmost"), "der Kreis am weitesten rechts", "最靠右的圆形"),
    (Superlative(CIRCLE, "highest"), "der Kreis am weitesten oben", "最靠上的圆形"),
    (Superlative(OBJECT, "lowest"), "die Figur am weitesten unten", "最靠下的图形"),
    (Negation(CIRCLE, RED_OBJECT), "der Kreis, der alles andere als rot ist", "并非红色的圆形"),
    (Negation(RED_OBJECT, CIRCLE), "die rote Figur, die alles andere als ein Kreis ist", "并非圆形的红色图形"),
    (Negation(RED_OBJECT, DIAMOND), "die rote Figur, die alles andere als eine Raute ist", "并非菱形的红色图形"),
    (
        TwoHop(CIRCLE, "left of", STAR, "above", TRIANGLE),
        "der Kreis zur Linken desjenigen Sterns, der oberhalb des Dreiecks liegt",
        "三角形上面的五角星，它左侧的圆形",
    ),
    (
        TwoHop(CIRCLE, "below", DIAMOND, "right of", DIAMOND),
        "der Kreis unterhalb derjenigen Raute, die zur Rechten der Raute liegt",
        "菱形右侧的菱形，它下面的圆形",
    ),
]


@pytest.mark.parametrize(("query", "german", "chinese"), GOLDEN)
def test_golden(query, german, chinese):
    assert (say(query, "de"), say(query, "zh")) == (german, chinese)


@pytest.mark.parametrize(("query", "german", "chinese"), SYNONYMS)
def test_golden_synonyms(query, german, chinese):
    assert (say(query, "de", synonyms=True), say(query, "zh", synonyms=True)) == (german, chinese)


GENDERS = {"der": "Kreis Stern", "das": "Quadrat Dreieck Kreuz Objekt", "die": "Raute Figur"}


def test_german_articles_agree_everywhere(queries):
    """In the singular, every article and relative pronoun in the nominative has the gender of its noun."""
    article = {noun: article for article, nouns in GENDERS.items() for noun in nouns.split()}
    for _, query in queries:
        for synonyms in (False, True):
            text = say(query, "de", synonyms)
            noun = next(word for word in re.findall(r"\w+", text) if word[0].isupper())
            if noun in article:
                assert text.split()[0] == article[noun], text
            for named, pronoun in re.findall(r"(\w+), (\w+)", text):
                base = named if named in article else re.sub("e?s$", "", named)
                assert pronoun == article[base], text


# ---- words and tokens


def test_vocabularies_are_small():
    assert {language: len(vocabulary(language)) for language in LANGUAGES} == {"en": 65, "de": 99, "zh": 58}
    assert max(len(vocabulary(language)) for language in LANGUAGES) < 150


ENGLISH_WORDS = """
a above all anything at below biggest black blue both bottom bottommost but circle circles corner
cross crosses diamond diamonds dotted from furthest green highest in is largest left leftmost
littlest lowest not object objects of on orange over plain purple red right rightmost second
smallest square squares star stars striped that the thing things third to top topmost triangle
triangles under which white yellow
"""


def test_english_ids_stay():
    """Saved models depend on them."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {word: number for number, word in enumerate([*special, *ENGLISH_WORDS.split()])}
    tokenizer = build_tokenizer(ModelOptions(tokenizer="refshapes"))
    assert tokenizer.get_vocab() == ids
    assert tokenizer("The CÍRCLE")["input_ids"] == [2, ids["the"], ids["circle"], 3]
    every = build_tokenizer(ModelOptions(tokenizer="refshapes-all")).get_vocab()
    assert {word: every[word] for word in ids} == ids  # a model of one language can go on with several


def test_unknown_tokenizers():
    with pytest.raises(
        ValueError, match=r"`model.tokenizer` must be one of refshapes, refshapes-de, .*got 'refshapes-fr'"
    ):
        build_tokenizer(ModelOptions(tokenizer="refshapes-fr"))


TOKENIZERS = {
    "refshapes": ["en"],
    "refshapes-de": ["de"],
    "refshapes-zh": ["zh"],
    "refshapes-all": ["en", "de", "zh"],
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_token_is_known(queries, tmp_path, name):
    build_tokenizer(ModelOptions(tokenizer=name)).save_pretrained(tmp_path)
    tokenizer = build_tokenizer(ModelOptions(tokenizer=str(tmp_path)))
    for language in TOKENIZERS[name]:
        for synonyms in (False, True):
            texts = sorted({say(query, language, synonyms) for _, query in queries[::3]})
            for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
                assert tokenizer.unk_token_id not in ids, text
                assert len(ids) == len(split_words(text)) + 2


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_token_of_every_split_is_known(split, language):
    tokenizer = refshapes_tokenizer([language])
    for number, family in enumerate(families_of(split)):
        example = make_example(split, 20 + number, side=32, family=family, language=language)
        assert tokenizer.unk_token_id not in tokenizer(example.expression)["input_ids"]
        assert set(split_words(example.expression)) <= set(vocabulary(language))


def longest_of(family):
    """Queries among which are the longest of a family in any language."""
    nouns = [Phrase(shape, "red") for shape in (*SHAPES, "object")]
    anchors = [Phrase(shape, "red", "striped") for shape in SHAPES]
    shapes = [noun for noun in nouns if noun.word != "object"]
    negations = [*Combinations(Negation, [OBJECT, *map(Phrase, SHAPES)], [Phrase(colour=c) for c in COLOURS])]
    made = {
        "attribute": Combinations(Attribute, [*anchors, Phrase("object", "red", "striped")]),
        "absolute": Combinations(Absolute, nouns, REGIONS),
        "relation": Combinations(Relation, nouns, RELATIONS, anchors),
        "ordinal": Combinations(Ordinal, nouns, RANKS, DIRECTIONS),
        "superlative": Combinations(Superlative, nouns, SUPERLATIVES),
        "negation": [*negations, *Combinations(Negation, [RED_OBJECT], [*map(Phrase, SHAPES)])],
        "two_hop": Combinations(TwoHop, nouns[:3], RELATIONS, shapes, RELATIONS, anchors),
    }
    made["plural"] = Combinations(Plural, DETERMINERS, list(made["relation"]))
    return made[family]


@pytest.mark.parametrize(
    ("language", "usual", "usual_two_hop", "synonym", "synonym_two_hop"),
    [("en", 11, 16, 13, 20), ("de", 11, 19, 13, 19), ("zh", 17, 27, 17, 27)],
)
def test_longest_expressions(queries, language, usual, usual_two_hop, synonym, synonym_two_hop):
    """In tokens, with [CLS] and [SEP]: `model.max_length` must be at least that (docs/data.md)."""
    for synonyms, six, two in ((False, usual, usual_two_hop), (True, synonym, synonym_two_hop)):

        def length(query, synonyms=synonyms):
            return len(split_words(say(query, language, synonyms))) + 2

        longest = {family: max(map(length, longest_of(family))) for family in (*FAMILIES, "two_hop", "plural")}
        assert max(longest[family] for family in FAMILIES) == six
        assert longest["two_hop"] == two
        assert longest["plural"] <= 19
        for _, query in queries:
            family = query.counterpart.family if isinstance(query, Denial) else query.family
            assert length(query) <= longest[family]


# ---- options


@pytest.mark.parametrize("language", ["fr", "EN", "german", None, 3])
def test_unknown_languages(language):
    message = rf"`language` must be one of en, de, zh, got '?{language}"
    for call in (
        lambda: make_example("train", 0, language=language),
        lambda: make_scene("train", 0, families=["plural"], language=language),
        lambda: load_refshapes("train", scenes=1, language=language),
        lambda: load_data("refshapes", "train", scenes=1, language=language),
        lambda: vocabulary(language),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_unknown_languages_on_the_command_line(capsys):
    assert main(["evaluate", "--data", "refshapes", "--split", "test", "--option", "language=fr"]) == 2
    assert "`language` must be one of en, de, zh, got 'fr'" in capsys.readouterr().err


@pytest.mark.parametrize("language", OTHERS)
def test_rows_join_shuffle_and_are_saved(language, tmp_path):
    english, other = (load_data("refshapes", "test", scenes=3, side=32, language=each) for each in ("en", language))
    assert other["ref_id"] == english["ref_id"]
    assert set(other["split"]) == {"test"}
    rows = [*english, *other]
    concatenate_datasets([english, other]).select(range(5, -1, -1)).save_to_disk(tmp_path / "saved")
    for found, row in zip(load_from_disk(tmp_path / "saved"), rows[::-1], strict=True):
        assert found["expressions"] == row["expressions"]
        assert np.array_equal(found["mask"], row["mask"])
    for one, same in zip(english, other, strict=True):
        assert one["expressions"] != same["expressions"]
        assert np.array_equal(one["image"], same["image"])
        assert np.array_equal(one["mask"], same["mask"])


def test_data_sets_saved_before_there_were_languages_are_english():
    """Their cells have these fields, and no other: with another Arrow type, `datasets` could not load them."""
    cell = {"split": "test", "scene": 4, "side": 32, "seed": 3, "expressions": 1, "families": None}
    cell |= {"fewest": 3, "most": 6, "number": 0, "changed": None}
    assert [field.name for field in Drawn.pa_type] == list(cell)
    expected = load_data("refshapes", "test", scenes=5, side=32, seed=3)[4]
    for part in ("expressions", "mask"):
        assert np.array_equal(Drawn(part).decode_example(cell), expected[part])
    stored = load_data("refshapes", "test", scenes=5, side=32, seed=3).with_format("arrow")[4]
    assert stored["expressions"][0].as_py() == cell


@pytest.mark.parametrize("language", LANGUAGES)
def test_rows_of_a_language_are_read_by_the_processor(language):
    dataset = load_data(name="refshapes", split="test", scenes=2, side=32, language=language)
    processor = CrossVLTProcessor.from_tokenizer(refshapes_tokenizer([language]), image_size=32, max_length=27)
    row = dataset[1]
    inputs = processor(images=row["image"], text=row["expressions"][0], return_tensors="pt")
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"]
    assert inputs["attention_mask"].sum() == len(split_words(row["expressions"][0])) + 2


@pytest.mark.parametrize("language", OTHERS)
def test_the_command_writes_a_language(language, tmp_path):
    folder, sheet = tmp_path / "scenes", tmp_path / "sheet.png"
    options = ["--scenes", "2", "--side", "32", "--split", "test", "--language", language]
    assert main(["refshapes", str(folder), *options, "--sheet", str(sheet)]) == 0
    drawn = load_data("refshapes", "test", scenes=2, side=32, language=language)
    assert [row["expressions"] for row in load_data(str(folder), "test")] == [row["expressions"] for row in drawn]
    assert Image.open(sheet).size[0] > 32


def test_cells_of_a_language_survive_changes():
    dataset = load_data("refshapes", "test", scenes=2, side=32, language="de")
    changed = dataset.map(lambda row: {"mask": 1 - row["mask"]})
    assert changed["expressions"] == dataset["expressions"]
