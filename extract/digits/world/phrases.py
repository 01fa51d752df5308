"""Phrases about digits: the bridge between the two spaces.

    >>> from cmcr.extract.digits.world.phrases import phrases
    >>> phrases("picture")[7]
    Phrase(text='a photo of a handwritten seven', digit=7)

A template takes a digit as a word ("seven") and as a numeral ("7"). `PICTURE` templates describe
a picture, `RECORDING` templates a recording, `EITHER` templates fit both.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["picture", "recording", "either"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMERALS = tuple("0123456789")

PICTURE = (
    "a photo of a handwritten {}",
    "a picture of a {}",
    "an image of the number {}",
    "the numeral {} in ink",
    "a scan of the digit {}",
    "a {} written by hand",
    "a blurry little picture of a {}",
    "a {} scrawled on paper",
    "white ink on black: a {}",
    "somebody wrote a {}",
    "a drawing of the figure {}",
    "a pencilled {}",
    "a low resolution scan of a {}",
    "the handwriting shows {}",
    "a {} drawn with a thick pen",
    "a sloppy {} in someone's handwriting",
    "a neat handwritten {}",
    "the digit {} on a form",
)
RECORDING = (
    "someone says {}",
    "a recording of the word {}",
    "the sound of a voice saying {}",
    "a person pronounces {}",
    "{} spoken aloud",
    "a spoken {}",
    "a voice reads out {}",
    "you can hear {}",
    "a speaker utters the digit {}",
    "an audio clip of the number {}",
    "a woman says {}",
    "a man says {}",
    "somebody said {} on the phone",
    "a robot voice announces {}",
    "the announcer calls number {}",
    "a noisy recording of {}",
    "{} said quickly",
    "{} in a loud clear voice",
)
EITHER = (
    "{}",
    "the number {}",
    "the digit {}",
    "number {}",
    "digit {}",
    "a {}",
    "this is a {}",
    "it is {}",
    "the answer is {}",
    "here comes a {}",
    "an example of {}",
    "the figure {}",
    "just {}",
    "{} and nothing else",
    "the single digit {}",
    "a sample of the digit {}",
    "I think it is {}",
    "could this be {}?",
)


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text and the digit that it is about."""

    text: str
    digit: int


def phrases(*kinds: Kind) -> list[Phrase]:
    """Every phrase of these kinds, the digit running fastest; without a kind, all of them."""
    templates = {"picture": PICTURE, "recording": RECORDING, "either": EITHER}
    return [
        Phrase(template.format(name), digit)
        for kind in kinds or templates
        for template in templates[kind]
        for names in (WORDS, NUMERALS)
        for digit, name in enumerate(names)
    ]
