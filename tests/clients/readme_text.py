"""Reads the README: its sections, their blocks and their commands."""

import os
import re
import shlex

from parts import check

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "README.md")


def section(title):
    """The text below a heading, up to the next one."""
    with open(README, encoding="utf-8") as file:
        found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", file.read(), re.M | re.S)
    check(found, f"the README has no section {title}")
    return found.group(1)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text):
    """The words of each command, without its comment."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
