"""Error for bad input data, with the file, the value and the cure in its text."""


class BadInput(ValueError):
    """Bad input data or settings; its text is one line for the person who owns the data.

    Args:
        where: file, table row or setting that is wrong.
        problem: what is wrong with it, with the value seen and the bound.
        cure: what to do about it; may be empty.
    """

    def __init__(self, where: object, problem: str, cure: str = "") -> None:
        self.where = str(where)
        self.problem = problem
        self.cure = cure
        super().__init__(printable(f"{where}: {problem}" + (f"; {cure}" if cure else "")))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return (BadInput, (self.where, self.problem, self.cure))


def printable(text: str) -> str:
    """Escapes control characters, so that names from files cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
