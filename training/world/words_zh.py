"""What things are called in Chinese. The keys are those of `vocabulary.py`; the most usual wording comes first."""

from __future__ import annotations

from training.world.wordings import Wordings

# Measure words (one character each), and the noun that takes them. No noun begins with 大 or 小: those are sizes.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("个", "圆形"), ("个", "圆"), ("个", "圆圈")),
    "square": (("个", "正方形"), ("个", "方形"), ("个", "方块")),
    "triangle": (("个", "三角形"), ("个", "三角")),
    "star": (("颗", "星星"), ("颗个", "五角星"), ("颗", "星")),
    "heart": (("颗个", "爱心"), ("个", "心形"), ("颗", "心"), ("颗", "桃心")),
    "ring": (("个", "圆环"), ("个", "环形"), ("个", "环")),
    "diamond": (("个", "菱形"),),
    "cross": (("个", "十字"), ("个", "十字形")),
    "hexagon": (("个", "六边形"), ("个", "六角形")),
    "arrow": (("个", "箭头"),),
    "sun": (("个轮", "太阳"),),
    "moon": (("个轮弯", "月亮"), ("个轮弯", "弯月"), ("个", "月牙")),
    "cloud": (("朵片", "云"), ("朵", "云朵"), ("朵", "云彩")),
    "tree": (("棵", "树"), ("棵", "树木")),
    "house": (("座栋间", "房子"), ("座栋间", "房屋"), ("座间", "屋子")),
    "car": (("辆", "汽车"), ("辆", "车"), ("辆", "轿车")),
    "boat": (("艘条只", "船"), ("艘条", "帆船"), ("艘条只", "船只")),
    "fish": (("条", "鱼"), ("条", "鱼儿")),
    "bird": (("只", "鸟"), ("只", "鸟儿")),
    "cat": (("只", "猫"), ("只", "猫咪")),
    "flower": (("朵", "花"), ("朵", "花朵"), ("朵", "鲜花"), ("朵", "花儿")),
    "apple": (("个颗", "苹果"),),
    "balloon": (("个只", "气球"),),
    "umbrella": (("把", "雨伞"), ("把", "伞")),
    "cup": (("个只", "杯子"), ("个只", "茶杯"), ("个只", "水杯")),
    "mountain": (("座", "山"), ("座", "山峰"), ("座", "高山")),
    "mushroom": (("个朵", "蘑菇"),),
    "rocket": (("枚个", "火箭"),),
    "butterfly": (("只", "蝴蝶"),),
    "hat": (("顶个", "帽子"), ("顶", "礼帽")),
    "leaf": (("片", "叶子"), ("片", "树叶")),
    "drop": (("颗个", "水滴"), ("颗", "水珠"), ("颗", "雨滴")),
    "bell": (("个只", "铃铛"),),
    "book": (("本", "书"), ("本", "书本")),
    "kite": (("只个", "风筝"),),
    "crown": (("顶个", "皇冠"), ("顶", "王冠")),
}
COLOUR_WORDS = {
    "red": Wordings("红色"),
    "orange": Wordings("橙色", "橘色"),
    "yellow": Wordings("黄色", "黄色", "金黄色", "金色"),
    "green": Wordings("绿色"),
    "cyan": Wordings("青色", "青绿色"),
    "blue": Wordings("蓝色"),
    "purple": Wordings("紫色"),
    "pink": Wordings("粉色", "粉红色"),
    "brown": Wordings("棕色", "褐色", "咖啡色"),
    "black": Wordings("黑色"),
    "white": Wordings("白色"),
    "gray": Wordings("灰色", "灰色", "银色"),
}
# Gold and silver are no plain backgrounds.
BACKGROUND_COLOURS = COLOUR_WORDS | {"yellow": Wordings("黄色"), "gray": Wordings("灰色")}
SHORT_COLOURS = {
    "red": "红",
    "orange": "橙",
    "yellow": "黄",
    "green": "绿",
    "cyan": "青",
    "blue": "蓝",
    "purple": "紫",
    "pink": "粉",
    "brown": "棕",
    "black": "黑",
    "white": "白",
    "gray": "灰",
}
SIZED = {
    "small": Wordings(
        "{colour}的小{noun}", "{colour}小{noun}", "小小的{coloured}", "很小的{coloured}", "小的{coloured}"
    ),
    "medium": Wordings("中等大小的{coloured}", "{colour}的中等大小的{noun}"),
    "big": Wordings(
        "{colour}的大{noun}",
        "{colour}大{noun}",
        "大大的{coloured}",
        "很大的{coloured}",
        "巨大的{coloured}",
        "大的{coloured}",
    ),
}
# Without a colour.
SIZED_ONLY = {
    "small": Wordings("小{noun}", "小小的{noun}", "很小的{noun}"),
    "medium": Wordings("中等大小的{noun}"),
    "big": Wordings("大{noun}", "大大的{noun}", "很大的{noun}", "巨大的{noun}"),
}
UNSIZED = Wordings("{colour}{noun}", "{colour}的{noun}")
UNSIZED_BEFORE_ONE_CHARACTER = Wordings("{colour}的{noun}", "{colour}{noun}")  # 红色的树
NUMBERS = {
    1: Wordings("一", "一", "一", "一", "1"),
    2: Wordings("两", "两", "2"),
    3: Wordings("三", "三", "3"),
    4: Wordings("四", "四", "4"),
}

# How many are drawn when nobody says how many, and how nobody says it.
UNCOUNTED, SOME = 3, "几"

PICTURE = Wordings("", "画面", "图片", "图")
PLACES = {
    "centre": Wordings("中间", "中央", "正中间", "正中央", "中心"),
    "left": Wordings("左边", "左侧", "左面", "左方"),
    "right": Wordings("右边", "右侧", "右面", "右方"),
    "top": Wordings("上方", "上边", "顶部", "上部"),
    "bottom": Wordings("下方", "下边", "底部", "下部"),
    "top left": Wordings("左上角", "左上方"),
    "top right": Wordings("右上角", "右上方"),
    "bottom left": Wordings("左下角", "左下方"),
    "bottom right": Wordings("右下角", "右下方"),
}
# A thing at a place, as a clause and as a thing.
PLACED = Wordings("{place}有{thing}", "{thing}在{place}", "{place}是{thing}", "{thing}，{place}", "{thing}位于{place}")
PLACED_NOUN = Wordings("{place}的{thing}", "位于{place}的{thing}")

# {a} is the first item of the pair, {b} the second; {side} one of the sides below.
SIDES = {
    "left of": Wordings("左边", "左侧", "左面", "左方"),
    "right of": Wordings("右边", "右侧", "右面", "右方"),
    "above": Wordings("上方", "上面", "上边"),
    "below": Wordings("下方", "下面", "下边", "底下"),
    "next to": Wordings("旁边", "边上", "一旁"),
    "inside": Wordings("里面", "中间", "里边", "内部", "当中"),
}
PAIRS = Wordings(
    "{b}{side}有{a}",
    "{a}在{b}{side}",
    "{a}在{b}的{side}",
    "{b}的{side}有{a}",
    "{b}{side}是{a}",
    "{a}位于{b}{side}",
    "{b}的{side}是{a}",
)
PAIR_NOUN = Wordings("{b}{side}的{a}", "在{b}{side}的{a}")
PAIRS_APART = {
    "left of": Wordings("左边是{a}，右边是{b}", "{a}在左，{b}在右", "{a}在左边，{b}在右边", "左边{a}，右边{b}"),
    "right of": Wordings("右边是{a}，左边是{b}", "{a}在右，{b}在左", "{a}在右边，{b}在左边", "右边{a}，左边{b}"),
    "above": Wordings(
        "{b}上有{a}",
        "{b}上的{a}",
        "{a}在{b}上",
        "{a}坐在{b}上",
        "上面是{a}，下面是{b}",
        "{b}上坐着{a}",
        "{a}在上，{b}在下",
        "{a}站在{b}上",
        "坐在{b}上的{a}",
        "{b}上面坐着{a}",
        "{a}在上方，{b}在下方",
    ),
    "below": Wordings("下面是{a}，上面是{b}", "{a}在下，{b}在上", "{a}在下方，{b}在上方"),
    "next to": Wordings("{a}和{b}", "{a}和{b}并排", "{a}与{b}", "{a}跟{b}挨在一起"),
    "inside": Wordings("{b}里有{a}", "{a}在{b}里", "{b}，里面有{a}", "{b}包着{a}", "{b}，中间是{a}"),
}

# A plain background, for a {subject} that is a noun phrase, and for any {subject}.
COLOUR_WITH_NOUN = Wordings(
    "{colour}背景上的{subject}",
    "{colour}背景上有{subject}",
    "{subject}在{colour}背景上",
    "在{colour}背景上有{subject}",
    "{colour}的背景上有{subject}",
    "{colour}背景前的{subject}",
    "{colour}背景下的{subject}",
    "{short}底上的{subject}",
)
COLOUR_WITH_ANY = Wordings(
    "{subject}，{colour}背景",
    "{subject}，背景是{colour}",
    "{colour}背景，{subject}",
    "{subject}，{colour}的背景",
    "背景是{colour}，{subject}",
    "{subject}，背景为{colour}",
    "{subject}，{short}底",
    "{subject}，以{colour}为背景",
    "{colour}的背景上，{subject}",
    "{subject}，{short}色的背景",
    "{short}底，{subject}",
    "{subject}，纯{colour}背景",
)
COLOUR_ALONE = Wordings("{colour}背景", "纯{colour}背景", "只有{colour}背景", "一片{colour}")

# A scenery: where (also "things are there"), when, and what is seen behind.
SCENERY_PLACES = {
    "day": Wordings("蓝天下", "晴朗的天空下", "晴空下", "天空中", "天上", "蓝天上"),
    "sunset": Wordings("夕阳下", "晚霞中", "夕阳中", "落日下"),
    "night": Wordings("星空下", "夜空下", "夜晚的星空下", "夜空中", "太空中", "月夜里"),
    "sea": Wordings("海边", "大海边", "海上", "沙滩上", "海面上", "海里", "水里", "水上"),
    "meadow": Wordings("草地上", "草坪上", "草原上", "草地里", "田野里"),
    "snow": Wordings("雪地里", "雪地上", "雪中"),
    "city": Wordings("城市里", "城市中", "都市里", "城里", "街上", "马路上"),
    "desert": Wordings("沙漠里", "沙漠中", "沙漠上"),
}
SCENERY_TIMES = {
    "day": Wordings("白天", "晴天"),
    "sunset": Wordings("日落时分", "傍晚", "黄昏", "日落时"),
    "night": Wordings("夜晚", "夜里", "晚上"),
    "snow": Wordings("下雪天", "冬天的雪地上"),
}
SCENERY_NOUNS = {
    "day": Wordings("蓝天", "晴朗的天空", "白天的天空"),
    "sunset": Wordings("夕阳", "日落", "晚霞", "黄昏的天空"),
    "night": Wordings("星空", "夜空", "夜晚的星空", "夜晚"),
    "sea": Wordings("大海", "海边", "海洋"),
    "meadow": Wordings("草地", "草坪", "草原"),
    "snow": Wordings("雪地", "雪景", "冬天的雪地"),
    "city": Wordings("城市", "城市天际线", "都市"),
    "desert": Wordings("沙漠", "沙丘"),
}
SCENERY_WITH_NOUN = Wordings(
    "{place}的{subject}", "{place}有{subject}", "{subject}在{place}", "在{place}的{subject}", "{place}，有{subject}"
)
SCENERY_WITH_ANY = Wordings(
    "{subject}，{place}",
    "{place}，{subject}",
    "{subject}，背景是{noun}",
    "{subject}，{noun}背景",
    "{subject}，{noun}",
    "背景是{noun}，{subject}",
    "{subject}，以{noun}为背景",
    "{noun}，{subject}",
)
TIME_WITH_NOUN = Wordings("{time}的{subject}", "{time}有{subject}")
TIME_WITH_ANY = Wordings("{time}，{subject}", "{subject}，{time}")
SCENERY_ALONE = Wordings("{noun}", "{noun}，没有别的东西", "只有{noun}", "一片{noun}的景色", "空旷的{noun}")

STYLES = {
    "outline": Wordings("描边风格", "线描风格", "线稿风格", "带描边", "勾线风格"),
    "pastel": Wordings("柔和色调", "粉彩", "粉彩风格", "淡雅的色调", "粉彩色调"),
    "flat": Wordings("扁平插画", "扁平风格", "扁平化风格", "卡通风格", "卡通"),
}
INTROS = Wordings(
    "画{subject}",
    "图中有{subject}",
    "有{subject}",
    "画面中有{subject}",
    "图片上有{subject}",
    "请画{subject}",
    "一张图片，上面有{subject}",
)

SURFACES = {
    "sign": (("块个", "牌子"), ("块", "招牌"), ("块", "标牌"), ("块", "告示牌")),
    "poster": (("张", "海报"), ("张", "宣传画")),
}
# {one} is "一块" or nothing. Those that name one thing, and those that are clauses.
LETTERING_NOUN = Wordings(
    "{one}写着{text}的{colour}{surface}",
    "{one}印着{text}的{colour}{surface}",
    "{one}写有{text}的{colour}{surface}",
    "{one}带有{text}字样的{colour}{surface}",
    "{one}{colour}的{text}{surface}",
)
LETTERING_CLAUSE = Wordings(
    "{one}{colour}的{surface}，上面写着{text}",
    "{one}{colour}{surface}上写着{text}",
    "{one}{colour}的{surface}上有{kind}{text}",
    "{one}{colour}{surface}，文字是{text}",
    "{text}写在{one}{colour}{surface}上",
    "{one}{colour}的{surface}写着{text}",
)
# Without quotation marks it is lettering only where a word of writing stands right before it.
LETTERING_NOUN_UNQUOTED = Wordings(
    "{one}写着{text}的{colour}{surface}", "{one}印着{text}的{colour}{surface}", "{one}写有{text}的{colour}{surface}"
)
LETTERING_CLAUSE_UNQUOTED = Wordings(
    "{one}{colour}的{surface}，上面写着{text}",
    "{one}{colour}{surface}上写着{text}",
    "{one}{colour}的{surface}上有{kind}{text}",
    "{one}{colour}{surface}，文字是{text}",
    "{one}{colour}的{surface}写着{text}",
)
KINDS_OF_TEXT = {
    "word": Wordings("文字", "单词", "字母"),
    "letter": Wordings("字母", "文字"),
    "number": Wordings("数字"),
    "code": Wordings("文字", "字样"),
}
QUOTATION_MARKS = Wordings("“{}”", '"{}"', '"{}"', "「{}」", "‘{}’", "『{}』")
# Right behind these one word of Latin letters or digits is lettering.
WRITING = ("写着", "写有", "印着", "印有", "写上", "文字是", "文字", "单词", "字母", "数字")


def can_go_unquoted(text: str) -> bool:
    """Whether `text` is lettering without quotation marks, too; a number might be taken for a count."""
    return not text[0].isdigit()


FULL_STOP, COMMA = "。", "，"

WORD_TABLES = (
    NOUNS,
    COLOUR_WORDS,
    SHORT_COLOURS,
    SIZED,
    UNSIZED,
    UNSIZED_BEFORE_ONE_CHARACTER,
    NUMBERS,
    SOME,
    PICTURE,
    PLACES,
    PLACED,
    PLACED_NOUN,
    SIDES,
    PAIRS,
    PAIR_NOUN,
    PAIRS_APART,
    COLOUR_WITH_NOUN,
    COLOUR_WITH_ANY,
    COLOUR_ALONE,
    SCENERY_PLACES,
    SCENERY_TIMES,
    SCENERY_NOUNS,
    SCENERY_WITH_NOUN,
    SCENERY_WITH_ANY,
    TIME_WITH_NOUN,
    TIME_WITH_ANY,
    SCENERY_ALONE,
    STYLES,
    INTROS,
    SURFACES,
    LETTERING_NOUN,
    LETTERING_CLAUSE,
    KINDS_OF_TEXT,
    FULL_STOP,
    COMMA,
)
