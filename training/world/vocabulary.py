"""The words of the world: things, colours, sizes, positions, relations, backgrounds, styles and lettering.

The names here are keys, not captions: `captions.py` has the English and the Chinese for each.
"""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross", "hexagon", "arrow")
OBJECTS = (
    "sun",
    "moon",
    "cloud",
    "tree",
    "house",
    "car",
    "boat",
    "fish",
    "bird",
    "cat",
    "flower",
    "apple",
    "balloon",
    "umbrella",
    "cup",
    "mountain",
    "mushroom",
    "rocket",
    "butterfly",
    "hat",
    "leaf",
    "drop",
    "bell",
    "book",
    "kite",
    "crown",
)
THINGS = SHAPES + OBJECTS
# Shapes with room for another thing inside.
CONTAINERS = ("circle", "square", "heart", "ring", "diamond", "hexagon")

# What each colour is on a flat picture, 8-bit RGB.
COLOURS = {
    "red": (218, 44, 48),
    "orange": (245, 130, 32),
    "yellow": (252, 209, 22),
    "green": (42, 160, 72),
    "cyan": (52, 200, 216),
    "blue": (38, 92, 214),
    "purple": (134, 62, 176),
    "pink": (248, 132, 184),
    "brown": (122, 74, 42),
    "black": (26, 26, 30),
    "white": (252, 252, 252),
    "gray": (142, 147, 153),
}
# Those that stay apart from one another when they are mixed with white.
PASTEL_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")

SIZES = ("small", "medium", "big")
POSITIONS = (
    "centre",
    "left",
    "right",
    "top",
    "bottom",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
)
RELATIONS = ("left of", "right of", "above", "below", "next to", "inside")
COUNTS = (1, 2, 3, 4)
STYLES = ("flat", "outline", "pastel")

SCENERIES = ("day", "sunset", "night", "sea", "meadow", "snow", "city", "desert")
# The colours that a scenery is made of: a thing of such a colour would not be seen in front of it.
SCENERY_COLOURS = {
    "day": ("cyan", "white"),
    "sunset": ("orange", "pink", "purple", "yellow"),
    "night": ("black", "blue", "purple"),
    "sea": ("blue", "cyan"),
    "meadow": ("green", "cyan"),
    "snow": ("white", "gray"),
    "city": ("gray", "black"),
    "desert": ("yellow", "orange", "brown"),
}
BACKGROUNDS = (*COLOURS, *SCENERIES)

SURFACES = ("sign", "poster")

# The colour of a thing whose colour goes unsaid, and the next where the background hides that one. None of these pairs
# is kept for the test.
USUAL_COLOURS: dict[str, tuple[str, ...]] = {
    "circle": ("red", "blue"),
    "square": ("green", "yellow"),
    "triangle": ("blue", "yellow"),
    "star": ("yellow", "red"),
    "heart": ("red", "pink"),
    "ring": ("orange", "blue"),
    "diamond": ("blue", "yellow"),
    "cross": ("red", "white"),
    "hexagon": ("yellow", "green"),
    "arrow": ("black", "red"),
    "sun": ("yellow", "red"),
    "moon": ("yellow", "white"),
    "cloud": ("white", "gray", "blue"),
    "tree": ("green", "orange"),
    "house": ("red", "blue"),
    "car": ("red", "white"),
    "boat": ("red", "white"),
    "fish": ("orange", "blue"),
    "bird": ("blue", "yellow"),
    "cat": ("orange", "gray"),
    "flower": ("red", "yellow"),
    "apple": ("red", "green"),
    "balloon": ("red", "yellow"),
    "umbrella": ("purple", "red"),
    "cup": ("blue", "white"),
    "mountain": ("gray", "brown"),
    "mushroom": ("red", "brown"),
    "rocket": ("gray", "orange"),
    "butterfly": ("orange", "cyan"),
    "hat": ("black", "red"),
    "leaf": ("green", "orange"),
    "drop": ("cyan", "white", "gray"),
    "bell": ("yellow", "red"),
    "book": ("blue", "red"),
    "kite": ("orange", "green"),
    "crown": ("yellow", "red"),
    "sign": ("blue", "white"),
    "poster": ("blue", "white"),
}
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MAX_LETTERS = 6
# Half of the lettering: words that people try. The other half is drawn at random, glyph by glyph.
WORDS = tuple(
    """
    A AI ALL AND APPLE ART BAKERY BALL BANK BAR BEACH BEAR BED BEE BIG BIKE BIRD BLUE BOAT BOOK BOX BOY BREAD BUS CAFE
    CAKE CAMP CAR CAT CHEF CITY CLEAN CLOSED CLUB COFFEE COLD COOL CUP DANCE DANGER DAY DEEP DO DOG DOOR DREAM DRINK
    DUCK EARTH EAST EASY EAT END EXIT FAST FILM FIRE FISH FIVE FLOWER FLY FOOD FOR FOUR FOX FREE FRESH FRIEND FROG FUN
    GAME GARDEN GIFT GIRL GO GOLD GOOD GREAT GREEN HAPPY HAT HEART HELLO HELP HERE HI HOME HOPE HORSE HOT HOTEL HOUSE
    ICE IN ISLAND JAZZ JOB JOY JULY JUMP JUNE KEY KIDS KIND KING KIWI LAKE LAMP LEFT LEMON LIFE LIGHT LION LOVE LUCKY
    LUNCH MAGIC MAP MARKET MAY MENU MILK MIND MOON MORE MOUSE MOVIE MUSEUM MUSIC NAME NEW NEXT NICE NIGHT NINE NO NORTH
    NOW OCEAN OFF OK ON ONE OPEN ORANGE OUT OWL PAINT PANDA PAPER PARK PARTY PEACE PEAR PEN PHOTO PIANO PIG PIZZA PLAY
    POOL POST PRESS PULL PUSH QUEEN QUICK QUIET RADIO RAIN READ RED RICE RIGHT RIVER ROAD ROBOT ROCK ROSE RUN SAFE SALE
    SALT SCHOOL SEA SHOP SHOW SKY SLEEP SLOW SMILE SNOW SOON SOUP SOUTH SPACE SPORT SPRING STAR START STAY STOP STORE
    STREET SUGAR SUMMER SUN SWEET TAXI TEA TEAM TEN TEST THANKS THE THREE TIGER TIME TODAY TOP TOWN TOY TRAIN TREE TWO
    UP VIEW WALK WARM WATER WAY WEST WILD WIN WIND WINE WINTER WOLF WORK WORLD YES YOU YOUNG ZEBRA ZERO ZOO 2026
    """.split()  # noqa: SIM905 (a column of quotes would be harder to read)
)
