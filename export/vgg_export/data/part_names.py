"""Which part of the data (train, select, test) the name of a folder or a table stands for."""

import re

# Names of part folders, in any case: one of these words or a longer form of it, then perhaps something that
# tells similar folders apart (test1, train_set).
_BEGINNINGS = {"train": "train", "val": "select", "test": "test", "eval": "eval"}


_BEGINS_LIKE_ONE = re.compile("|".join(_BEGINNINGS))


# seg_train, x-test
_WORD_WITHIN = re.compile(r"[ _.-](train|val|test|eval)(?=(?:ing|id|idation|uation)?[0-9]*(?:$|[ _.-]))")


_PLAIN = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|eval(uation)?)(["
    r" _.-]?(s|sets?|data|datasets?|images?|imgs?|pictures?|[0-9]+))*"
)


# What lies beside the parts without a class: pictures to predict (seg_pred), pictograms (Meta).
_NO_PART = re.compile(r"(.*[ _.-])?(pred(ict(ions?)?)?|unlabell?ed|inference|meta)")


def part_of_name(name: str) -> str | None:
    """The part that a name stands for (train, select, test, or eval for the one that is missing), None when
    it stands for none."""
    found = _BEGINS_LIKE_ONE.match(name.lower()) or _WORD_WITHIN.search(name.lower())
    return _BEGINNINGS[found[found.lastindex or 0]] if found else None


def is_plain(name: str) -> bool:
    """Whether a name is only that of a part, as "train_set" is and "trainers" is not."""
    return bool(_PLAIN.fullmatch(name.lower()))


def is_for_no_part(name: str) -> bool:
    """Whether pictures in a folder of this name have no class."""
    return bool(_NO_PART.fullmatch(name.lower()))


def of_word(word: str) -> str | None:
    """The part that a word in a table stands for, with "test" for an evaluation part."""
    part = part_of_name(word) if is_plain(word.strip()) else None
    return "test" if part == "eval" else part
