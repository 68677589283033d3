"""Chinese: word order, measure words, and modifiers with 的.

The grammar is standard Mandarin in simplified characters:

- All modifiers precede the noun. Places, superlatives and negations have 的 (最大的圆形); colour and pattern are
  joined to the noun without it (红色条纹圆形), so that they cannot belong to a later noun.
- Numerals and ordinals have the measure word 个 (两个圆形, 第二个圆形). A noun without a determiner is a single
  object; several are 所有 (all), 那些 (the) or 两个 (both).
- Determiners follow the place, directly before their noun: 正方形左边的所有圆形 are all circles, whereas
  所有正方形左边的圆形 might be left of all squares.
- A chain of two relations names the landmark first, and continues with 它 ("it"): in
  五角星上方的正方形，它左边的圆形 only the square can be above the star; in 五角星上方的正方形左边的圆形 the circle
  might be.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...phrases import Phrase
from .grammar import ONE, Determiner, Language


SHAPES = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "cross": "十字形",
    "diamond": "菱形",
}
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "orange": "橙色",
    "white": "白色",
    "black": "黑色",
}
TEXTURES = {"plain": "纯色", "striped": "条纹", "dotted": "波点"}
DETERMINERS = {"one": "", "all": "所有", "the": "那些", "both": "两个"}
ORDINALS = {"second": "第二个", "third": "第三个"}
SIDES = {"left": "左边", "right": "右边", "top": "上边", "bottom": "下边"}
REGIONS = {
    "on the left": "左边",
    "on the right": "右边",
    "at the top": "上方",
    "at the bottom": "下方",
    "in the top left corner": "左上角",
    "in the top right corner": "右上角",
    "in the bottom left corner": "左下角",
    "in the bottom right corner": "右下角",
}


@dataclass(frozen=True)
class Chinese:
    """The grammar, with the words that have synonyms.

    Args:
        thing: the noun for an object of any shape.
        relations: a noun of place for each relation.
        superlatives: a modifier for each.
        is_not: begins a negation.
    """

    thing: str
    relations: Mapping[str, str]
    superlatives: Mapping[str, str]
    is_not: str

    def attribute(self, determiner: Determiner, noun: Phrase) -> str:
        """`红色圆形`, `所有红色圆形`."""
        return f"{DETERMINERS[determiner]}{self._name(noun)}"

    def absolute(self, determiner: Determiner, noun: Phrase, region: str) -> str:
        """`左边的红色圆形`, `左上角的两个圆形`."""
        return f"{REGIONS[region]}的{self.attribute(determiner, noun)}"

    def relation(self, determiner: Determiner, noun: Phrase, relation: str, anchor: Phrase) -> str:
        """`红色正方形左边的圆形`, `红色正方形左边的那些圆形`."""
        return f"{self._name(anchor)}{self.relations[relation]}的{self.attribute(determiner, noun)}"

    def ordinal(self, noun: Phrase, ordinal: str, side: str) -> str:
        """`从左边数第二个红色圆形`."""
        return f"从{SIDES[side]}数{ORDINALS[ordinal]}{self._name(noun)}"

    def superlative(self, noun: Phrase, degree: str) -> str:
        """`最大的红色圆形`, `最左边的红色圆形`."""
        return f"{self.superlatives[degree]}的{self._name(noun)}"

    def not_coloured(self, noun: Phrase, colour: str) -> str:
        """`不是红色的圆形`."""
        return f"{self.is_not}{COLOURS[colour]}的{self._name(noun)}"

    def not_shaped(self, noun: Phrase, shape: str) -> str:
        """`不是圆形的红色物体`."""
        return f"{self.is_not}{SHAPES[shape]}的{self._name(noun)}"

    def two_hop(self, noun: Phrase, first: str, middle: Phrase, second: str, anchor: Phrase) -> str:
        """`五角星上方的正方形，它左边的圆形`."""
        landmark = self.relation(ONE, middle, second, anchor)
        return f"{landmark}，它{self.relations[first]}的{self._name(noun)}"

    def _name(self, noun: Phrase) -> str:
        """`红色条纹圆形`: colour, pattern, noun."""
        shape = self.thing if noun.word == "object" else SHAPES[noun.word]
        return f"{COLOURS.get(noun.colour or '', '')}{TEXTURES.get(noun.adjective or '', '')}{shape}"


CHINESE = Language(
    usual=Chinese(
        thing="物体",
        relations={"left of": "左边", "right of": "右边", "above": "上方", "below": "下方"},
        superlatives={
            "leftmost": "最左边",
            "rightmost": "最右边",
            "highest": "最上方",
            "lowest": "最下方",
            "largest": "最大",
            "smallest": "最小",
        },
        is_not="不是",
    ),
    synonyms=Chinese(
        thing="图形",
        relations={"left of": "左侧", "right of": "右侧", "above": "上面", "below": "下面"},
        superlatives={
            "leftmost": "最靠左",
            "rightmost": "最靠右",
            "highest": "最靠上",
            "lowest": "最靠下",
            "largest": "尺寸最大",
            "smallest": "尺寸最小",
        },
        is_not="并非",
    ),
)
