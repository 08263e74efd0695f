"""For the documentation site: examples in docstrings become blocks of code."""

import re

from griffe import Extension


def fenced(text: str) -> str:
    """Put each run of lines that begins with >>> into a block of code; it ends at an empty line."""
    block = re.compile(r"^(>>> .*(?:\n(?!\s*$).*)*)", re.M)
    return block.sub(r"```python\n\1\n```", text)


class FencedExamples(Extension):
    """Called for everything that is documented."""

    def on_object(self, *, obj, **others) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
