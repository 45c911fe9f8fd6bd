"""Caption vocabulary of the synthetic streets: class synonyms and templates."""

NAMES = (
    "barrier", "bicycle", "bus", "car", "construction vehicle", "motorcycle", "pedestrian",
    "traffic cone", "trailer",
    "truck", "driveable surface", "other flat", "sidewalk", "terrain", "manmade", "vegetation",
    "sky",
)  # fmt: skip
"""Classes in nuScenes' order, and the sky."""
SKY = len(NAMES) - 1
THINGS = range(10)
"""The first ten are objects with boxes; the others are stuff."""

SYNONYMS = (
    ("barricade",), ("person on a bicycle",), (), ("sedan", "van", "SUV", "jeep"),
    ("bulldozer", "excavator", "concrete mixer", "crane", "dump truck"), ("scooter",
    "person on a motorcycle"),
    ("person", "construction worker", "police officer"), (),
    ("semi trailer", "cargo container", "shipping container", "freight container"), ("pickup",
    "lorry"),
    ("road", "highway", "paved road"), ("curb", "traffic island", "traffic median", "rail track"),
    ("walkway", "bike path"), ("grass", "lawn", "soil", "sand", "earth"),
    ("building", "wall", "pole", "fence", "traffic sign", "traffic light", "street lamp", "bridge",
    "awning",
     "billboard", "bench", "guard rail"),
    ("tree", "trunk", "bush", "shrub", "plant"), ("cloud",),
)  # fmt: skip
"""Other words for each class: those by which people ask CLIP for nuScenes' classes."""

ABSENT = (
    "car bonnet", "undistinguishable object", "stroller", "wheelchair", "animal", "bicycle rack",
    "debris", "trash bag",
    "police car", "ambulance",
)  # fmt: skip
"""Words for what the demo world does not have: captions with them are never true."""

_CLASS_OF_RAW = {
    9: 0, 14: 1, 15: 2, 16: 2, 17: 3, 18: 4, 21: 5, 2: 6, 3: 6, 4: 6, 6: 6, 12: 7, 22: 8, 23: 9,
    24: 10, 25: 11, 26: 12,
    27: 13, 28: 14, 30: 15, 0: SKY,
}  # fmt: skip
CLASS_OF_RAW = tuple(_CLASS_OF_RAW.get(raw, 255) for raw in range(32))
"""Class of each raw nuScenes label in a rendered image, where 0 is the sky; 255: none."""
