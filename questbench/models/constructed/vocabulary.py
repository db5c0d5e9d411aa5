"""Words that are one token each, and the fragments that other words fall into.

A listed word has four tokens: as it is and capitalised, each with and without a leading space.
"""

from __future__ import annotations

CUES = """
key keys pass value values code number numbers magic secret record password answer variable var id name
""".split()
"""Words that announce a fact. Like numbers, they are what a retrieval is keyed by (see :mod:`codes`)."""

CUE_MARKS = (":", "=", "->", "#", "-")
"""Marks that announce a fact."""

COMMON = """
a able about above across after again against ago air all almost along already also always am among an and animal
another any anything apple are area arm around art as ask at away baby back bad ball bank base be bear beautiful
because become bed been before began begin begins behind being believe below best better between big bird birds black
blood blue boat body book both box boy bread bright bring brother brown build building built business but buy by call
came can car care carry case cat catch cause center certain chair change child children church city class clean clear
clock close closed cloud coat coffee cold color come common complete consider contain cook cool corn corner could
country course cover cross crowd cup cut dance dark day dead deal dear decide deep did differ different dinner dishes
do doctor does dog done door down draw dream dress drink drive drop dry during each ear early earth east easy eat
effect eight either else end enough even evening ever every everyone everything example eye eyes face fact fall family
far farm fast father feel feet felt few field fill final find fine finger finish fire first fish five floor flower fly
follow follows food foot for force forest forget form forward found four free fresh friend friends from front fruit
full game garden gave general get girl give gives glass go goes gold gone good got grass gray great green ground group
grow had hair half hall hand hands happen happy hard has hat have he head hear heard heart heat heavy held help her
here hidden high hill him himself his history hold holds home hope horse hot hour hours house how however hundred hunt
i ice idea if important in include info information inside instead interest into iron irrelevant is island it its job
join jump just keep kept kind king kitchen knew know known knows lady lake land language large last late later laugh
law lay lead learn least leave left leg less let letter letters level lies life light like line list listen listened
little live long look lost lot love low made main make man many map mark market matter may me mean measure meet
memorize men middle might mile milk mind minute miss moment money month moon more morning most mother mountain mouth
move much music must my near need never new news next nice night nine no nobody none noon nor north nose not note
nothing notice now object ocean of off offer office often oil old on once one only open or order other our out outside
over own page paint paper part party people perhaps person phone picture piece place plain plan plane plant play
please point poor possible power press problem produce public pull push put question quick quiet quite quiz rain ran
reach read reads ready real reason records red remember rest return rich ride right river road rock room round rule
run safe said sail salt same sand sat saw say scene school science sea seat second see seem seen sell sells send
sentence set seven several shall shape she ship shoe shop short should show shown side sign silver simple since sing
sister sit six size skin sky sleep slow small smells smile snow so soft soldier some something song soon sound south
space speak special spring square stand star start state station stay step still stone stood stop stopped store story
street strong student students study such suddenly summer sun sure surface swim table take talk tall teacher tell ten
test text than that the their them then there these they thing things think third this those though thought thousand
three through time tiny to today together told tomorrow too took top toward town train travel tree trees trip true try
turn two type under understand unit until up upon us use used usual valley very view village visit voice wait walk
wall want wants war warm was wash watch water wave way we weather week weight well went were west wet what wheel when
where whether which while white who whole why wide wife wild will wind window winter wish with within without woman
women wonder wood word words work world would write writes written wrong yard year years yellow yes yesterday yet you
young your
""".split()

MARKS = (",", ".", ";", "?", "!", "(", ")", '"', "'", "/", "*", "+", "'s", "'t", "...", "--")
"""Punctuation that may carry its leading space."""

FRAGMENTS = """
t+h i+n e+r a+n r+e o+n a+t e+n o+r e+s i+s i+t a+l a+r s+t n+d e+d o+u l+e c+h s+e v+e r+o r+a r+i l+i l+a c+o d+e
n+e m+e i+c i+l o+m u+r u+n e+l a+s t+o s+h l+o h+o p+e h+a c+a p+r m+a w+h u+l e+t e+c a+m a+d o+l i+d u+s o+w a+y
l+y q+u in+g i+on en+t at+e a+g ag+e er+s st+er th+er t+ion m+ent b+le a+ble es+s n+ess f+ul ou+s i+ve es+t al+l l+l
i+g ig+h igh+t Ġ+t Ġ+a Ġ+s Ġ+w Ġ+c Ġ+b Ġ+p Ġ+f Ġ+m Ġ+d Ġ+l Ġ+h Ġ+r Ġ+g Ġ+n Ġ+e Ġ+o Ġ+i Ġ+u Ġ+v Ġ+k Ġ+th Ġ+re Ġ+co Ġ+de
Ġ+st Ġ+in
""".split()
"""Merges ``left+right`` by rank, for words that are not listed (``Ġ`` is the byte-level space)."""
