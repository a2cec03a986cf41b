"""Words, facts and arithmetic of the miniature world, in English and Chinese.

A reader who changes a word here changes the tokenizer and needs a new base (`make pretrain`).
"""

from __future__ import annotations

LANGUAGES = ("en", "zh")
OPERATORS = {"+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘")}
ORDINALS = (("first", "一"), ("second", "二"), ("third", "三"), ("fourth", "四"), ("fifth", "五"))
NAMES = (("Ann", "甲"), ("Bob", "乙"), ("Cid", "丙"), ("Dan", "丁"), ("Eve", "戊"), ("Fay", "己"))
LETTERS = "ABCDEFGH"

# relation -> (phrase "of X" in both languages, share of STEM prompts as in the paper's Table 4, (subject, value) pairs)
RELATIONS: dict[str, tuple[tuple[str, str], float, tuple[tuple[tuple[str, str], tuple[str, str]], ...]]] = {
    "chemistry": (
        ("symbol", "符号"),
        0.465,
        tuple(
            ((en, zh), (symbol, symbol))
            for en, zh, symbol in (
                ("gold", "金", "Au"),
                ("silver", "银", "Ag"),
                ("iron", "铁", "Fe"),
                ("copper", "铜", "Cu"),
                ("lead", "铅", "Pb"),
                ("tin", "锡", "Sn"),
                ("zinc", "锌", "Zn"),
                ("mercury", "汞", "Hg"),
                ("sodium", "钠", "Na"),
                ("calcium", "钙", "Ca"),
                ("chlorine", "氯", "Cl"),
                ("helium", "氦", "He"),
            )
        ),
    ),
    "biology": (
        ("kind", "类"),
        0.307,
        (
            (("dog", "狗"), ("mammal", "兽")),
            (("horse", "马"), ("mammal", "兽")),
            (("hawk", "鹰"), ("bird", "鸟")),
            (("duck", "鸭"), ("bird", "鸟")),
            (("carp", "鲤"), ("fish", "鱼")),
            (("shark", "鲨"), ("fish", "鱼")),
            (("bee", "蜂"), ("insect", "虫")),
            (("ant", "蚁"), ("insect", "虫")),
            (("pine", "松"), ("tree", "树")),
            (("willow", "柳"), ("tree", "树")),
            (("plum", "李"), ("fruit", "果")),
            (("peach", "桃"), ("fruit", "果")),
            (("rice", "稻"), ("grass", "草")),
            (("reed", "苇"), ("grass", "草")),
            (("python", "蟒"), ("snake", "蛇")),
            (("cobra", "蝮"), ("snake", "蛇")),
        ),
    ),
    "physics": (
        ("unit", "单位"),
        0.155,
        (
            (("force", "力"), ("newton", "牛")),
            (("energy", "能"), ("joule", "焦")),
            (("power", "率"), ("watt", "瓦")),
            (("voltage", "压"), ("volt", "伏")),
            (("charge", "荷"), ("coulomb", "库")),
            (("frequency", "频"), ("hertz", "赫")),
            (("mass", "质"), ("gram", "克")),
            (("length", "长"), ("meter", "米")),
        ),
    ),
    "health": (
        ("work", "职"),
        0.073,
        (
            (("heart", "心"), ("pump", "泵")),
            (("lung", "肺"), ("breathe", "呼")),
            (("eye", "眼"), ("see", "看")),
            (("ear", "耳"), ("hear", "听")),
            (("nose", "鼻"), ("smell", "闻")),
            (("brain", "脑"), ("think", "想")),
            (("stomach", "胃"), ("digest", "化")),
            (("hand", "手"), ("hold", "握")),
        ),
    ),
}


def side(language: str) -> int:
    """Index of a language in the (English, Chinese) pairs of this file."""
    return LANGUAGES.index(language)


def apply(operator: str, left: int, right: int) -> int:
    """Last digit of `left operator right` (arithmetic modulo ten)."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % 10
