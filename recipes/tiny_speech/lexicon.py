# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The words of the tiny corpus in English, German and Spanish, and its numbers."""

ONES_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS_EN = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ONES_DE = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
).split()
TENS_DE = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
ONES_ES = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve"
).split()
TENS_ES = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()

# Nouns: English singular and plural; German gender, singular, plural; Spanish gender, singular, plural.
NOUNS = [
    tuple(line.split())
    for line in """
    house houses n Haus Häuser f casa casas
    car cars n Auto Autos m coche coches
    dog dogs m Hund Hunde m perro perros
    cat cats f Katze Katzen m gato gatos
    book books n Buch Bücher m libro libros
    table tables m Tisch Tische f mesa mesas
    chair chairs m Stuhl Stühle f silla sillas
    door doors f Tür Türen f puerta puertas
    tree trees m Baum Bäume m árbol árboles
    flower flowers f Blume Blumen f flor flores
    apple apples m Apfel Äpfel f manzana manzanas
    bird birds m Vogel Vögel m pájaro pájaros
    boat boats n Boot Boote m barco barcos
    hat hats m Hut Hüte m sombrero sombreros
    letter letters m Brief Briefe f carta cartas
    picture pictures n Bild Bilder m cuadro cuadros
    window windows n Fenster Fenster f ventana ventanas
    bottle bottles f Flasche Flaschen f botella botellas
    shirt shirts n Hemd Hemden f camisa camisas
    garden gardens m Garten Gärten m jardín jardines
    """.strip().splitlines()
]
# Adjectives: English, German stem, Spanish masculine and feminine singular.
ADJECTIVES = [
    tuple(line.split())
    for line in """
    red rot rojo roja
    blue blau azul azul
    green grün verde verde
    white weiß blanco blanca
    black schwarz negro negra
    yellow gelb amarillo amarilla
    big groß grande grande
    small klein pequeño pequeña
    new neu nuevo nueva
    old alt viejo vieja
    beautiful schön bonito bonita
    """.strip().splitlines()
]
# Verbs: third person, infinitive and participle in English, German and Spanish.
VERBS = [
    tuple(line.split())
    for line in """
    sees see seen sieht sehen gesehen ve ver visto
    buys buy bought kauft kaufen gekauft compra comprar comprado
    finds find found findet finden gefunden encuentra encontrar encontrado
    paints paint painted malt malen gemalt pinta pintar pintado
    takes take taken nimmt nehmen genommen toma tomar tomado
    sells sell sold verkauft verkaufen verkauft vende vender vendido
    needs need needed braucht brauchen gebraucht necesita necesitar necesitado
    draws draw drawn zeichnet zeichnen gezeichnet dibuja dibujar dibujado
    washes wash washed wäscht waschen gewaschen lava lavar lavado
    brings bring brought bringt bringen gebracht trae traer traído
    shows show shown zeigt zeigen gezeigt muestra mostrar mostrado
    """.strip().splitlines()
]
NAMES = (("Anna", "f"), ("Laura", "f"), ("Emma", "f"), ("Nina", "f"), ("Peter", "m"), ("Paul", "m"), ("Tom", "m"))
ROLES = [
    ("the teacher", "der/0 Lehrer/1", "el/0 profesor/1", "m"),
    ("the doctor", "die/0 Ärztin/1", "la/0 médica/1", "f"),
    ("the woman", "die/0 Frau/1", "la/0 mujer/1", "f"),
    ("the man", "der/0 Mann/1", "el/0 hombre/1", "m"),
    ("the girl", "das/0 Mädchen/1", "la/0 niña/1", "f"),
    ("the boy", "der/0 Junge/1", "el/0 niño/1", "m"),
]
KIN = {
    "f": [
        ("sister", "Schwester", "hermana"),
        ("mother", "Mutter", "madre"),
        ("daughter", "Tochter", "hija"),
        ("aunt", "Tante", "tía"),
    ],
    "m": [
        ("brother", "Bruder", "hermano"),
        ("father", "Vater", "padre"),
        ("son", "Sohn", "hijo"),
        ("uncle", "Onkel", "tío"),
    ],
}
DAYS = [
    tuple(entry.split())
    for entry in (
        "Monday Montag lunes, Tuesday Dienstag martes, Wednesday Mittwoch miércoles, Thursday Donnerstag jueves, "
        "Friday Freitag viernes, Saturday Samstag sábado, Sunday Sonntag domingo"
    ).split(", ")
]
MATRIX = [
    ("I think that", "Ich/0 denke,/1 dass/2", "Pienso/0+1 que/2"),
    ("We know that", "Wir/0 wissen,/1 dass/2", "Sabemos/0+1 que/2"),
    ("Paul says that", "Paul/0 sagt,/1 dass/2", "Paul/0 dice/1 que/2"),
    ("Emma believes that", "Emma/0 glaubt,/1 dass/2", "Emma/0 cree/1 que/2"),
]
MODALS = [
    ("can", "kann/0", "puede/0"),
    ("must", "muss/0", "debe/0"),
    ("wants to", "will/0", "quiere/0"),
]
MOODS = [("happy", "froh", "contento", "contenta"), ("tired", "müde", "cansado", "cansada")]
# For sentences about the speaker: adjectives (English, German, Spanish masculine and feminine), and nouns that reveal
# the speaker's gender: English, German with its article, Spanish with its article.
SPEAKER_MOODS = [
    *MOODS,
    ("sick", "krank", "enfermo", "enferma"),
    ("busy", "beschäftigt", "ocupado", "ocupada"),
    ("nervous", "nervös", "nervioso", "nerviosa"),
    ("calm", "ruhig", "tranquilo", "tranquila"),
    ("ready", "bereit", "listo", "lista"),
    ("angry", "wütend", "enfadado", "enfadada"),
]
PERSONS = {
    "f": [("woman", "eine Frau", "una mujer"), ("girl", "ein Mädchen", "una niña")],
    "m": [("man", "ein Mann", "un hombre"), ("boy", "ein Junge", "un niño")],
}
PRONOUNS = {"f": ("she", "sie"), "m": ("he", "er")}
QUESTION_WORDS = [
    ("Where", "Wo/0", "¿Dónde/0"),
    ("When", "Wann/0", "¿Cuándo/0"),
    ("Why", "Warum/0", "¿Por/0 qué/0"),
]

FUNCTION_WORDS = frozenset("the a an on at and that in to does is has o'clock".split())


def number_words(number: int, gender: str | None = None) -> dict[str, str]:
    """Returns 0–99 in English, German and Spanish; `gender` ("m", "f") is that of a Spanish noun that follows.

    Examples:
        >>> number_words(23)
        {'en': 'twenty three', 'de': 'dreiundzwanzig', 'es': 'veintitrés'}
    """
    if not 0 <= number <= 99:
        raise ValueError(f"number must be from 0 to 99, got {number}")
    tens, ones = divmod(number, 10)
    if number < 20:
        english, german = ONES_EN[number], ONES_DE[number]
    elif not ones:
        english, german = TENS_EN[tens - 2], TENS_DE[tens - 2]
    else:
        english = f"{TENS_EN[tens - 2]} {ONES_EN[ones]}"
        german = f"{'ein' if ones == 1 else ONES_DE[ones]}und{TENS_DE[tens - 2]}"
    if number < 30:
        spanish = ONES_ES[number]
    else:
        spanish = TENS_ES[tens - 3] + (f" y {ONES_ES[ones]}" if ones else "")
    if gender and spanish.endswith("uno"):
        stem = spanish[: -len("uno")]
        spanish = stem + ("una" if gender == "f" else "ún" if number == 21 else "un")
    return {"en": english, "de": german, "es": spanish}
