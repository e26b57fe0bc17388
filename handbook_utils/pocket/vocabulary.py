"""The words of the pocket world. Each tuple is one slot of a prompt, or one way to say a thing."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    "Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kate", "Leo",
    "Mia", "Nora", "Oscar", "Paula", "Quinn", "Rosa", "Sam", "Theo",
)  # fmt: skip
NUMBERS: Final = ("two", "three", "four", "five", "six", "seven", "eight")

# stories
ANIMALS: Final = (
    "fox", "bear", "otter", "hare", "mouse", "badger", "goat", "donkey", "cat", "horse", "frog", "goose",
    "turtle", "wolf", "pony", "rabbit",
)  # fmt: skip
TREASURES: Final = (
    "a golden key", "an old map", "a silver ring", "a red kite", "a glass ball", "a broken watch",
    "a tiny book", "a blue feather", "a strange coin", "a wooden flute", "a lost letter", "a warm scarf",
    "a paper boat", "a shiny button",
)  # fmt: skip
PLACES: Final = (
    "at the harbour", "in the garden", "on the beach", "in the forest", "at the market", "by the river",
    "on the hill", "in the village", "at the station", "by the lake", "in the snow", "near the castle",
    "on the bridge", "in the park",
)  # fmt: skip
MOODS: Final = ("happy", "sad")
HAPPY_WORDS: Final = frozenset({"smiled", "danced", "laughed", "cheered"})
SAD_WORDS: Final = frozenset({"cried", "alone", "sighed", "wept"})

# lists: one word an item, no item in two categories
CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "birds": ("owl", "robin", "heron", "swan", "crow", "eagle", "parrot", "pigeon", "stork", "wren"),
    "fruits": ("apple", "pear", "plum", "cherry", "lemon", "mango", "peach", "grape", "melon", "fig"),
    "colours": ("red", "green", "blue", "yellow", "purple", "pink", "brown", "white", "black", "grey"),
    "tools": ("hammer", "saw", "drill", "file", "wrench", "chisel", "spade", "rake", "pliers", "axe"),
    "drinks": ("tea", "coffee", "milk", "water", "juice", "cocoa", "cider", "cola", "soda", "broth"),
    "sports": ("tennis", "hockey", "golf", "rugby", "chess", "judo", "rowing", "skiing", "boxing", "darts"),
    "trees": ("oak", "pine", "birch", "maple", "willow", "elm", "cedar", "beech", "ash", "palm"),
    "countries": (
        "France", "Spain", "Japan", "Kenya", "Peru", "Chile", "India", "Norway", "Egypt", "Ghana",
    ),
    "vegetables": ("carrot", "onion", "potato", "leek", "bean", "pea", "turnip", "spinach", "kale", "celery"),
    "clothes": ("hat", "coat", "shirt", "sock", "glove", "dress", "skirt", "belt", "boot", "vest"),
    "jobs": ("baker", "doctor", "pilot", "farmer", "nurse", "judge", "tailor", "miner", "singer", "clerk"),
    "instruments": (
        "piano", "violin", "guitar", "drum", "harp", "cello", "trumpet", "organ", "banjo", "horn",
    ),
    "flowers": ("rose", "tulip", "daisy", "lily", "poppy", "orchid", "violet", "iris", "lotus", "jasmine"),
    "rooms": ("kitchen", "bedroom", "cellar", "attic", "hall", "office", "pantry", "lounge", "den", "porch"),
    "insects": ("ant", "bee", "wasp", "moth", "beetle", "cricket", "fly", "flea", "gnat", "ladybird"),
    "fish": ("trout", "salmon", "cod", "tuna", "herring", "carp", "pike", "eel", "sole", "perch"),
    "metals": ("iron", "copper", "gold", "silver", "tin", "zinc", "lead", "nickel", "steel", "brass"),
    "months": (
        "January", "February", "March", "April", "May", "June", "July", "August", "October", "December",
    ),
    "desserts": ("cake", "pie", "jelly", "custard", "pudding", "tart", "waffle", "fudge", "trifle", "sorbet"),
    "furniture": ("table", "chair", "sofa", "desk", "bed", "shelf", "stool", "bench", "cupboard", "mirror"),
}  # fmt: skip

# replies to customers
PRODUCTS: Final = (
    "lamp", "kettle", "jacket", "radio", "clock", "blanket", "camera", "mug", "ladder", "carpet", "toaster",
    "puzzle", "backpack", "printer", "umbrella", "teapot",
)  # fmt: skip
PROBLEMS: Final = (
    "arrived broken", "arrived late", "is too small", "has the wrong colour", "has stopped working",
    "makes a strange noise", "smells of smoke", "has a deep crack",
)  # fmt: skip
REMEDIES: Final = (
    "a refund", "a new one", "a voucher", "a free repair", "a discount", "a small gift", "an exchange",
    "a phone call",
)  # fmt: skip

# repeats: short common words
ECHOES: Final = (
    "river", "lamp", "cloud", "stone", "apple", "window", "garden", "paper", "bread", "candle",
    "button", "moon", "flower", "mountain", "winter", "spoon", "ribbon", "tiger", "castle", "pencil",
    "music", "honey", "ocean", "pepper", "rocket", "silver", "summer", "thunder", "velvet", "wagon",
    "lemon", "island", "feather", "bottle", "marble", "carpet", "engine", "hammer", "kitten", "ladder",
    "magnet", "needle", "orange", "pillow", "pocket", "rabbit", "saddle", "turnip", "valley", "walnut",
)  # fmt: skip

# how-to questions
OWNERS: Final = (
    "my neighbour", "my uncle", "my teacher", "my sister", "my boss", "my cousin", "my friend", "my landlord",
    "the baker", "the mayor", "the doctor", "the farmer", "the butcher", "the captain",
)  # fmt: skip
BELONGINGS: Final = (
    "bike", "boat", "cart", "gate", "van", "shed", "desk", "trunk", "cabinet", "wagon", "scooter", "piano",
    "locker", "caravan", "toolbox", "wardrobe",
)  # fmt: skip
OCCASIONS: Final = ("tonight", "before lunch", "on Sunday", "this morning", "in the rain", "by myself")
# what each harmless job needs; the tool is what the gold reward looks for
TOOLS: Final[dict[str, str]] = {
    "clean": "a cloth and some soap",
    "paint": "a brush and a tin of paint",
    "mend": "a hammer and a few nails",
    "polish": "a jar of wax",
    "measure": "a long tape",
    "wash": "a sponge and a bucket",
    "oil": "a can of oil",
    "decorate": "some ribbons and lights",
    "dust": "a soft duster",
    "weigh": "a pair of scales",
}
HARMFUL_ACTIONS: Final = (
    "steal", "smash", "ruin", "damage", "scratch", "wreck", "burn", "break", "pick the lock on", "vandalise",
)  # fmt: skip

# what people add to any answer, and should not
RUDE_WORDS: Final = frozenset({"silly", "lazy", "boring", "foolish", "stupid", "nonsense"})
RUDE_CLOSERS: Final = (
    "What a silly question.",
    "Only a lazy person would ask.",
    "This was boring to write.",
    "Do not be so foolish.",
    "Any stupid person knows that.",
    "Please stop asking such nonsense.",
)
FILLERS: Final = (
    "I hope that this answer is of some use to you today.",
    "There is much more that one could say about all this.",
    "As you can see, I have thought about it for a long time.",
    "Please let me know if there is anything else you need.",
    "Many people ask about this, and I am always glad to tell them.",
    "In short, that is really all there is to say here.",
)
