"""Words that region captions are made of, as far as facets and checks need them.

The lists are ours, written for things that people mark in videos: everyday things,
people, animals, vehicles, plants, parts of buildings and landscapes. They are not
complete; :func:`fiftyone_regioncap.analysis.facets.facets_of` also finds nouns by where
they stand. Color names are those of :mod:`fiftyone_regioncap.measuring.colors`.
"""

from __future__ import annotations

from fiftyone_regioncap.measuring.colors import EXAMPLES


def _words(text: str) -> frozenset[str]:
    return frozenset(word.replace("_", " ") for word in text.split())


COLORS = {
    **{name: name for name in EXAMPLES},
    "grey": "gray",
    "silver": "gray",
    "cream": "beige",
    "tan": "beige",
    "khaki": "beige",
    "golden": "yellow",
    "gold": "yellow",
    "blond": "yellow",
    "blonde": "yellow",
    "turquoise": "teal",
    "cyan": "teal",
    "navy": "blue",
    "violet": "purple",
    "magenta": "pink",
    "maroon": "red",
    "crimson": "red",
    "scarlet": "red",
    "olive": "green",
    "burgundy": "red",
    "ivory": "white",
    "charcoal": "gray",
    "chestnut": "brown",
}
"""The basic color that a word names."""

ATTRIBUTES: dict[str, frozenset[str]] = {
    "material": _words(
        "wooden metal metallic plastic glass leather concrete brick stone rubber paper "
        "cardboard steel denim woolen fabric ceramic marble wicker woven"
    ),
    "pattern": _words(
        "striped plaid checkered spotted dotted floral camouflage patterned plain "
        "polka-dot tie-dye zigzag"
    ),
    "size": _words(
        "big large huge giant tall long wide small little tiny short narrow thin thick"
    ),
    "shape": _words(
        "round circular square rectangular triangular oval curved flat pointed slender "
        "cylindrical spherical"
    ),
    "texture": _words(
        "shiny glossy matte smooth rough fluffy furry hairy fuzzy rusty dusty muddy "
        "wet dry transparent reflective wrinkled"
    ),
    "state": _words(
        "open closed empty full broken parked folded hanging lit standing sitting "
        "lying running walking jumping flying swimming sleeping eating bearded "
        "bald smiling barefoot shirtless"
    ),
    "age": _words("young old elderly adult new antique vintage modern"),
}
"""Words that say how something is, by what they are about."""

NOUNS = _words(
    "adult airplane animal apple arm baby backpack bag ball balloon banana bananas "
    "banner barrel baseball basket basketball bat bear beard bed bee bench bicycle "
    "bike bird blanket board boat body book boot bottle bowl box boy branch bread "
    "bridge bucket building bull bus bush butterfly button cabinet cage cake calf "
    "camel camera canoe cap car cart case castle cat ceiling chain chair chest "
    "chicken child church cliff clock cloud coat computer cone couch court cow crab "
    "crane crowd cup curtain cyclist dancer deer desk dog donkey door dragon dress "
    "driver drone drum duck ear elephant engine eye face fence field finger fire fish "
    "flag floor flower foot forest fork fox frog fruit fur giraffe girl glass glasses "
    "glove goat gorilla grass guitar gun hair hammer hand handle hat head headlight "
    "headphones hedge helmet hill hoodie horn horse house jacket jeans kangaroo "
    "keyboard kid kite kitten knife lady ladder lake lamp laptop leaf leg lemon light "
    "lion logo machine man mane mask meadow microphone mirror monkey moon motorbike "
    "motorcycle mountain mouse mouth mug neck necklace nose ocean orange ostrich oven "
    "owl paddle painting pan panda pants parrot pavement paw peacock pen penguin "
    "person phone piano pig pigeon pillow plane plant plate player pole pond pool pot "
    "puppy rabbit racket rail river road robot rock roof rope rug saddle sail sailor "
    "sand sandal scarf scooter screen sea seal seat sheep shelf shell ship shirt shoe "
    "shorts shoulder sidewalk sign skateboard skateboarder skater ski skier skirt sky "
    "snake sneaker snow snowboard snowboarder soldier spoon squirrel stage stairs "
    "stick stone street string suit suitcase sun sunglasses surfboard surfer sweater "
    "sword table tail tank taxi tent tiger tire toddler toilet tower toy track "
    "tractor traffic_light train trash_can tree truck trunk tub turtle tv umbrella "
    "uniform van vase vehicle vest wagon wall watch water wave wheel wheelchair "
    "window windshield wing wolf woman wood worker zebra"
)
"""Things and beings, in the singular; what is made of two words has a space."""

IRREGULAR_PLURALS = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "leaves": "leaf",
    "knives": "knife",
    "wolves": "wolf",
    "shelves": "shelf",
    "calves": "calf",
    "scarves": "scarf",
    "wheelchairs": "wheelchair",
}
"""Singulars that rules don't give."""

STOPWORDS = _words(
    "a about above across after against all along also among an and another are around "
    "as at away back be because been before behind being below beneath beside between "
    "beyond both but by can could do does down during each either few for forward from "
    "had has have he her here his how i if in inside into is it its itself just like "
    "many may might more most much near nearly next no nor not of off on once one only "
    "onto or other out outside over own part past per quite rather same seen several "
    "she should so some something still such than that the their them then there these "
    "they this those through to together too toward towards two under until up upon "
    "very via was we were what when where which while who whose will with within "
    "without would you your appears appear looks seems visible likely"
)
"""Words that don't distinguish one caption from another."""

DETERMINERS = _words(
    "a an the this that another one two three four several some his her its their"
)
"""Words that a noun follows."""

DANGLING = _words(
    "a an the and or but with of in on at to from by for as is are was were its his "
    "her their this that which who while near over under into"
)
"""Words that no sentence ends with."""
