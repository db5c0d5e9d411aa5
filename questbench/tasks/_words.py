"""Words for generated texts: common English words, names made of parts, and pronounceable words that do not exist."""

from __future__ import annotations

import random
from itertools import product

ADJECTIVES = """
able amber ancient ashen autumn bare bitter bold brave brief bright brisk broad broken calm careful cheap clean clear
clever cold cool copper cosy crooked curious damp dark deep dim distant double dry dusty eager early easy empty even
faded faint fair famous fancy far fast fine firm flat fresh friendly full gentle giant glad golden grand grave great
green grey half handsome happy hard heavy hidden high hollow honest huge humble idle iron ivory jolly keen kind large
late lean light little lonely long loose loud low loyal lucky mellow mild misty modest mossy muddy narrow neat new
noble northern odd old open orange pale patient plain pleasant polite poor proud purple quick quiet rainy rapid rare
ready red rich ripe rough round royal rusty sandy scarlet secret sharp short shy silent silver simple slender slim slow
small smooth snowy soft solid southern spare square steady steep stern still stony strange strict strong sudden sunny
sweet swift tall tame tender thick thin tidy tiny tired tough true upper vast violet warm wary weak western wet white
wide wild windy wise wooden young yellow
""".split()

NOUNS = """
acorn anchor apple apron arch arrow attic autumn badger bakery balcony barley barn barrel basin basket beacon bear bell
bench berry blanket blossom boat bonnet book boot bottle boulder bowl box branch brass bread brick bridge broom brush
bucket button cabin cable candle canoe canvas canyon carpet carriage cart castle cattle cave cedar cellar chain chair
chalk cherry chest chimney circle cliff cloak clock cloth cloud clover coach coal coast coat coin collar comb compass
copper cord corn corner cottage cotton cradle crane creek crown crystal cup curtain daisy dawn deer desert desk dial
ditch dock door dove dragon drawer dream drum duck dust eagle earth engine falcon farm feather fence fern ferry fiddle
field finch fir fire flag flame flax flood flour flower flute fog forest fork fort fountain fox frame frost fruit
furnace garden garlic gate ginger glacier glass glove goat goose grain granite grape grass gravel grove gull hall
hammer harbor hare harp harvest hat hawk hay hazel hedge heron hill hinge hive holly honey hood hook horn horse hotel
hunter husk ice inlet island ivy jacket jar jasmine jewel jug juniper kettle kitchen kite knot ladder lake lamb lamp
lane lantern lark lawn leaf leather ledge lemon letter library lily linen lion lizard lock log loom magnet mantle map
maple marble market marsh mask mast meadow melon mill mine mint mirror mole monk moon moss moth mountain mud museum
needle nest net nettle oak oar oasis oat olive onion orchard otter oven owl oyster paddle palace panel paper parcel
park parrot pasture path pear pearl pebble pencil pepper pier pigeon pillar pillow pine pipe pitcher plain planet plank
plate plough plum pocket pond pony poplar porch port pot potato powder prairie pump quarry quilt rabbit raft railway
rain rake raven reed reef ribbon ridge ring river road robin rock roof room root rope rose rudder rug saddle sail salmon
salt sand satchel saw scarf school seal seed shawl shed sheep shelf shell shield ship shirt shoe shore shovel silk
silver sky sled sleeve slope smoke snail snow soap sock soil soup sparrow spear spice spider spindle spoon spring
spruce squirrel stable stair star station steam steel stem stone storm stove stream street string stump sugar summer
swallow swamp swan table tailor tea temple tent thimble thistle thread throne thunder ticket tide tiger timber tin
toast torch tower town trail train tray tree trout trumpet trunk tulip tunnel turnip turtle valley vase velvet vessel
village vine violet violin wagon wall walnut walrus water wax weaver well whale wharf wheat wheel whistle willow wind
window wine wing winter wolf wood wool yard yarn
""".split()

VERBS = """
admire answer arrange ask bake balance bend borrow build burn call carry carve catch chase choose clean climb collect
count cover cross cut dance deliver describe dig divide draw drift drive earn explain fetch fill find fold follow forget
gather give greet guard guess guide hang help hide hold hunt invite join jump keep knock laugh lead learn leave lend
lift listen load measure meet melt mend mix move notice obey offer paint pass plant play pour praise promise protect
pull push raise reach read remember repair rest ride sail search sell send settle shake share sing sleep speak spread
steer stir study sweep swim teach thank throw touch trade travel trust turn visit wait walk wander wash watch weave
whisper wonder write
""".split()

WORDS = tuple(dict.fromkeys([*NOUNS, *VERBS, *ADJECTIVES]))
"""Distinct common words."""

FIRST_NAMES = """
Ada Agnes Albin Alma Anton Arvid Astrid Basil Beatrix Benno Bertha Bruno Carla Casper Cecil Clara Conrad Cora Dagmar
Daniel Dora Edgar Edith Edwin Elias Elsa Emil Enid Erna Ewald Fanny Felix Flora Frieda Gerda Gilbert Greta Gustav Hanna
Harald Hedwig Helga Henrik Hilda Hugo Ida Irma Isak Jasper Joan Jonas Judith Julian Karin Kilian Klara Konrad Lena
Leopold Linus Lorenz Lotte Ludwig Magda Malte Marek Marta Matilda Maxim Mila Milo Minna Moritz Nadia Nils Nora Odette
Olaf Olga Oscar Otto Paula Petra Quentin Ragna Ralf Rosa Rufus Ruth Selma Sigrid Silas Simon Sonja Stella Sven Tessa
Theo Thea Tilda Tobias Ulla Ulrich Vera Viktor Viola Walter Wanda Willem Xaver Yvonne Zeno
""".split()

_SURNAME_HEADS = (
    "Ash Beck Bram Birk Cal Car Dorn Eld Fal Feld Gar Glen Hal Harn Hol Kem Kil Lang Lor Mar Mel Nor".split()
)
_SURNAME_TAILS = "berg bury by dale den field ford gate ham holt ley low man mere more ridge son stead ton wick".split()
SURNAMES = tuple(head + tail for head, tail in product(_SURNAME_HEADS, _SURNAME_TAILS))

_TOWN_HEADS = (
    "Alder Amber Black Brook Clay Cold Deep East Fern Frost Grey Hazel High Iron Lark Mill Moss Oak Raven".split()
)
_TOWN_TAILS = (
    "bay bourne bridge burn cliff combe cove fell gap haven heath hollow marsh minster mouth pass port".split()
)
TOWNS = tuple(head + tail for head, tail in product(_TOWN_HEADS, _TOWN_TAILS))

_ONSETS = "b br bl c cr cl d dr f fl fr g gl gr h j k l m n p pl pr qu r s sc sl sm sn sp st str t tr v w z".split()
_VOWELS = "a e i o u ai ea ee oa oo ou".split()
_CODAS = "b ck d ft g l lk lm lt m mp n nd nk nt p r rd rk rm rn rt s sh sk st t th x".split()


def article(phrase: str) -> str:
    """``phrase`` behind ``a`` or ``an``."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def keys(rng: random.Random, count: int) -> list[str]:
    """Distinct keys such as ``misty-harbor``."""
    drawn = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[at // len(NOUNS)]}-{NOUNS[at % len(NOUNS)]}" for at in drawn]


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word of two syllables that is in no list here, though chance may hit a real one."""
    while True:
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)) + rng.choice(_CODAS)
        if word not in _KNOWN:
            return word


def vocabulary(rng: random.Random, count: int) -> list[str]:
    """Distinct words in random order: common ones as far as they go, then words that do not exist."""
    words = rng.sample(WORDS, min(count, len(WORDS)))
    found = dict.fromkeys(words)
    while len(found) < count:
        found[pseudo_word(rng)] = None
    return list(found)


_KNOWN = frozenset(WORDS)
