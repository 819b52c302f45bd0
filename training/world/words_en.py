"""What things are called in English. The keys are those of `vocabulary.py`; the most usual wording comes first."""

from __future__ import annotations

from training.world.wordings import Wordings

# Singular and plural.
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("disc", "discs"), ("disk", "disks"), ("dot", "dots"), ("ball", "balls")),
    "square": (("square", "squares"),),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"), ("heart shape", "heart shapes")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses"), ("diamond shape", "diamond shapes")),
    "cross": (("cross", "crosses"), ("plus", "pluses"), ("plus sign", "plus signs")),
    "hexagon": (("hexagon", "hexagons"),),
    "arrow": (("arrow", "arrows"),),
    "sun": (("sun", "suns"),),
    "moon": (("moon", "moons"), ("crescent moon", "crescent moons"), ("crescent", "crescents")),
    "cloud": (("cloud", "clouds"),),
    "tree": (("tree", "trees"),),
    "house": (("house", "houses"), ("home", "homes"), ("cottage", "cottages")),
    "car": (("car", "cars"), ("automobile", "automobiles")),
    "boat": (
        ("boat", "boats"),
        ("sailboat", "sailboats"),
        ("ship", "ships"),
        ("sailing boat", "sailing boats"),
        ("yacht", "yachts"),
    ),
    "fish": (("fish", "fish"), ("fish", "fishes")),
    "bird": (("bird", "birds"), ("birdie", "birdies")),
    "cat": (("cat", "cats"), ("kitty", "kitties"), ("kitten", "kittens"), ("kitty cat", "kitty cats")),
    "flower": (("flower", "flowers"), ("blossom", "blossoms"), ("bloom", "blooms")),
    "apple": (("apple", "apples"),),
    "balloon": (("balloon", "balloons"),),
    "umbrella": (("umbrella", "umbrellas"), ("parasol", "parasols")),
    "cup": (("cup", "cups"), ("mug", "mugs"), ("teacup", "teacups")),
    "mountain": (("mountain", "mountains"), ("peak", "peaks")),
    "mushroom": (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    "rocket": (("rocket", "rockets"), ("spaceship", "spaceships"), ("rocket ship", "rocket ships")),
    "butterfly": (("butterfly", "butterflies"),),
    "hat": (("hat", "hats"),),
    "leaf": (("leaf", "leaves"),),
    "drop": (("drop", "drops"), ("water drop", "water drops"), ("raindrop", "raindrops"), ("droplet", "droplets")),
    "bell": (("bell", "bells"),),
    "book": (("book", "books"),),
    "kite": (("kite", "kites"),),
    "crown": (("crown", "crowns"),),
}
COLOUR_WORDS = {
    "red": Wordings("red", "red", "scarlet"),
    "orange": Wordings("orange"),
    "yellow": Wordings("yellow", "yellow", "golden", "gold"),
    "green": Wordings("green"),
    "cyan": Wordings("cyan", "turquoise", "teal", "aqua"),
    "blue": Wordings("blue"),
    "purple": Wordings("purple", "violet"),
    "pink": Wordings("pink"),
    "brown": Wordings("brown"),
    "black": Wordings("black"),
    "white": Wordings("white"),
    "gray": Wordings("gray", "grey", "silver"),
}
# Gold and silver are no plain backgrounds.
BACKGROUND_COLOURS = COLOUR_WORDS | {"yellow": Wordings("yellow"), "gray": Wordings("gray", "grey")}
SIZE_WORDS = {
    "small": Wordings("small", "little", "tiny"),
    "medium": Wordings("medium-sized", "medium"),
    "big": Wordings("big", "large", "huge", "giant"),
}
NUMBERS = {
    1: Wordings("one", "1", "a single"),
    2: Wordings("two", "2"),
    3: Wordings("three", "3"),
    4: Wordings("four", "4"),
}
GROUPS = Wordings("{number} {things}", "a group of {number} {things}", "exactly {number} {things}")

# How many are drawn when nobody says how many, and how nobody says it.
UNCOUNTED = 3
SOME = Wordings("{things}", "some {things}", "several {things}", "a few {things}")

# Where a thing is: in a sentence, and as one remark among others.
PLACES = {
    "centre": Wordings("in the center", "in the middle", "in the centre", "at the center", "at the centre"),
    "left": Wordings("on the left", "on the left side", "at left", "to the left", "at the left", "at the left edge"),
    "right": Wordings(
        "on the right", "on the right side", "at right", "to the right", "at the right", "at the right edge"
    ),
    "top": Wordings(
        "at the top", "at top", "near the top", "at the upper edge", "at the top edge", "in the upper part"
    ),
    "bottom": Wordings(
        "at the bottom", "at bottom", "near the bottom", "at the lower edge", "at the bottom edge", "in the lower part"
    ),
    "top left": Wordings(
        "in the top left corner",
        "in the upper left corner",
        "at the top left",
        "in the top left",
        "in the upper left",
        "in the top-left corner",
        "top left",
    ),
    "top right": Wordings(
        "in the top right corner",
        "in the upper right corner",
        "at the top right",
        "in the top right",
        "in the upper right",
        "in the top-right corner",
        "top right",
    ),
    "bottom left": Wordings(
        "in the bottom left corner",
        "in the lower left corner",
        "at the bottom left",
        "in the bottom left",
        "in the lower left",
        "in the bottom-left corner",
        "bottom left",
    ),
    "bottom right": Wordings(
        "in the bottom right corner",
        "in the lower right corner",
        "at the bottom right",
        "in the bottom right",
        "in the lower right",
        "in the bottom-right corner",
        "bottom right",
    ),
}
PLACE_TAGS = {
    "centre": Wordings("centered", "center", "centre", "middle"),
    "left": Wordings("left", "left side"),
    "right": Wordings("right", "right side"),
    "top": Wordings("top", "at the top"),
    "bottom": Wordings("bottom", "at the bottom"),
    "top left": Wordings("top left", "top left corner", "top-left corner", "upper left", "upper left corner"),
    "top right": Wordings("top right", "top right corner", "top-right corner", "upper right", "upper right corner"),
    "bottom left": Wordings(
        "bottom left", "bottom left corner", "bottom-left corner", "lower left", "lower left corner"
    ),
    "bottom right": Wordings(
        "bottom right", "bottom right corner", "bottom-right corner", "lower right", "lower right corner"
    ),
}
PLACED = Wordings(
    "{thing} {place}", "{thing} {place}", "{place}, {thing}", "{place} there {be} {thing}", "{place} {be} {thing}"
)

PLACED_BRIEFLY = Wordings("{thing} {place}", "{place}, {thing}")

# {a} is the first item of the pair, {b} the second.
PAIRS = {
    "left of": Wordings(
        "{a} left of {b}",
        "{a} to the left of {b}",
        "{a} on the left of {b}",
        "{a} on the left and {b} on the right",
        "{b} with {a} on its left",
        "{a} on the left side of {b}",
        "{a} on the left, {b} on the right",
        "on the left {a}, on the right {b}",
        "to the left of {b} is {a}",
    ),
    "right of": Wordings(
        "{a} right of {b}",
        "{a} to the right of {b}",
        "{a} on the right of {b}",
        "{a} on the right and {b} on the left",
        "{b} with {a} on its right",
        "{a} on the right side of {b}",
        "{a} on the right, {b} on the left",
        "on the right {a}, on the left {b}",
        "to the right of {b} is {a}",
    ),
    "above": Wordings(
        "{a} above {b}",
        "{a} on {b}",
        "{a} on top of {b}",
        "{a} over {b}",
        "{a} sitting on {b}",
        "{b} with {a} on it",
        "{b} with {a} above it",
        "{a} at the top and {b} at the bottom",
        "{a} standing on {b}",
        "{b} with {a} on top",
        "above {b} is {a}",
        "{a} at the top, {b} at the bottom",
    ),
    "below": Wordings(
        "{a} below {b}",
        "{a} under {b}",
        "{a} beneath {b}",
        "{b} with {a} below it",
        "{a} underneath {b}",
        "{a} at the bottom and {b} at the top",
        "below {b} is {a}",
        "{b} with {a} under it",
    ),
    "next to": Wordings(
        "{a} next to {b}",
        "{a} beside {b}",
        "{a} and {b}",
        "{a} and {b} side by side",
        "{a} near {b}",
        "{a} with {b} next to it",
        "{a} alongside {b}",
    ),
    "inside": Wordings(
        "{a} inside {b}",
        "{a} in {b}",
        "{b} with {a} inside it",
        "{a} within {b}",
        "{b} with {a} inside",
        "{b} with {a} in it",
        "inside {b} is {a}",
        "{b} containing {a}",
        "{a} in the middle of {b}",
        "{b} around {a}",
    ),
}

# A plain background before and behind the {subject}. "a" becomes "an" where it has to.
COLOUR_BEHIND = Wordings(
    "{subject} on a {colour} background",
    "{subject}, {colour} background",
    "{subject} on {colour} background",
    "{subject} against a {colour} background",
    "{subject} with a {colour} background",
    "{subject} in front of a {colour} background",
    "{subject} on a plain {colour} background",
    "{subject} on {colour}",
    "{subject} against {colour}",
    "{subject} in front of a plain {colour} background",
    "{subject}, the background is {colour}",
    "{subject} on a solid {colour} background",
    "{subject} over a {colour} backdrop",
    "{subject}, background {colour}",
)
COLOUR_AHEAD = Wordings(
    "on a {colour} background, {subject}",
    "{colour} background, {subject}",
    "{colour} background with {subject}",
    "a {colour} background with {subject}",
    "on a {colour} background there {be} {subject}",
    "against a {colour} background, {subject}",
    "the background is {colour}, {subject}",
)
COLOUR_TAGS = Wordings(
    "{colour} background", "plain {colour} background", "background {colour}", "solid {colour} background"
)
COLOUR_ALONE = Wordings(
    "a plain {colour} background",
    "{colour} background",
    "a {colour} background",
    "just {colour}",
    "nothing but {colour}",
    "an empty {colour} background",
)

# In a scenery: where or when, what stands in the background, and as one remark among others.
SCENERY_PLACES = {
    "day": Wordings(
        "on a sunny day",
        "under a blue sky",
        "during the day",
        "in the daytime",
        "in the sky",
        "in the blue sky",
        "by day",
        "on a bright day",
    ),
    "sunset": Wordings(
        "at sunset", "during sunset", "under a sunset sky", "at dusk", "in the sunset", "in the evening"
    ),
    "night": Wordings(
        "at night",
        "under a starry night sky",
        "under a starry sky",
        "in the night",
        "on a starry night",
        "under the night sky",
        "in the night sky",
        "in space",
    ),
    "sea": Wordings(
        "by the sea",
        "at the sea",
        "by the ocean",
        "at the seaside",
        "at the beach",
        "on the beach",
        "on the sea",
        "in the sea",
        "on the water",
        "in the ocean",
    ),
    "meadow": Wordings(
        "in a meadow",
        "on a meadow",
        "on the grass",
        "in a grass field",
        "on a grass field",
        "on a lawn",
        "in a green field",
    ),
    "snow": Wordings("in the snow", "in a snowy landscape", "on the snow", "in snow", "in winter", "in a snowy field"),
    "city": Wordings(
        "in the city",
        "in a city",
        "in front of a city skyline",
        "in front of a skyline",
        "in town",
        "on the street",
        "on a street",
        "on the road",
    ),
    "desert": Wordings("in the desert", "in a desert", "among sand dunes", "on desert sand"),
}
SCENERY_NOUNS = {
    "day": Wordings("a blue sky", "a sunny sky", "the blue sky", "a sunny day"),
    "sunset": Wordings("a sunset", "a sunset sky", "the sunset", "the evening sky"),
    "night": Wordings("a starry night sky", "a night sky", "a starry sky", "the night sky", "a starry night"),
    "sea": Wordings("the sea", "the ocean", "a seascape"),
    "meadow": Wordings("a meadow", "a grass field", "a grassy meadow", "a lawn"),
    "snow": Wordings("a snowy landscape", "snow", "a snowy field", "a winter landscape"),
    "city": Wordings("a city", "a city skyline", "the city", "a skyline"),
    "desert": Wordings("a desert", "the desert", "sand dunes", "a desert landscape"),
}
SCENERY_TAGS = {
    "day": Wordings("sunny day", "daytime", "blue sky", "day"),
    "sunset": Wordings("sunset", "sunset sky", "dusk", "evening"),
    "night": Wordings("night", "starry night", "night sky", "starry sky", "nighttime"),
    "sea": Wordings("sea", "ocean", "seaside", "beach"),
    "meadow": Wordings("meadow", "grass field", "grass", "lawn"),
    "snow": Wordings("snow", "snowy landscape", "winter"),
    "city": Wordings("city", "city skyline", "skyline"),
    "desert": Wordings("desert", "sand dunes", "desert landscape"),
}
SCENERY_BEHIND = Wordings(
    "{subject} {place}",
    "{subject} {place}",
    "{subject} {place}",
    "{subject} with {noun} in the background",
    "{subject}, {tag}",
    "{subject} in front of {noun}",
    "{subject}, {tag} background",
    "{subject}, {place}",
    "{subject} against {noun}",
    "{subject}, the background is {noun}",
)
SCENERY_AHEAD = Wordings(
    "{place}, {subject}",
    "{place} there {be} {subject}",
    "{noun} with {subject}",
    "{tag}, {subject}",
    "{tag} scene with {subject}",
)
SCENERY_REMARKS = Wordings("{tag}", "{tag} background", "{place}")
SCENERY_ALONE = Wordings(
    "{noun}", "{tag}", "just {noun}", "{noun}, nothing else", "a {tag} scene", "an empty {tag} scene"
)

STYLE_REMARKS = {
    "outline": Wordings("outline style", "line art", "outlined", "line art look", "outline drawing"),
    "pastel": Wordings("pastel colors", "pastel colours", "pastel", "pastel style", "soft pastel tones"),
    "flat": Wordings(
        "flat illustration", "flat style", "flat design", "cartoon style", "cartoon", "vector art", "icon"
    ),
}
STYLE_ENDINGS = {
    "outline": Wordings("in outline style", "with outlines", "as line art", "drawn with outlines"),
    "pastel": Wordings("in pastel colors", "in pastel colours", "in soft pastel tones", "in pastel"),
    "flat": Wordings("in flat style", "as a flat illustration", "in cartoon style"),
}
STYLE_INTROS = {
    "outline": Wordings("an outline drawing of {subject}", "line art of {subject}", "outline style: {subject}"),
    "pastel": Wordings("a pastel illustration of {subject}", "a pastel drawing of {subject}", "pastel: {subject}"),
    "flat": Wordings(
        "a flat illustration of {subject}",
        "a flat drawing of {subject}",
        "a cartoon of {subject}",
        "an icon of {subject}",
    ),
}
BE = {False: "is", True: "are"}
INTROS = Wordings(
    "a picture of {subject}",
    "there {be} {subject}",
    "an illustration of {subject}",
    "an image of {subject}",
    "a drawing of {subject}",
    "draw {subject}",
    "show me {subject}",
    "a simple picture of {subject}",
    "a picture with {subject}",
    "I see {subject}",
)

SURFACES = {"sign": Wordings("sign", "sign", "signboard", "board"), "poster": Wordings("poster", "poster", "placard")}
LETTERING = Wordings(
    "a {colour} {surface} saying {text}",
    "a {colour} {surface} that says {text}",
    "a {colour} {surface} with the {kind} {text}",
    "a {colour} {surface} with {text} on it",
    "a {colour} {surface} that reads {text}",
    "the {kind} {text} on a {colour} {surface}",
    "a {colour} {surface} reading {text}",
    "a {colour} {surface} with {text} written on it",
    "a {colour} {surface} with the text {text}",
    "a {colour} {text} {surface}",
    "{text} on a {colour} {surface}",
    "{text} written on a {colour} {surface}",
    "a {colour} {surface} on which {text} is written",
)
# Without quotation marks it is lettering only where a word of writing stands right before or, for capitals, behind it.
LETTERING_UNQUOTED = Wordings(
    "a {colour} {surface} saying {text}",
    "a {colour} {surface} that says {text}",
    "a {colour} {surface} with the {kind} {text}",
    "a {colour} {surface} that reads {text}",
    "the {kind} {text} on a {colour} {surface}",
    "a {colour} {surface} reading {text}",
    "a {colour} {surface} with the text {text}",
    "a {colour} {text} {surface}",
)
LETTERING_BY_CAPITALS = ("a {colour} {text} {surface}",)
# Right behind these one word is lettering, in quotation marks or not, but for those that hardly ever are.
SAYING = ("saying", "says", "say", "reads")
KINDS_WRITTEN = ("word", "lettering", "letters", "letter", "text", "code", "number", "digits")
SURFACES_READING = ("sign", "signboard", "board", "poster", "placard")
NEVER_SAID = ("the", "a", "an")
NEVER_NAMED = (*NEVER_SAID, "of", "is", "on", "in", "that", "and", "with")
KINDS_OF_TEXT = {
    "word": Wordings("word", "word", "lettering", "letters"),
    "letter": Wordings("letter", "letter", "word"),
    "code": Wordings("text", "lettering", "word", "code"),
    "number": Wordings("number", "number", "digits"),
}
QUOTATION_MARKS = Wordings('"{}"', '"{}"', '"{}"', "“{}”", "'{}'", "‘{}’")


def can_go_unquoted(text: str) -> bool:
    """Whether `text` is lettering without quotation marks, too; some words would be taken for what they mean."""
    return text.lower() not in NEVER_NAMED


WORD_TABLES = (
    NOUNS,
    COLOUR_WORDS,
    SIZE_WORDS,
    NUMBERS,
    GROUPS,
    SOME,
    PLACES,
    PLACE_TAGS,
    PLACED,
    PLACED_BRIEFLY,
    PAIRS,
    COLOUR_BEHIND,
    COLOUR_AHEAD,
    COLOUR_TAGS,
    COLOUR_ALONE,
    SCENERY_PLACES,
    SCENERY_NOUNS,
    SCENERY_TAGS,
    SCENERY_BEHIND,
    SCENERY_AHEAD,
    SCENERY_REMARKS,
    SCENERY_ALONE,
    STYLE_REMARKS,
    STYLE_ENDINGS,
    STYLE_INTROS,
    INTROS,
    SURFACES,
    LETTERING,
    KINDS_OF_TEXT,
    BE,
)
